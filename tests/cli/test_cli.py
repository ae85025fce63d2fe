"""`generate`'s text, report and JSON agree with the library and hand computations; bad requests end in a message."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer

import longcat_ops
from longcat_ops.cli import generate as command
from longcat_ops.cli import main
from longcat_ops.engine import measure
from longcat_ops.engine.text import encode
from support import models
from support.cli_checkpoint import TOY, checkpoint, model, one_thread


def facts_of(capsys, *arguments: str) -> dict:
    assert main(["generate", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_facts_agree_with_the_library(checkpoint, model, capsys):
    prompt = "and it came"
    facts = facts_of(capsys, str(checkpoint), "--prompt", prompt, "--max-new-tokens", "40")
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    ids = torch.tensor([1, *tokenizer.encode(prompt).ids])
    plain = longcat_ops.generate(model, [ids], 40, speculative=False)
    assert facts["ids"] == plain.sequences[0][len(ids) :].tolist()
    assert facts["text"] == tokenizer.decode(facts["ids"])

    decode = facts["decode"]
    assert decode["new_tokens"] == 40 and decode["prompt_tokens"] == len(ids)
    assert decode["drafted"] > 0 and 0 < decode["accepted"] < decode["drafted"]
    assert decode["acceptance"] == decode["accepted"] / decode["drafted"]
    # Each step yields its own token and the accepted draft; the prompt's pass yields the first token.
    assert decode["steps"] + decode["accepted"] == 39
    assert decode["tokens_per_step"] == 39 / decode["steps"]
    assert decode["tokens_per_second"] == pytest.approx(39 / decode["seconds"])
    assert facts["plain"]["identical"] is True
    assert facts["plain"]["speedup"] == pytest.approx(facts["plain"]["seconds"] / decode["seconds"])

    counts = [int(n) for row in plain.num_real[0] for n in row]
    experts = facts["experts"]
    assert experts["mean"] == pytest.approx(sum(counts) / len(counts))
    assert (experts["min"], experts["max"]) == (min(counts), max(counts))
    assert experts["zero_share"] == pytest.approx(1 - sum(counts) / len(counts) / 3)
    assert experts["histogram"] == [counts.count(k) for k in range(4)]
    assert experts["by_layer"] == pytest.approx([sum(counts[i::2]) / 40 for i in (0, 1)])
    assert experts["target"] is None

    assert sum(part["share"] for part in facts["parts"].values()) == pytest.approx(1)
    assert facts["checkpoint"]["ffn_experts"] == 6 and facts["checkpoint"]["zero_experts"] == 3
    assert facts["checkpoint"]["file_bytes"] == (checkpoint / "model.safetensors").stat().st_size
    assert facts["run"]["backends"]["per_token_group_quant_fp8"] == "cpu" and facts["run"]["dtype"] == "float32"


def test_every_json_key_is_documented(checkpoint, capsys):
    facts = facts_of(capsys, str(checkpoint), "--prompt", "king", "--max-new-tokens", "4")
    keys = {key for value in facts.values() if isinstance(value, dict) for key in value} | facts.keys()
    keys |= {key for part in facts["parts"].values() for key in part}
    assert [key for key in keys if key not in command.__doc__] == []


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_decoding_row_by_row_is_said(checkpoint, capsys, dtype):
    arguments = ["generate", str(checkpoint), "--prompt", "king", "--max-new-tokens", "4", "--dtype", dtype]
    facts = facts_of(capsys, *arguments[1:])
    assert facts["run"]["row_by_row"] == (dtype == "float64")
    assert facts["plain"]["identical"]
    assert main(arguments) == 0
    assert ("rows        one at a time" in capsys.readouterr().out) == (dtype == "float64")


def test_teacher_forced_acceptance_by_hand(checkpoint, model):
    """One pass over the text counts the same acceptances as a separate prefill for each position."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    ids = torch.tensor(encode(tokenizer, TOY[:90], 1))
    agreed = 0
    for p in range(len(ids) - 1):
        cache = model.new_cache(1, len(ids))
        step = model.prefill(cache, 0, ids[: p + 2])
        hidden = model.draft_prefill(cache, 0, ids[1 : p + 2], step.hidden[: p + 1])
        agreed += int(model.head(hidden[-1:]).argmax()) == int(step.logits[-1].argmax())
    assert measure.teacher_forced_acceptance(model, ids) == (agreed, len(ids) - 1)
    assert 0 < agreed < len(ids) - 1


def test_teacher_forced_text_is_named(checkpoint, tmp_path, capsys):
    text = tmp_path / "excerpt.txt"
    text.write_text(TOY[:60])
    facts = facts_of(capsys, str(checkpoint), "--prompt", "king", "--max-new-tokens", "4", "--text", str(text))
    length = len(encode(Tokenizer.from_file(str(checkpoint / "tokenizer.json")), TOY[:60], 1))
    assert facts["teacher_forced"]["text"] == "excerpt.txt" and facts["teacher_forced"]["positions"] == length - 1
    facts = facts_of(capsys, str(checkpoint), "--prompt", "king", "--max-new-tokens", "4")
    assert facts["teacher_forced"]["text"] == "the prompt and its continuation"


def test_the_held_out_text_of_a_checkpoint_is_found(checkpoint, tmp_path, capsys):
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "metrics.json").write_text('{"training": {"target_real_experts_per_token": 2.5}}')
    (tmp_path / "heldout.txt").write_text(TOY)
    facts = facts_of(capsys, str(tmp_path), "--prompt", "king", "--max-new-tokens", "4")
    assert facts["teacher_forced"]["text"] == "heldout.txt"
    assert facts["teacher_forced"]["positions"] == 127  # cut at max_position_embeddings
    assert facts["experts"]["target"] == 2.5


def test_text_then_report(checkpoint, model, capsys):
    assert main(["generate", str(checkpoint), "--prompt", "and it came", "--max-new-tokens", "24"]) == 0
    out = capsys.readouterr().out
    text, _, report = out.partition("\n\ncheckpoint")
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    ids = torch.tensor(encode(tokenizer, "and it came", 1))
    new = longcat_ops.generate(model, [ids], 24, speculative=False).sequences[0][len(ids) :]
    assert text == "and it came" + tokenizer.decode(new.tolist())
    for part in ("6 FFN + 3 zero experts, top-3", "MTP head", "tokens/step", "teacher-forced", "tokens/s", "min",
                 "zero share", "attention", "dense FFN", "MoE", "head and rest", "identical: yes (24"):  # fmt: skip
        assert part in report, part


def test_sampling_is_repeatable_and_not_compared(checkpoint, capsys):
    arguments = (str(checkpoint), "--prompt", "king", "--max-new-tokens", "12", "--temperature", "1.5", "--top-k", "20",
                 "--draft", "sampled", "--seed", "5")  # fmt: skip
    first = facts_of(capsys, *arguments)
    assert first["plain"] is None and first["run"]["seed"] == 5
    assert facts_of(capsys, *arguments)["ids"] == first["ids"]


def test_plain_decoding_drafts_nothing(checkpoint, capsys):
    facts = facts_of(capsys, str(checkpoint), "--prompt", "king", "--max-new-tokens", "6", "--no-speculative")
    assert facts["decode"]["drafted"] == 0 and facts["decode"]["acceptance"] is None
    assert facts["decode"]["tokens_per_step"] == 1 and facts["plain"] is None


def test_one_token_has_no_rates(checkpoint, capsys):
    assert main(["generate", str(checkpoint), "--prompt", "king", "--max-new-tokens", "1"]) == 0
    assert "no decode step" in capsys.readouterr().out
    facts = facts_of(capsys, str(checkpoint), "--prompt", "king", "--max-new-tokens", "1")
    assert facts["decode"]["tokens_per_second"] is None and facts["parts"] is None


def test_only_text(checkpoint, tmp_path, capsys):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("the people")
    command = ["generate", "--checkpoint", str(checkpoint), "nowhere", "--prompt-file", str(prompt), "--no-report"]
    assert main([*command, "--max-new-tokens", "5"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("the people") and "tokens" not in out


@pytest.mark.parametrize("extra", [[], ["--json"], ["--no-report", "--compare"]])
def test_a_difference_is_exit_code_one(checkpoint, monkeypatch, capsys, extra):
    """A plain decode that differs ends in exit code 1; only that decode is disturbed here."""

    def disturbed(*args, **options):
        result = longcat_ops.generate(*args, **options)
        if not options["speculative"]:
            result.sequences[0][-1] += 1
        return result

    monkeypatch.setattr(measure, "generate", disturbed)
    assert main(["generate", str(checkpoint), "--prompt", "king", "--max-new-tokens", "3", *extra]) == 1
    streams = capsys.readouterr()
    assert "differ" in streams.err
    assert extra or "identical: NO" in streams.out


@pytest.mark.parametrize(
    "arguments,text",
    [
        (["--prompt", ""], "empty text"),
        (["--temperature", "-1"], "temperature"),
        (["--top-p", "0"], "top_p"),
        (["--max-new-tokens", "125"], "max_position_embeddings = 128"),
        (["--prompt", "and " * 200], "max_position_embeddings = 128"),
        (["--prompt-file", "/nowhere/prompt"], "No such file"),
        (["--device", "toaster"], "device"),
        (["--precision", "int4"], "precision"),
        (["--text", "/nowhere/text"], "--text"),
        (["--compare", "--temperature", "1"], "--compare"),
        (["--compare", "--no-speculative"], "--compare"),
    ],
)
def test_bad_requests_end_in_a_message(checkpoint, arguments, text, capsys):
    assert main(["generate", str(checkpoint), "--max-new-tokens", "8", *arguments]) == 2
    streams = capsys.readouterr()
    assert text in streams.err and streams.err.startswith("longcat_ops: ") and "Traceback" not in streams.err
    assert streams.out == ""


def test_bad_folders_end_in_a_message(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["generate"]) == 2
    assert "checkpoints/longcat-tiny" in capsys.readouterr().err
    assert main(["generate", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    assert main(["generate", ".", "--max-new-tokens", "8"]) == 2
    assert "tokenizer.json does not exist" in capsys.readouterr().err
    (tmp_path / "tokenizer.json").write_text("{}")
    assert main(["generate", ".", "--max-new-tokens", "8"]) == 2
    assert "is not a tokenizer" in capsys.readouterr().err
    (tmp_path / "tokenizer.json").write_bytes((checkpoint / "tokenizer.json").read_bytes())
    assert main(["generate", ".", "--max-new-tokens", "8"]) == 2
    assert "no *.safetensors" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert main(["generate", str(checkpoint)]) == 2
    assert "package tokenizers" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["generate", "--max-new-tokens", "0"], ["generate", "--threads", "x"], [], ["fly"]]
)
def test_bad_usage_is_exit_code_two(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2 and "usage:" in capsys.readouterr().err


def test_interrupts_show_no_traceback(checkpoint, monkeypatch, capsys):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_Request", interrupt)
    assert main(["generate", str(checkpoint)]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


def test_help_and_version_import_no_torch():
    script = (
        "import sys; from longcat_ops.cli import main\n"
        "try: main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules"
    )
    for option in ("--help", "--version"):
        result = subprocess.run([sys.executable, "-c", script, option], capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr
        assert "generate" in result.stdout or result.stdout.strip() == f"longcat_ops {longcat_ops.__version__}"


def test_a_reader_that_leaves_is_no_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(models.BASE))
    command = f"{sys.executable} -m longcat_ops doctor --json | head -c 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in result.stderr and "Exception ignored" not in result.stderr

"""`generate --prompts`: the texts of one prompt alone, lines that survive a kill, refusals."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

import longcat_ops
from longcat_ops.cli import batch, batch_output, main
from longcat_ops.engine.engine import Engine
from longcat_ops.engine.text import encode
from support.cli_checkpoint import checkpoint, model, one_thread

WORDS = ("and it came", "king", "the people", "in those days", "went up", "him", "pass in", "to", "the king went")
SAMPLED = ("--temperature", "1.5", "--top-k", "40", "--seed", "7")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(WORDS) + "\n")
    return file


def decode(folder: Path, prompts: Path, output: Path, *options: str) -> int:
    return main(["generate", str(folder), "--prompts", str(prompts), "--output", str(output), "--max-new-tokens", "12",
                 "--batch", "3", *options])  # fmt: skip


def lines(output: Path) -> dict[int, dict]:
    """By index, without what no two runs share."""
    _, *found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert all(line["seconds"] > 0 for line in found)
    by_index = {line["index"]: {k: v for k, v in line.items() if k != "seconds"} for line in found}
    assert len(by_index) == len(found)
    return by_index


@pytest.mark.parametrize("options", [(), SAMPLED, ("--no-speculative", "--steps-per-schedule", "1")], ids=str)
def test_texts_are_those_of_one_prompt_alone(checkpoint, model, prompts, tmp_path, options):
    assert decode(checkpoint, prompts, tmp_path / "out.jsonl", *options) == 0
    found = lines(tmp_path / "out.jsonl")
    assert sorted(found) == list(range(len(WORDS)))
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    for index, word in enumerate(WORDS):
        line, ids = found[index], torch.tensor(encode(tokenizer, word, 1))
        sampling = {"temperature": 1.5, "top_k": 40, "seed": line["seed"]} if options == SAMPLED else {}
        alone = longcat_ops.generate(model, [ids], 12, **sampling).sequences[0][len(ids) :].tolist()
        assert line["tokens"] == alone and line["text"] == tokenizer.decode(alone) and line["prompt"] == word
        assert line["finish_reason"] == "length" and line["accepted"] <= line["drafted"]
        assert (line["drafted"] == 0) == ("--no-speculative" in options)
        assert ("seed" in line) == (options == SAMPLED)


def test_lines_of_json_have_their_own_options(checkpoint, model, tmp_path):
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    asked = [
        {"id": "first", "prompt": "king", "max_new_tokens": 3},
        {"id": 7, "ids": [1, 80, 90], "temperature": 0.9, "seed": 5},
        {"prompt": "the people", "stop": [260, 261], "temperature": None},
        {"prompt": "him", "max_new_tokens": 0},
        {"prompt": "the people", "stop": [tokenizer.decode([260]), tokenizer.decode([261])]},
    ]
    file, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in asked))
    main(["generate", str(checkpoint), "--prompts", str(file), "--output", str(output), "--max-new-tokens", "9"])
    found = [json.loads(line) for line in output.read_text().splitlines()[1:]]
    first, second, third, nothing, cut = sorted(found, key=lambda line: line["index"])
    assert (first["id"], len(first["tokens"]), second["id"]) == ("first", 3, 7) and "id" not in third
    alone = longcat_ops.generate(model, [torch.tensor([1, 80, 90])], 9, temperature=0.9, seed=5)
    assert second["tokens"] == alone.sequences[0][3:].tolist() and second["seed"] == 5
    assert third["finish_reason"] == "stop" and third["tokens"][-1] in (260, 261)
    assert cut["finish_reason"] == "stop" and cut["tokens"] == third["tokens"]
    assert third["text"] == cut["text"] + tokenizer.decode(third["tokens"][-1:])
    assert nothing["tokens"] == [] and nothing["text"] == ""


@pytest.mark.parametrize("options", [(), SAMPLED, SAMPLED[:2]], ids=["greedy", "sampled", "sampled, a fresh seed"])
def test_an_interrupted_run_goes_on(checkpoint, prompts, tmp_path, monkeypatch, capsys, options):
    """Twice interrupted, and with a torn line behind, the file has the lines of a run that was not."""
    output, step, left = tmp_path / "out.jsonl", Engine.step, 0

    def interrupted(engine: Engine) -> bool:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return step(engine)

    monkeypatch.setattr(Engine, "step", interrupted)
    done = []
    for steps in (5, 6):
        left = steps
        assert decode(checkpoint, prompts, output, *options) == 130
        done.append(len(lines(output)))
        err = capsys.readouterr().err
        assert f"{done[-1]} of 9 requests are in {output}, {9 - done[-1]} are left." in err and "to go on: the" in err
        with output.open("ab") as stream:
            stream.write(b'{"index": 8, "prompt": "the')
    assert 0 < done[0] < done[1] < 9
    monkeypatch.setattr(Engine, "step", step)
    assert decode(checkpoint, prompts, output, *options, "--batch", "2") == 0
    assert f"requests        {9 - done[1]} (" in capsys.readouterr().err
    header = json.loads(output.read_text().splitlines()[0])
    whole = tmp_path / "whole.jsonl"
    assert decode(checkpoint, prompts, whole, *options, "--seed", str(header["options"]["seed"])) == 0
    assert lines(output) == lines(whole)
    before = output.read_bytes()
    assert decode(checkpoint, prompts, output, *options) == 0 and output.read_bytes() == before
    assert "all 9 requests are in" in capsys.readouterr().err


def test_a_torn_first_line_is_written_again(checkpoint, prompts, tmp_path):
    output = tmp_path / "out.jsonl"
    output.write_text('{"run": "longcat_ops generate --pro')
    assert decode(checkpoint, prompts, output) == 0 and len(lines(output)) == 9


def test_a_failed_request_has_no_line_and_is_tried_again(checkpoint, prompts, tmp_path, monkeypatch, capsys):
    submit = Engine.submit

    def failing(engine: Engine, ids: list[int], new: int, **options: object) -> object:
        def fail(*_: object) -> None:
            raise ValueError("made up")

        bad = engine.statistics.summary().requests == 4
        return submit(engine, ids, new, on_token=fail if bad else None, **options)

    monkeypatch.setattr(Engine, "submit", failing)
    assert decode(checkpoint, prompts, tmp_path / "out.jsonl") == 1
    err = capsys.readouterr().err
    assert f"longcat_ops: {prompts}, line 5: Engine: on_token of request 4" in err and "1 requests failed" in err
    assert sorted(lines(tmp_path / "out.jsonl")) == [0, 1, 2, 3, 5, 6, 7, 8]
    monkeypatch.setattr(Engine, "submit", submit)
    assert decode(checkpoint, prompts, tmp_path / "out.jsonl") == 0 and len(lines(tmp_path / "out.jsonl")) == 9


@pytest.mark.parametrize(
    "name,text,message",
    [
        ("a.txt", "", "an empty file, expected at least one prompt"),
        ("a.txt", "king\n\nhim\n", "a.txt, line 2: generate: argument `prompt` is an empty text"),
        ("a.txt", "king\n" + "and " * 130 + "\n", "line 2: generate: argument `input_ids[0]` is"),
        ("a.jsonl", '{"prompt": "king"}\n{"prompt": \n', "line 2: generate: argument `line` is '{\"prompt\": '"),
        ("a.jsonl", '{"prompt": "king"}\n\n', "line 2: generate: argument `line` is an empty line, expected a JSON"),
        ("a.jsonl", "[1, 2]\n", "argument `line` is [1, 2], expected a JSON object"),
        ("a.jsonl", "[" * 100_000, "expected a JSON object"),
        ("a.jsonl", '{"text": "king"}', "an object with the key 'text', expected of id, prompt, ids"),
        ("a.jsonl", '{"id": 3}', "neither prompt nor ids, expected one of prompt, ids"),
        ("a.jsonl", '{"ids": [3], "prompt": "king"}', "argument `line` is prompt and ids"),
        ("a.jsonl", '{"id": [3], "prompt": "king"}', "argument `id` is [3], expected a string or an integer"),
        ("a.jsonl", '{"prompt": 3}', "argument `prompt` is 3, expected a string"),
        ("a.jsonl", '{"prompt": "\\ud800"}', "a lone surrogate (character 1)"),
        ("a.jsonl", '{"ids": []}', "an empty prompt"),
        ("a.jsonl", '{"ids": "king"}', "argument `ids` is 'king', expected a list of token ids"),
        ("a.jsonl", '{"ids": [3, 288]}', "ids 3 .. 288, expected 0 .. 287"),
        ("a.jsonl", '{"ids": [1.5]}', "expected 1-D int64"),
        ("a.jsonl", '{"ids": [9223372036854775808]}', "expected 1-D int64"),
        ("a.jsonl", '{"ids": [3], "max_new_tokens": 128}', "max_position_embeddings = 128"),
        ("a.jsonl", '{"ids": [3], "max_new_tokens": -1}', "`max_new_tokens` is -1"),
        ("a.jsonl", '{"ids": [3], "temperature": NaN}', "`temperature` is nan"),
        ("a.jsonl", '{"ids": [3], "top_k": 1.5}', "`top_k` is 1.5"),
        ("a.jsonl", '{"ids": [3], "top_p": 0}', "`top_p` is 0"),
        ("a.jsonl", '{"ids": [3], "seed": "a"}', "`seed` is 'a'"),
        ("a.jsonl", '{"ids": [3], "stop": ""}', "`stop` is an empty text"),
        ("a.jsonl", '{"ids": [3], "stop": ["a", 288]}', "`stop` is 288, expected strings, and token ids in 0 .. 287"),
    ],
)
def test_bad_lines_are_refused_before_anything_runs(checkpoint, tmp_path, monkeypatch, capsys, name, text, message):
    monkeypatch.setattr(batch, "LongcatFlashForCausalLM", None)
    (tmp_path / name).write_text(text)
    assert decode(checkpoint, tmp_path / name, tmp_path / "out.jsonl") == 2
    streams = capsys.readouterr()
    assert message in streams.err and streams.err.startswith("longcat_ops: ") and streams.out == ""
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    "options,message",
    [
        (("--max-new-tokens", "13"), "argument `max_new_tokens` is 13, expected 12, as in the run that"),
        (("--stop", "king"), "argument `stop` is ['king'], expected []"),
        (("--temperature", "1"), "argument `temperature` is 1.0, expected 0.0"),
        (("--seed", "4"), "argument `seed` is 4, expected 3"),
        (("--no-speculative",), "argument `speculative` is False, expected True"),
        (("--dtype", "float32"), "argument `dtype` is 'float32', expected None"),
    ],
)
def test_an_output_of_other_options_is_refused(checkpoint, prompts, tmp_path, capsys, options, message):
    output = tmp_path / "out.jsonl"
    arguments = {"max_new_tokens": 12, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "speculative": True, "dtype": None,
                 "precision": None, "stop": [], "seed": 3, "device": "cpu"}  # fmt: skip
    args = argparse.Namespace(**arguments)
    read = argparse.Namespace(asked=[None] * 9, sha256=hashlib.sha256(prompts.read_bytes()).hexdigest())
    header = {"run": batch_output.KIND, **batch._header(args, checkpoint, read, None)}
    output.write_text(json.dumps(header) + "\n")
    before = output.read_bytes()
    assert decode(checkpoint, prompts, output, *options) == 2
    err = capsys.readouterr().err
    assert message in err and "name another --output" in err and output.read_bytes() == before


def test_an_output_of_another_run_is_refused(checkpoint, prompts, tmp_path, capsys):
    output, folder = tmp_path / "out.jsonl", tmp_path / "model"
    assert decode(checkpoint, prompts, output) == 0
    whole = output.read_bytes()
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes() + (b" " if file.name == "config.json" else b""))
    other = tmp_path / "other.txt"
    other.write_text("king\n")
    lines_of = whole.splitlines(keepends=True)
    for text, place, file, message in (
        (whole, folder, prompts, "argument `--checkpoint` is another one"),
        (whole, checkpoint, other, "argument `--prompts` is another one"),
        (b"some text", checkpoint, prompts, "whose line 1 is no line of this command"),
        (b"{}\n", checkpoint, prompts, "whose line 1 is no line of this command"),
        (b"".join([*lines_of[:3], b"{}\n"]), checkpoint, prompts, "whose line 4 is no line of this command"),
        (b"".join([*lines_of[:3], lines_of[2]]), checkpoint, prompts, "a second time"),
        (lines_of[0] + b'{"index": 9}\n', checkpoint, prompts, "with index 9, expected 0 .. 8"),
    ):
        output.write_bytes(text)
        assert decode(place, file, output) == 2
        assert message in capsys.readouterr().err and output.read_bytes() == text
    assert decode(checkpoint, prompts, tmp_path) == 2 and "Is a directory" in capsys.readouterr().err
    assert decode(checkpoint, prompts, Path("/dev/null")) == 2 and "no regular file" in capsys.readouterr().err
    with_lock = batch.Output(str(tmp_path / "locked.jsonl"))
    assert decode(checkpoint, prompts, Path(with_lock.path)) == 2
    assert "another run is writing it" in capsys.readouterr().err
    with_lock.close()


def test_the_cache_and_bad_usage(checkpoint, prompts, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    assert decode(checkpoint, prompts, output, "--max-new-tokens", "100", "--max-tokens-in-cache", "64") == 2
    assert "argument `--max-tokens-in-cache` is 64, expected at least 128, for " in capsys.readouterr().err
    assert decode(checkpoint, prompts, output, "--max-tokens-in-cache", "64") == 0 and len(lines(output)) == 9
    base = ["generate", str(checkpoint)]
    for extra, message in (
        (["--prompts", "a"], "--prompts needs --output FILE"),
        (["--output", "a"], "--output needs --prompts FILE"),
        (["--stop", "a"], "--stop needs --prompts FILE"),
        (["--prompts", "a", "--output", "b", "--compare"], "--compare does not go with --prompts"),
        (["--prompts", "a", "--output", "b", "--draft", "sampled"], "--draft sampled does not go"),
        (["--prompts", "a", "--prompt", "b"], "not allowed with argument"),
        (["--prompts", "a", "--output", "b", "--batch", "0"], "--batch: '0' is not an integer in 1 .. 4096"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main([*base, *extra])
        assert exit_.value.code == 2 and message in capsys.readouterr().err


def test_the_summary(checkpoint, prompts, tmp_path, capsys):
    assert decode(checkpoint, prompts, tmp_path / "a", "--json") == 0
    streams = capsys.readouterr()
    facts = json.loads(streams.out)
    assert facts["requests"] == 9 and facts["tokens"] == 108 and facts["finished"] == {"length": 9}
    assert facts["failed"] == 0 and streams.err == ""
    assert decode(checkpoint, prompts, tmp_path / "b", "--no-report") == 0 and capsys.readouterr().err == ""
    assert decode(checkpoint, prompts, tmp_path / "c") == 0
    streams = capsys.readouterr()
    for part in ("9 (9 length)", "108 new in", "tokens/s", "first token     p50", "between tokens  p50", "accepted",
                 "in use over", "at most", "zero experts"):  # fmt: skip
        assert part in streams.err and streams.out == ""

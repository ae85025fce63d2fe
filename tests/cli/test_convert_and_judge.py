"""The commands `quantize --policy auto` and `evaluate`: the text that is read, what is printed, what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer

from longcat_ops.cli import main
from longcat_ops.cli.evaluate import __doc__ as documented
from longcat_ops.engine.evaluate import evaluate
from longcat_ops.engine.text import windows
from longcat_ops.loading.calibrate import calibrate
from longcat_ops.loading.calibration import Thresholds
from support.cli_checkpoint import TOY, checkpoint, one_thread


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(TOY)
    return file


def test_pieces_of_a_text(checkpoint):
    """BOS in front of each, all of the text behind it; without one, the first token of a piece is not predicted."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    ids = tokenizer.encode(TOY).ids
    pieces, size = windows(tokenizer, TOY, 1, 32)
    assert [int(piece[0]) for piece in pieces] == [1] * len(pieces) and {len(p) for p in pieces[:-1]} == {32}
    assert torch.cat([piece[1:] for piece in pieces]).tolist() == ids and size == len(TOY.encode())
    plain, less = windows(tokenizer, TOY, None, 32)
    assert torch.cat(plain).tolist() == ids[: sum(map(len, plain))] and less < size
    assert less == sum(len(tokenizer.decode(p[1:].tolist())) for p in plain)
    assert windows(tokenizer, "", 1, 32) == ([], 0)
    assert windows(tokenizer, "é" * 40, 1, 32)[1] == 80  # bytes


def test_auto_calibrates_on_the_text(checkpoint, text, tmp_path, capsys):
    arguments = ["quantize", str(checkpoint), str(tmp_path / "fp8"), "--policy", "auto", "--calibrate", str(text),
                 "--window", "32", "--max-input", "3", "--max-relative", "0.022", "--max-absolute", "0"]  # fmt: skip
    assert main(arguments) == 0
    assert "projections in FP8" in capsys.readouterr().out
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    pieces, _ = windows(tokenizer, TOY, 1, 32)
    wanted = calibrate(checkpoint, pieces, Thresholds(3.0, 0.022, 0.0)).policy
    policy = json.loads((tmp_path / "fp8" / "precision_policy.json").read_text())
    assert policy == wanted and 1 < len(policy) < 40


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--policy", "auto"], "argument `--calibrate` is missing, expected a text with --policy auto"),
        (["--calibrate", "x"], "argument `--policy` is 'all' with options of a calibration, expected auto"),
        (["--policy", "none", "--max-input", "3"], "with options of a calibration"),
        (["--window", "32"], "with options of a calibration"),
        (["--policy", "auto", "--calibrate", "nothing.txt"], "--calibrate nothing.txt: No such file"),
        (["--policy", "auto", "--calibrate", "TEXT", "--window", "129"], "`--window` is 129, expected at most 128"),
        (["--policy", "auto", "--calibrate", "TEXT", "--max-input", "nan"], "`max_input` is nan"),
        (["--policy", "auto", "--calibrate", "EMPTY"], "without text, expected a text of some tokens"),
    ],
)
def test_what_auto_refuses(checkpoint, text, tmp_path, capsys, options, error):
    (tmp_path / "empty.txt").write_text("")
    named = {"TEXT": str(text), "EMPTY": str(tmp_path / "empty.txt")}
    assert main(["quantize", str(checkpoint), str(tmp_path / "fp8"), *(named.get(o, o) for o in options)]) == 2
    assert error in capsys.readouterr().err
    assert not (tmp_path / "fp8").exists()


def test_evaluate(checkpoint, text, tmp_path, capsys):
    assert main(["quantize", str(checkpoint), str(tmp_path / "fp8")]) == 0
    capsys.readouterr()
    arguments = ["evaluate", str(tmp_path / "fp8"), "--text", str(text), "--against", str(checkpoint), "--window", "32"]
    assert main([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    pieces, size = windows(Tokenizer.from_file(str(checkpoint / "tokenizer.json")), TOY, 1, 32)
    found = evaluate(tmp_path / "fp8", pieces, size, against=checkpoint)
    assert facts["checkpoint"]["bits_per_byte"] == found.checkpoint.bits_per_byte
    assert facts["difference"]["layers"] == found.difference.layers and facts["tokens"] == found.tokens
    assert facts["bytes"] == len(TOY)
    keys = {key for value in facts.values() if isinstance(value, dict) for key in value} | facts.keys()
    assert [key for key in keys if key not in documented] == []
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"text        {found.tokens} tokens, {len(TOY)} bytes, in {len(pieces)} pieces"
    assert lines[1].endswith("drafts accepted, greedy") and f"{found.other.bits_per_byte:.4f} bits a byte" in lines[2]
    assert lines[3].startswith(f"agreement   {found.difference.agreement:.4f}") and lines[4].count("e-0") == 2


def test_evaluate_alone_and_in_another_precision(checkpoint, text, tmp_path, capsys):
    common = ["evaluate", str(checkpoint), "--text", str(text), "--json"]
    facts = {}
    for name, options in (("stored", []), ("fp8", ["--precision", "fp8"]), ("bf16", ["--dtype", "bfloat16"])):
        assert main([*common, *options]) == 0
        facts[name] = json.loads(capsys.readouterr().out)
    assert facts["stored"]["other"] is facts["stored"]["difference"] is None
    bits = [facts[name]["checkpoint"]["bits_per_byte"] for name in facts]
    assert len(set(bits)) == 3 and max(bits) - min(bits) < 0.2
    assert main(["evaluate", str(checkpoint), "--text", str(tmp_path / "nothing")]) == 2
    assert "--text" in capsys.readouterr().err

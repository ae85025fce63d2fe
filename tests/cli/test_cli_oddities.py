"""Odd arguments, files and streams: each ends in one message on stderr, exit code 2 and no traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from longcat_ops import LongcatFlashForCausalLM
from longcat_ops.cli import main
from support.cli_checkpoint import checkpoint, one_thread

pytestmark = pytest.mark.long

PYTHON = Path(__file__).resolve().parents[2] / "python"


def shell(command: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """`command` in bash, where $RUN is the command line and $DIR the checkpoint."""
    path = os.pathsep.join([str(PYTHON), *filter(None, [os.environ.get("PYTHONPATH")])])
    names = dict(RUN=f"{sys.executable} -m longcat_ops", DIR=str(folder), PYTHONPATH=path, OMP_NUM_THREADS="1")
    return subprocess.run(["bash", "-c", command], capture_output=True, timeout=120, env=os.environ | names | variables)


def refused(result: subprocess.CompletedProcess[bytes], text: str) -> None:
    assert result.returncode == 2, result
    assert text.encode() in result.stderr
    assert b"Traceback" not in result.stderr and b"Exception ignored" not in result.stderr
    assert result.stderr.count(b"longcat_ops: ") == 1


SHORT = "--max-new-tokens 3"


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (f"$RUN generate $DIR {SHORT} --prompt $'ab\\xff'", "--prompt: not UTF-8 text (character 3)"),
        (f"printf 'ab\\xff' | $RUN generate $DIR {SHORT} --prompt-file -", "--prompt-file -: not UTF-8 text"),
        (f"$RUN generate $DIR {SHORT} --prompt-file - <&-", "--prompt-file -: stdin is closed"),
        (f"$RUN generate $DIR {SHORT} --prompt-file /dev/zero", "--prompt-file /dev/zero: more than 64 MiB"),
        ("$RUN generate $'\\xff'", "config.json does not exist"),
        (f"$RUN generate $DIR {SHORT} >&-", "stdout is closed"),
        ("$RUN doctor >&-", "stdout is closed"),
        (f"$RUN generate $DIR {SHORT} >/dev/full", "No space left on device"),
        ("$RUN doctor >/dev/full", "No space left on device"),
        ("PYTHONUNBUFFERED= $RUN --help >/dev/full", "No space left on device"),  # argparse hides it if unbuffered
        ("$RUN plan $DIR --json >/dev/full", "No space left on device"),
    ],
)
def test_odd_bytes_and_streams(checkpoint, command, text):
    refused(shell(command, checkpoint), text)


@pytest.mark.parametrize(
    "command",
    [
        f"$RUN generate $DIR {SHORT} --temperature -1 2>&-",
        f"$RUN generate $DIR {SHORT} --temperature -1 2>/dev/full",
        f"$RUN generate $DIR {SHORT} --temperature -1 2>&1 >/dev/full",
        f"$RUN generate $DIR {SHORT} --temperature -1 >&- 2>&-",
        f"$RUN generate $DIR {SHORT} --temperature -1 <&- >&- 2>&-",
    ],
)
def test_a_message_that_nobody_takes(checkpoint, command):
    result = shell(command, checkpoint)
    assert result.returncode == 2
    assert b"Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "latin-1", "utf-16"])
def test_a_terminal_of_few_characters(checkpoint, encoding):
    command = f"$RUN generate $DIR {SHORT} --prompt $'d\\u00e9j\\u00e0 \\u4e2d\\U1F431'"
    result = shell(command, checkpoint, PYTHONIOENCODING=encoding, LC_ALL="C.UTF-8")
    assert result.returncode == 0, result.stderr
    assert b"Traceback" not in result.stderr and result.stdout.decode(encoding.split(":")[0]).startswith("d")


def test_a_reader_that_leaves_early(checkpoint):
    result = shell(f"$RUN generate $DIR {SHORT} | true; exit ${{PIPESTATUS[0]}}", checkpoint)
    assert result.returncode == 0 and result.stderr == b""


HUGE = "9" * 5000


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--device", "mps"], "device"),
        (["--device", "meta"], "device"),
        (["--device", "cuda:99"], "device"),
        (["--device", ""], "device"),
        (["--device", "cpu:x"], "device"),
        (["--temperature", "nan"], "temperature"),
        (["--temperature", "inf"], "temperature"),
        (["--temperature", HUGE], "temperature"),
        (["--top-p", "nan"], "top_p"),
        (["--top-p", "1e-400"], "top_p"),
        (["--top-k", "-1"], "top_k"),
        (["--seed", "-1"], "seed"),
        (["--seed", "9" * 40], "seed"),
        (["--max-new-tokens", "9" * 40], "max_position_embeddings = 128"),
        (["--checkpoint", ""], "config.json does not exist"),
        (["--checkpoint", "x" * 5000], "File name too long"),
        (["--prompt-file", "x" * 5000], "File name too long"),
        (["--prompt-file", "."], "Is a directory"),
        (["--prompt-file", ""], "No such file"),
        (["--text", "."], "Is a directory"),
        (["--text", ""], "--text"),
        (["--text", "x" * 5000], "File name too long"),
        (["--precision", "x" * 5000], "File name too long"),
        (["--precision", "."], "is a folder"),
        (["--precision", ""], "precision"),
    ],
)
def test_odd_values(checkpoint, arguments, text, capsys):
    assert main(["generate", str(checkpoint), "--max-new-tokens", "3", *arguments]) == 2
    streams = capsys.readouterr()
    assert text in streams.err and streams.err.startswith("longcat_ops: ") and streams.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--threads", "0"], ["--threads", "1000000"], ["--threads", HUGE], ["--max-new-tokens", HUGE],
        ["--top-k", HUGE], ["--top-k", "1.5"], ["--seed", HUGE], ["--seed", "x"], ["--temperature", "x"],
        ["--top-p", ""], ["--draft", "x"], ["--dtype", "int8"],
    ],
)  # fmt: skip
def test_odd_values_that_are_bad_usage(checkpoint, arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["generate", str(checkpoint), *arguments])
    assert exit_.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--prompt-file", "--text"])
def test_odd_files(checkpoint, option, tmp_path, capsys):
    file = tmp_path / "file"
    for content, text in ((b"\xff\xfe", "not UTF-8 text"), (b"ab\xc3", "not UTF-8 text")):
        file.write_bytes(content)
        assert main(["generate", str(checkpoint), "--max-new-tokens", "3", option, str(file)]) == 2
        assert text in capsys.readouterr().err
    file.unlink()
    file.symlink_to(file)
    assert main(["generate", str(checkpoint), "--max-new-tokens", "3", option, str(file)]) == 2
    assert "symbolic links" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [["--ep", HUGE], ["--ep", "0"], ["--tp", "-1"], ["--ep", "9" * 30], ["--tp", "x"]])
def test_plan(checkpoint, extra, capsys):
    try:
        code = main(["plan", str(checkpoint), *extra])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2 and "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("path", ["", "x" * 5000, "/dev/null", "/nowhere", "."])
def test_plan_of_odd_paths(path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", path]) == 2
    assert capsys.readouterr().err.startswith("longcat_ops: ")


def copied(checkpoint: Path, folder: Path) -> Path:
    shutil.copytree(checkpoint, folder)
    return folder


def test_a_held_out_text_that_is_none_is_refused_before_a_weight_is_read(checkpoint, tmp_path, capsys, monkeypatch):
    folder = copied(checkpoint, tmp_path / "model")
    (folder / "heldout.txt").write_bytes(b"ab\xff")
    monkeypatch.setattr(LongcatFlashForCausalLM, "from_pretrained", None)
    assert main(["generate", str(folder), "--max-new-tokens", "2"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("heldout.txt") == 1 and "not valid UTF-8" in captured.err


def test_files_that_the_loader_passed_over_do_not_matter_later(checkpoint, tmp_path, capsys):
    folder = copied(checkpoint, tmp_path / "model")
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (folder / "old.safetensors").symlink_to("nowhere")
    assert main(["generate", str(folder), "--max-new-tokens", "2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["checkpoint"]["file_bytes"] == (folder / "model.safetensors").stat().st_size


def test_an_unknown_key_is_warned_of_once(checkpoint, tmp_path):
    folder = copied(checkpoint, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"bananas": 3}))
    result = shell(f"$RUN generate $DIR {SHORT}", folder)
    assert result.returncode == 0 and result.stderr.count(b"bananas") == 1, result.stderr

"""What `quantize` refuses, with one message and before it writes; what it does when the disk gives out."""

from __future__ import annotations

import errno
import json
import os

import pytest
from safetensors.torch import load_file, save_file

from longcat_ops import LongcatCheckpointError, LongcatError, LongcatShapeError
from longcat_ops.cli import main
from longcat_ops.loading.quantize import quantize
from support import checkpoints, models
from support.quantizing import SHARD, content, limited, small_source


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return small_source(tmp_path_factory.mktemp("made") / "bf16")


@pytest.fixture(autouse=True)
def source_stays(source):
    before = content(source)
    yield
    assert content(source) == before


def refused(kind, pattern, *arguments, **options):
    with pytest.raises(kind, match=pattern):
        quantize(*arguments, **options)


def test_dest_is_source_or_is_within_or_holds_it(source, tmp_path):
    link, within = tmp_path / "link", source / "fp8"
    link.symlink_to(source, target_is_directory=True)
    (tmp_path / "up").symlink_to(source.parent, target_is_directory=True)
    for dest in (source, link, source / ".", tmp_path / "up" / source.name):
        refused(LongcatShapeError, "`DEST` is .*, which is SOURCE, expected a folder apart", source, dest)
    for dest in (within, link / "fp8", source / "a" / "b"):
        refused(LongcatShapeError, "`DEST` is .*, which lies in SOURCE", source, dest)
    refused(LongcatShapeError, "`DEST` is .*, which holds SOURCE", source, source.parent)
    refused(LongcatShapeError, "which is SOURCE", link, source)
    assert not within.exists()


def test_dest_holds_something_else(source, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    refused(LongcatShapeError, "which holds notes.txt, expected a new or an empty folder", source, tmp_path / "full")
    (tmp_path / "file").write_text("")
    refused(LongcatShapeError, "which is no folder", source, tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    refused(LongcatShapeError, "which is no folder", source, tmp_path / "dangling")
    for text in ("not JSON\n", '{"run": "something else"}\n', '["run"]\n', "{", "hello"):
        (tmp_path / "strange").mkdir(exist_ok=True)
        (tmp_path / "strange" / "quantize.jsonl").write_text(text)
        if text == "{":  # the first line of a run, torn
            continue
        refused(LongcatShapeError, "quantize.jsonl has an unknown line 1", source, tmp_path / "strange")
    assert content(tmp_path / "full") == {"notes.txt": b"mine"}


def test_a_dest_that_cannot_be_written(source, tmp_path, monkeypatch):
    """A folder where nobody may write; a disk that is read-only, which shows when the record is made."""
    refused(LongcatError, "^/sys/longcat_ops cannot be written: ", source, "/sys/longcat_ops")
    (tmp_path / "file").write_text("")
    refused(LongcatError, "file/fp8 cannot be written: Not a directory", source, tmp_path / "file" / "fp8")
    real = os.open

    def read_only(path, flags, *rest, **named):
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", read_only)
    refused(LongcatError, "cannot be written: Read-only file system.\n  fix: ", source, tmp_path / "fp8")


def test_a_full_disk(source, tmp_path, monkeypatch):
    """The room of a file that did not fit is given back; with room, the same call goes on and ends as ever."""
    dest, real, left = tmp_path / "fp8", os.pwrite, 700_000

    def full(fd, data, offset):
        nonlocal left
        if left < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left -= len(data)
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    refused(LongcatError, "fp8 cannot be written: No space left on device.\n  fix: make room", source, dest,
            shard_bytes=SHARD)  # fmt: skip
    assert sorted(content(dest)) == ["model-00001-of-00004.safetensors", "quantize.jsonl"]
    monkeypatch.undo()
    quantize(source, dest, shard_bytes=SHARD)
    quantize(source, tmp_path / "other", shard_bytes=SHARD)
    assert content(dest) == content(tmp_path / "other")


def test_too_little_room_is_seen_before_the_work(source, tmp_path, monkeypatch):
    real = os.statvfs

    def small(path):
        return os.statvfs_result((*real(path)[:4], 1, *real(path)[5:]))

    monkeypatch.setattr(os, "statvfs", small)
    refused(LongcatError, r"fp8: 0\.0 GB are to be written, and its disk has 0\.0 GB left", source, tmp_path / "fp8")


def test_a_limit_of_the_system(source, tmp_path):
    """A real error of the kernel: no file of the process may pass 400 kB."""
    assert "fp8 cannot be written: File too large." in limited(source, tmp_path / "fp8", 400_000)
    assert sorted(content(tmp_path / "fp8")) == ["quantize.jsonl"]


def test_a_source_that_is_none(source, tmp_path):
    refused(LongcatCheckpointError, "config.json does not exist", tmp_path / "nothing", tmp_path / "fp8")
    copy = small_source(tmp_path / "copy", shards=1)
    file = copy / "model.safetensors"
    data = file.read_bytes()
    for cut in (len(data) - 1, 5_000, 8, 0):
        file.write_bytes(data[:cut])
        refused(LongcatCheckpointError, "is not a complete safetensors file", copy, tmp_path / "fp8")
    tensors = load_file(source / "model-00001-of-00002.safetensors")
    save_file(tensors, file)
    refused(LongcatCheckpointError, "does not match its config.json: .* problems", copy, tmp_path / "fp8")
    file.unlink()
    refused(LongcatCheckpointError, "holds no", copy, tmp_path / "fp8")
    assert not (tmp_path / "fp8").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number(tmp_path, value):
    """FP8 would spread it over its block."""
    config = models.config(num_layers=1, hidden_size=256)
    tensors = {n: t.bfloat16() for n, t in models.tensors(config).items()}
    name = "model.layers.0.mlps.0.gate_proj.weight"
    tensors[name][17, 200] = value
    checkpoints.write(tmp_path / "bf16", config, tensors)
    refused(LongcatCheckpointError, rf"{name} holds NaN or inf in the 128 x 128 block at \[0, 128\]",
            tmp_path / "bf16", tmp_path / "fp8")  # fmt: skip
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"*.mlps.0.gate_proj": "bf16", "*": "fp8"}))
    quantize(tmp_path / "bf16", tmp_path / "policy", policy=policy)


def test_policies(source, tmp_path):
    def policy(rules):
        file = tmp_path / "policy.json"
        file.write_text(json.dumps(rules))
        return file

    one = {"*.experts.2.up_proj": "bf16", "*": "fp8"}
    for rules, pattern in (
        (
            one,
            r"`policy` is FP8 for .* and not for .*experts.2.up_proj.weight, expected one precision for all gate_proj",
        ),
        ({"*.typo": "fp8"}, r"quantize: argument `policy` is a policy whose pattern '\*.typo' fits no projection"),
        ({"*.kv_b_proj": "fp8"}, "kv_b_proj is absorbed dense"),
        ({"*": "int8"}, "`policy` is 'int8' for"),
    ):
        refused(LongcatShapeError, pattern, source, tmp_path / "fp8", policy=policy(rules))
    for name in ("fp8", "some", tmp_path / "nothing.json"):
        refused(LongcatShapeError, "`policy` is '.*', expected 'all', 'none', 'auto' or the path of a JSON", source,
                tmp_path / "fp8", policy=name)  # fmt: skip
    refused(LongcatShapeError, "expected none with to='bf16'", source, tmp_path / "fp8", policy=policy(one), to="bf16")
    refused(LongcatShapeError, "`to` is 'int4'", source, tmp_path / "fp8", to="int4")
    for size in (0, 1.5, True):
        refused(LongcatShapeError, "`shard_bytes` is .*, expected a positive int", source, tmp_path, shard_bytes=size)


def test_widths_that_no_op_takes(tmp_path):
    config = models.config(num_layers=1, q_lora_rank=20)
    checkpoints.write(tmp_path / "bf16", config, {n: t.bfloat16() for n, t in models.tensors(config).items()})
    refused(LongcatShapeError, r"`policy` is FP8 for .*q_a_proj.weight \[20, 64\], expected what the ops take",
            tmp_path / "bf16", tmp_path / "fp8")  # fmt: skip
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"*.q_?_proj": "bf16", "*": "fp8"}))
    assert quantize(tmp_path / "bf16", tmp_path / "rest", policy=policy).dense == 3 * 3  # in each, kv_b is, too


def test_the_command_says_it_in_one_message(source, capsys):
    assert main(["quantize", str(source), str(source / "fp8")]) == 2
    assert capsys.readouterr().err.startswith("longcat_ops: quantize: argument `DEST` is ")
    with pytest.raises(SystemExit):
        main(["quantize", str(source)])


def test_nothing_is_read_of_what_is_not_regular(source, tmp_path):
    """A FIFO or a folder beside the weights is passed over; a file with a leading dot, too."""
    copy = small_source(tmp_path / "bf16")
    os.mkfifo(copy / "pipe.json")
    (copy / "folder").mkdir()
    (copy / ".cache").write_text("x")
    (copy / "pytorch_model.bin").write_text("x")
    quantize(copy, tmp_path / "fp8")
    assert {"tokenizer.json", "generation_config.json"} <= content(tmp_path / "fp8").keys()
    assert not content(tmp_path / "fp8").keys() & {"pipe.json", "folder", ".cache", "pytorch_model.bin"}

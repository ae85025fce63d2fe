"""A run of `quantize` that was killed goes on to the bytes of one that was not, and until then nothing loads."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longcat_ops import LongcatCheckpointError, LongcatError, LongcatFlashForCausalLM, LongcatShapeError
from longcat_ops.loading.quantize import quantize
from support import models
from support.quantizing import LARGE, SHARD, content, events, killed, large_source, small_source

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return small_source(tmp_path_factory.mktemp("made") / "bf16")


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """What a run that nobody interrupts leaves."""
    folder = tmp_path_factory.mktemp("whole") / "fp8"
    quantize(source, folder, shard_bytes=SHARD)
    return content(folder)


@pytest.fixture(scope="module")
def count(source, tmp_path_factory):
    """Writes, syncs and renames of such a run."""
    return events(source, tmp_path_factory.mktemp("counted") / "fp8", shard_bytes=SHARD)


def require_not_loadable(folder):
    """Until all weights are there: the config comes behind them, and the index last of all."""
    if not (folder / "config.json").exists():
        with pytest.raises(LongcatCheckpointError):
            LongcatFlashForCausalLM.from_pretrained(folder, progress=False)
        assert not (folder / INDEX).exists()
    else:
        assert len(list(folder.glob("model-*.safetensors"))) == 4 and (folder / "tokenizer.json").exists()


def go_on(source, dest, whole):
    quantize(source, dest, shard_bytes=SHARD)
    assert content(dest) == whole  # no file more, none less, in particular no temporary one


def moments(count, number, seed):
    """Random events of a run, each with what of it the kill lets happen."""
    draw = random.Random(seed)
    return [(draw.randrange(count), draw.random() < 0.5) for _ in range(number)]


def test_killed_at_random_moments(source, whole, count, tmp_path):
    for i, (event, after) in enumerate(moments(count, 4, seed=1)):
        killed(source, tmp_path / f"{i}", event, after, shard_bytes=SHARD)
        require_not_loadable(tmp_path / f"{i}")
        go_on(source, tmp_path / f"{i}", whole)


def test_killed_again_and_again(source, whole, count, tmp_path):
    """Every attempt goes on where the one before it stopped."""
    dest = tmp_path / "fp8"
    for event in (4, count // 3, count // 3):
        killed(source, dest, event, False, shard_bytes=SHARD)
        require_not_loadable(dest)
    go_on(source, dest, whole)


@pytest.mark.slow
def test_killed_at_every_event(source, whole, count, tmp_path):
    for event in range(count):
        for after in (False, True):
            dest = tmp_path / f"{event}{after}"
            killed(source, dest, event, after, shard_bytes=SHARD)
            require_not_loadable(dest)
            go_on(source, dest, whole)


@pytest.mark.slow
def test_the_command_killed_at_ten_random_times(tmp_path):
    """SIGKILL from outside, at any time of a run over 300 MB, imports and the first look at SOURCE included."""
    config = models.config(**LARGE)
    source = large_source(tmp_path / "bf16", config)
    command = [sys.executable, "-m", "longcat_ops", "quantize", str(source), "--shard-mb", "20", "--threads", "1"]
    start = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    seconds, wanted, draw, cut = time.monotonic() - start, content(tmp_path / "whole"), random.Random(7), 0
    for i in range(10):
        dest = tmp_path / f"{i}"
        process = subprocess.Popen([*command, str(dest)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.5, 1) * seconds)
        process.kill()
        cut += process.wait() == -signal.SIGKILL
        assert (dest / "config.json").exists() or not (dest / INDEX).exists()
        subprocess.run([*command, str(dest)], check=True, capture_output=True)
        assert content(dest) == wanted
    assert cut >= 5


def test_a_torn_line_and_a_lost_file_are_made_good(source, whole, tmp_path):
    """What the record says is checked against the folder; a line that is not whole does not count."""
    dest = tmp_path / "fp8"
    quantize(source, dest, shard_bytes=SHARD)
    record, shard = dest / "quantize.jsonl", dest / "model-00003-of-00004.safetensors"
    lines = record.read_bytes().splitlines(keepends=True)
    record.write_bytes(b"".join(lines[:4]) + lines[4][:17])
    shard.write_bytes(shard.read_bytes()[:-1])
    (dest / INDEX).unlink()
    (dest / ".model-00004-of-00004.safetensors.part").write_bytes(b"left behind")
    seen = []
    quantize(source, dest, shard_bytes=SHARD, progress=lambda _, done, total: seen.append(done / total))
    assert content(dest).keys() == whole.keys()
    assert {n: v for n, v in content(dest).items() if n != "quantize.jsonl"} == {
        n: v for n, v in whole.items() if n != "quantize.jsonl"
    }
    assert 0.1 < seen[0] < 1 and seen[-1] == 1


def test_other_options_and_another_source(source, whole, count, tmp_path):
    """They are refused by name; neither folder changes."""
    dest, policy = tmp_path / "fp8", tmp_path / "policy.json"
    policy.write_text('{"*": "fp8", "*.o_proj": "bf16"}')
    killed(source, dest, count // 2, True, shard_bytes=SHARD)
    before, kept = content(dest), content(source)
    for options, name in (
        ({"to": "bf16"}, "to"), ({"policy": "none"}, "policy"), ({"policy": policy}, "policy"),
        ({"shard_bytes": SHARD + 1}, "shard_bytes"),
    ):  # fmt: skip
        with pytest.raises(LongcatShapeError, match=f"argument `{name}` is .* the one that .* was begun with"):
            quantize(source, dest, **{"shard_bytes": SHARD} | options)
    other = small_source(tmp_path / "other")  # the same bytes, but other files
    with pytest.raises(LongcatShapeError, match=r"`SOURCE` is changed: model-00001-of-00002.safetensors, model-0"):
        quantize(other, dest, shard_bytes=SHARD)
    assert content(dest) == before and content(source) == kept
    go_on(source, dest, whole)


def test_a_changed_source(source, tmp_path):
    """A file of other bytes, a config that says something else: a resumed run would mix two networks."""
    copy, dest = small_source(tmp_path / "bf16"), tmp_path / "fp8"
    killed(copy, dest, 30, True, shard_bytes=SHARD)
    file = copy / "model-00002-of-00002.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    time.sleep(0.01)  # the clock of the file system ticks in milliseconds
    file.write_bytes(data)
    with pytest.raises(LongcatShapeError, match=r"`SOURCE` is changed: model-00002-of-00002.safetensors, expected"):
        quantize(copy, dest, shard_bytes=SHARD)
    config = (copy / "config.json").read_text()
    (copy / "config.json").write_text(config.replace("10000.0", "20000.0"))
    with pytest.raises(LongcatShapeError, match=r"`SOURCE` is changed: config.json, model-00002"):
        quantize(copy, dest, shard_bytes=SHARD)


@pytest.mark.parametrize("harm", ["cut", "written to"])
def test_a_source_that_changes_meanwhile(tmp_path, harm):
    """It is an error, and no crash, when a file ends before the header says; a folder of two versions never loads."""
    copy, dest = small_source(tmp_path / "bf16", shards=1), tmp_path / "fp8"
    file = copy / "model.safetensors"

    def change(_, done, total):
        if done > total / 3:
            with open(file, "r+b") as stream:
                stream.truncate(file.stat().st_size - 300_000) if harm == "cut" else stream.write(b"\x00")

    with pytest.raises(LongcatCheckpointError, match=r"ends at byte|changed while it was read"):
        quantize(copy, dest, shard_bytes=SHARD, progress=change)
    require_not_loadable(dest)
    with pytest.raises(LongcatError):
        quantize(copy, dest, shard_bytes=SHARD)


def test_two_runs_at_once(source, tmp_path):
    dest = tmp_path / "fp8"

    def second(*_):
        with pytest.raises(LongcatError, match="another run is writing it"):
            quantize(source, dest, shard_bytes=SHARD)

    quantize(source, dest, shard_bytes=SHARD, progress=second)
    LongcatFlashForCausalLM.from_pretrained(Path(dest), progress=False)

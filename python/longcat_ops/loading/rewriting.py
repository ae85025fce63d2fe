"""A checkpoint written from another one, file by file, into a folder that loads once it is whole: what `quantize` and
`grow_depth` share.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import LongcatCheckpointError, LongcatError, LongcatShapeError, message
from ..model import files
from ..types import BLOCK
from . import calibration_report, conversion
from .checkpoint import INDEX, CheckpointSource
from .conversion import E4M3, Item
from .destination import RECORDS, Destination
from .durable import NewFile, write_file
from .tensor_file import NewTensorFile, TensorLayout

# Of a file of weights: what transformers' save_pretrained took for years. An interruption costs at most one of them.
SHARD_BYTES = 5 * 10**9
CONFIG = "config.json"
_OURS = {*RECORDS.values(), CONFIG, INDEX, *calibration_report.FILES}
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
_DOING = {"quantize": "quantizing", "grow": "growing"}

Progress: TypeAlias = Callable[[str, int, int], None]  # what is done, bytes of it so far, all of them


def check_shard_bytes(op: str, shard_bytes: int) -> None:
    """Raises LongcatShapeError unless it is a number of bytes."""
    if isinstance(shard_bytes, bool) or not isinstance(shard_bytes, int) or shard_bytes < 1:
        raise LongcatShapeError(message(op, "shard_bytes", repr(shard_bytes), "a positive int"))


def facts(source: Path, stored: CheckpointSource) -> dict[str, Any]:
    """What a resumed run must find again: hashes of the index and the config, sizes and times of the weights."""
    found: dict[str, Any] = {"files": {}}
    for name in (INDEX, CONFIG):
        path = source / name
        data = files.read_text(path, files.MAX_INDEX).encode() if files.exists(path) else b""
        found[name] = hashlib.sha256(data).hexdigest()
    for file in stored.header.files:
        of_file = files.require_regular(file)
        found["files"][str(file.relative_to(source))] = [of_file.st_size, of_file.st_mtime_ns]
    return found


def write(out: Destination, stored: CheckpointSource, shards: Mapping[str, Sequence[Item]], found: dict[str, Any],
          options: dict[str, Any], *, config: Mapping[str, Any] | None = None, leave: Sequence[str] = (),
          progress: Progress | None = None) -> bool:  # fmt: skip
    """Writes the files `shards`, then the small files, config.json and the index; goes on where a run was stopped.

    Args:
        stored: the opened `out.source`. found: its `facts`, taken before anything was decided.
        options: what the run was asked for. config: keys that change, of config.json. leave: small files not to carry.

    Returns: whether all was there already.
    Raises: LongcatError if the disk has no room. LongcatCheckpointError if the source cannot be read or changed.
    """
    plan = hashlib.sha256(repr([(s, conversion.layouts(group)) for s, group in shards.items()]).encode())
    already = out.complete and all(files.exists(out.path / name) for name in (CONFIG, INDEX, *shards))
    out.begin(found, options, plan.hexdigest())
    if not already:
        _require_room(out, shards)
        _write(out, shards, stored, progress)
        if facts(out.source, stored) != found:
            raise LongcatCheckpointError(f"{out.source} changed while it was read; {out.path} is of no use.")
        _finish(out, shards, config or {}, leave)
    return already


def _require_room(out: Destination, shards: Mapping[str, Sequence[Item]]) -> None:
    """Fails before hours of work rather than after them."""
    missing = sum(sum(i.num_bytes for i in group) for name, group in shards.items() if name not in out.shards)
    disk = os.statvfs(out.path)
    free = disk.f_bavail * disk.f_frsize
    if missing > free:
        raise LongcatError(
            f"{out.path}: {missing / 1e9:.1f} GB are to be written, and its disk has {free / 1e9:.1f} GB left.\n"
            "  fix: make room, then run the same command again"
        )


def _write(out: Destination, shards: Mapping[str, Sequence[Item]], stored: CheckpointSource,
           progress: Progress | None) -> None:  # fmt: skip
    """The files of weights that are not whole yet, one after another."""
    total, done = sum(i.stored_bytes for group in shards.values() for i in group), 0
    reader = conversion.Reader(stored.header.file_of)

    def advance(size: int) -> None:
        nonlocal done
        done += size
        if progress:
            progress(_DOING[out.op], done, total)

    try:
        for name, group in shards.items():
            layout = TensorLayout(conversion.layouts(group))
            if out.has(name, layout.size):
                advance(sum(item.stored_bytes for item in group))
                continue
            with NewTensorFile(out.path, name, layout) as file:
                for item in group:
                    conversion.convert(item, reader, file, advance)
                file.commit()
            out.add_shard(name, layout.size)
    finally:
        reader.close()


def _carry(source: Path, out: Path, leave: Sequence[str]) -> None:
    """Tokenizer, generation config and whatever else lies beside the weights, but no folders and no other weights."""
    for path in files.listed(source):
        name = path.name
        if name.startswith(".") or name in _OURS or name in leave or name.endswith(_WEIGHTS) or not path.is_file():
            continue
        with open(files.open_to_read(path), "rb") as old, NewFile(out, name) as new:
            for begin in range(0, os.fstat(old.fileno()).st_size, conversion.PIECE):
                new.write(old.read(conversion.PIECE), begin)
            new.commit()


def _finish(out: Destination, shards: Mapping[str, Sequence[Item]], config: Mapping[str, Any],
            leave: Sequence[str]) -> None:  # fmt: skip
    """The small files, then the config, without which nothing loads, and the index last of all."""
    _carry(out.source, out.path, leave)
    raw = files.read_object(out.source / CONFIG) | config
    raw = {key: value for key, value in raw.items() if key not in ("quantization_config", "compression_config")}
    quantisation = quantization_config([item for group in shards.values() for item in group])
    write_file(out.path, CONFIG, _json(raw | ({"quantization_config": quantisation} if quantisation else {})))
    weight_map = {name: shard for shard, group in shards.items() for name in conversion.layouts(group)}
    size = sum(item.num_bytes for group in shards.values() for item in group)
    write_file(
        out.path, INDEX, _json({"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))})
    )
    out.finish()


def quantization_config(items: Sequence[Item]) -> dict[str, Any] | None:
    """As published FP8 repositories have it: ignored_layers are the network's modules with a matrix that is not FP8.
    None if nothing is FP8.
    """
    if not any(E4M3 in (layout.dtype for layout in item.made.values()) for item in items):
        return None
    matrices = [item for item in items if item.want and len(item.stored.shape) == 2]
    dense = [item.name for item in matrices if item.made[item.name].dtype != E4M3]
    return {
        "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic",
        "ignored_layers": sorted(name.removesuffix(".weight") for name in dense),
    }  # fmt: skip


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()

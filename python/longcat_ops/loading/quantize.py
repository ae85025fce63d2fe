"""Converts a checkpoint between bf16 and block FP8, a piece at a time, into a folder that loads once it is whole.

What is written is that of published FP8 repositories: e4m3 weights, `<name>_scale_inv` with a float32 scale for each
128 x 128 block (DeepSeek-V3, arXiv:2412.19437, section 3.3.2), and a quantization_config that names the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..errors import LongcatCheckpointError, LongcatError, LongcatShapeError, message
from ..model import files
from ..model.config import LongcatFlashConfig
from ..model.precision import Precision
from ..types import BLOCK
from . import calibration_report, conversion
from .calibrate import calibrate
from .calibration import Thresholds
from .checkpoint import INDEX, CheckpointSource
from .conversion import E4M3, Item
from .destination import RECORD, Destination, writing
from .durable import NewFile, write_file
from .layerwise import check_windows
from .tensor_file import NewTensorFile, TensorLayout

# Of a file of weights: what transformers' save_pretrained took for years. An interruption costs at most one of them.
SHARD_BYTES = 5 * 10**9
FORMS, POLICIES = ("fp8", "bf16"), ("all", "none", "auto")
CONFIG = "config.json"
_OURS = {RECORD, CONFIG, INDEX, *calibration_report.FILES}
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")

Progress: TypeAlias = Callable[[str, int, int], None]  # what is done, bytes of it so far, all of them


@dataclass(frozen=True)
class Converted:
    """What a conversion made. quantised, widened: projections that became FP8, and that were. fp8, dense: projections
    that are now. bytes_read, bytes_written: of weights, over all runs. already: whether all was there before this run.
    """

    dest: str
    quantised: int
    widened: int
    fp8: int
    dense: int
    shards: int
    bytes_read: int
    bytes_written: int
    already: bool


def quantize(source: str | Path, dest: str | Path, *, to: str = "fp8", policy: str | Path = "all",
             text: Sequence[Tensor] = (), thresholds: Thresholds | None = None, shard_bytes: int = SHARD_BYTES,
             progress: Progress | None = None) -> Converted:  # fmt: skip
    """Writes the FP8 form of the checkpoint `source`, or its bf16 form, to the folder `dest`, which is new or empty.

    An interrupted run goes on when it is called again with the same arguments, and its output has the same bytes. The
    memory that it takes is some pieces of 16 MiB, whatever the size of a tensor.

    Args:
        to: "fp8", or "bf16", which multiplies every FP8 weight out.
        policy: of "fp8". "all" quantises every projection that can be FP8, "none" multiplies out as "bf16" does, a path
            names a JSON policy as `from_pretrained(precision=)` takes it. Where none of its patterns fits, tensors stay
            as they are; so do norms, routers, embeddings and head. "auto" calibrates: see `calibrate`. Its policy,
            measures, table and heat map then lie in `dest`, too.
        text: of "auto", texts that begin anew, i64[n] each. thresholds: of "auto", None for the defaults.
        shard_bytes: of a file of weights, at most, unless one tensor is larger.
        progress: called after each piece.

    Raises:
        LongcatShapeError: an argument is not legal; or `dest` is, holds or lies in `source`, holds something else, or
            belongs to a run with another source or other arguments. Nothing is written then.
        LongcatCheckpointError: `source` cannot be read, does not match its config.json, or changes meanwhile.
        LongcatError: `dest` cannot be written, or its disk is full; what is whole there stays, and counts.
    """
    _check(to, policy, text, shard_bytes)
    source, dest = Path(source), Path(dest)
    config, _ = LongcatFlashConfig.read_files(source)
    stored = CheckpointSource(source, config, torch.bfloat16, progress=False)
    facts = _facts(source, stored)
    calibrates = to == "fp8" and policy == "auto"
    rules = None if calibrates else _rules(to, policy)
    asked = _asked(config, text, thresholds) if calibrates else None
    options = {"to": to, "policy": rules.rules if rules else "auto", "calibration": asked, "shard_bytes": shard_bytes}
    with Destination(source, dest) as out, writing(dest):
        out.require_same(facts, options)
        rules = rules or _calibrated(out, {"source": facts, **asked}, text, thresholds, progress)
        rules.check({name: want.can_be_fp8 for name, want in stored.expected.items()})
        items = conversion.choose(stored.header, stored.expected, rules)
        shards = conversion.shards(items, shard_bytes)
        plan = hashlib.sha256(repr([(s, conversion.layouts(group)) for s, group in shards.items()]).encode())
        already = out.complete and all(files.exists(dest / name) for name in (CONFIG, INDEX, *shards))
        out.begin(facts, options, plan.hexdigest())
        if not already:
            _require_room(out, shards)
            _write(out, shards, stored, progress)
            if _facts(source, stored) != facts:
                raise LongcatCheckpointError(f"{source} changed while it was read; {dest} is of no use.")
            _finish(out, source, shards)
    return _converted(dest, items, shards, already)


def _check(to: str, policy: str | Path, text: Sequence[Tensor], shard_bytes: int) -> None:
    if to not in FORMS:
        raise LongcatShapeError(message("quantize", "to", repr(to), "'fp8' or 'bf16'"))
    if to == "bf16" and policy not in ("all", "none"):
        raise LongcatShapeError(message("quantize", "policy", repr(str(policy)), "none with to='bf16'"))
    if str(policy) not in POLICIES and not files.exists(policy):
        expected = "'all', 'none', 'auto' or the path of a JSON policy file"
        raise LongcatShapeError(message("quantize", "policy", repr(str(policy)), expected))
    if (policy == "auto") != bool(len(text)):
        got = f"{len(text)} texts with policy {str(policy)!r}"
        raise LongcatShapeError(message("quantize", "text", got, "a text with policy 'auto', and none without"))
    if isinstance(shard_bytes, bool) or not isinstance(shard_bytes, int) or shard_bytes < 1:
        raise LongcatShapeError(message("quantize", "shard_bytes", repr(shard_bytes), "a positive int"))


def _rules(to: str, policy: str | Path) -> Precision:
    kinds = {"all": "fp8", "none": "bf16"}
    spec = "bf16" if to == "bf16" else kinds.get(str(policy)) or Path(policy)
    return Precision(spec, of=("quantize", "policy"))


def _asked(config: LongcatFlashConfig, text: Sequence[Tensor], thresholds: Thresholds | None) -> dict[str, Any]:
    """What a calibration is of, apart from SOURCE."""
    check_windows("quantize", config, text)
    ids = json.dumps([window.tolist() for window in text]).encode()
    limits = asdict((thresholds or Thresholds()).filled(config))
    return {"text": hashlib.sha256(ids).hexdigest(), "tokens": sum(map(len, text)), "thresholds": limits}


def _calibrated(out: Destination, asked: dict[str, Any], text: Sequence[Tensor], thresholds: Thresholds | None,
                progress: Progress | None) -> Precision:  # fmt: skip
    """The policy of a calibration, which is made unless it lies in DEST since before an interruption."""
    policy, measures = out.path / calibration_report.POLICY, out.path / calibration_report.MEASURES
    if not files.exists(measures) or files.read_object(measures).get("asked") != asked:
        tell = progress and (lambda done, total: progress("calibrating", done, total))
        found = calibrate(out.source, text, thresholds, progress=tell)
        calibration_report.write(found, out.path, asked)
    return Precision(policy, of=("quantize", "policy"))


def _facts(source: Path, stored: CheckpointSource) -> dict[str, Any]:
    """What a resumed run must find again: hashes of the index and the config, sizes and times of the weights."""
    found: dict[str, Any] = {"files": {}}
    for name in (INDEX, CONFIG):
        path = source / name
        data = files.read_text(path, files.MAX_INDEX).encode() if files.exists(path) else b""
        found[name] = hashlib.sha256(data).hexdigest()
    for file in stored.header.files:
        facts = files.require_regular(file)
        found["files"][str(file.relative_to(source))] = [facts.st_size, facts.st_mtime_ns]
    return found


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
            progress("quantizing", done, total)

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


def _carry(source: Path, out: Path) -> None:
    """Tokenizer, generation config and whatever else lies beside the weights, but no folders and no other weights."""
    for path in files.listed(source):
        name = path.name
        if name.startswith(".") or name in _OURS or name.endswith(_WEIGHTS) or not path.is_file():
            continue
        with open(files.open_to_read(path), "rb") as old, NewFile(out, name) as new:
            for begin in range(0, os.fstat(old.fileno()).st_size, conversion.PIECE):
                new.write(old.read(conversion.PIECE), begin)
            new.commit()


def _finish(out: Destination, source: Path, shards: Mapping[str, Sequence[Item]]) -> None:
    """The small files, then the config, without which nothing loads, and the index last of all."""
    _carry(source, out.path)
    raw = files.read_object(source / CONFIG)
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


def _converted(dest: Path, items: Sequence[Item], shards: Mapping[str, Sequence[Item]], already: bool) -> Converted:
    projections = [item for item in items if item.want and item.want.quantisable]
    fp8 = sum(item.made[item.name].dtype == E4M3 for item in projections)
    return Converted(
        dest=str(dest), quantised=sum(item.quantised for item in items), widened=sum(item.widened for item in items),
        fp8=fp8, dense=len(projections) - fp8, shards=len(shards), bytes_read=sum(i.stored_bytes for i in items),
        bytes_written=sum(i.num_bytes for i in items), already=already,
    )  # fmt: skip


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()

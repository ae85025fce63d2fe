"""Converts a checkpoint between bf16 and block FP8, a piece at a time, into a folder that loads once it is whole.

What is written is that of published FP8 repositories: e4m3 weights, `<name>_scale_inv` with a float32 scale for each
128 x 128 block (DeepSeek-V3, arXiv:2412.19437, section 3.3.2), and a quantization_config that names the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import LongcatShapeError, message
from ..model import files
from ..model.config import LongcatFlashConfig
from ..model.precision import Precision
from . import calibration_report, conversion, rewriting
from .calibrate import calibrate
from .calibration import Thresholds
from .checkpoint import CheckpointSource
from .conversion import E4M3, Item
from .destination import Destination, writing
from .layerwise import check_windows
from .rewriting import SHARD_BYTES, Progress

FORMS, POLICIES = ("fp8", "bf16"), ("all", "none", "auto")


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
    facts = rewriting.facts(source, stored)
    calibrates = to == "fp8" and policy == "auto"
    rules = None if calibrates else _rules(to, policy)
    asked = _asked(config, text, thresholds) if calibrates else None
    options = {"to": to, "policy": rules.rules if rules else "auto", "calibration": asked, "shard_bytes": shard_bytes}
    with Destination("quantize", source, dest) as out, writing(dest):
        out.require_same(facts, options)
        rules = rules or _calibrated(out, {"source": facts, **asked}, text, thresholds, progress)
        rules.check({name: want.can_be_fp8 for name, want in stored.expected.items()})
        items = conversion.choose(stored.header, stored.expected, rules)
        shards = conversion.shards(items, shard_bytes)
        already = rewriting.write(out, stored, shards, facts, options, progress=progress)
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
    rewriting.check_shard_bytes("quantize", shard_bytes)


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


def _converted(dest: Path, items: Sequence[Item], shards: Mapping[str, Sequence[Item]], already: bool) -> Converted:
    projections = [item for item in items if item.want and item.want.quantisable]
    fp8 = sum(item.made[item.name].dtype == E4M3 for item in projections)
    return Converted(
        dest=str(dest), quantised=sum(item.quantised for item in items), widened=sum(item.widened for item in items),
        fp8=fp8, dense=len(projections) - fp8, shards=len(shards), bytes_read=sum(i.stored_bytes for i in items),
        bytes_written=sum(i.num_bytes for i in items), already=already,
    )  # fmt: skip

"""`python -m longcat_ops sdc-check`: whether weights keep their bits, and a forward has the same bits twice.

--json prints one object:

    holds                        whether nothing was found
    checkpoint, tokens, rounds   what was looked at, and how often
    weights                      tensors, bytes, seconds (of one checksum of all), changed (names)
    forward                      calls (ops of a run), bytes (of their tensors), seconds (of a round), difference: op,
                                 call, what, phase, run, line, elements, index, first, second, ulp; null without one
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine.sdc import SdcReport, sdc_check
from ..engine.text import load_tokenizer
from ..errors import LongcatShapeError, message
from ..model import LongcatFlashForCausalLM
from ..training.checksums import Checksums, tensors_of
from . import terminal
from .main import DIFFERENT
from .texts import read_text

DEFAULT_CHECKPOINT = Path("checkpoints/longcat-tiny")


def run(args: argparse.Namespace) -> int:
    if args.threads:
        torch.set_num_threads(args.threads)
    path = args.folder or DEFAULT_CHECKPOINT
    dtype = getattr(torch, args.dtype) if args.dtype else None
    model = LongcatFlashForCausalLM.from_pretrained(path, device=args.device, dtype=dtype, precision=args.precision)
    sums = Checksums(tensors_of(model))  # before anything else can happen to the weights
    ids, bars = _ids(args, path, model), terminal.Bars("round")
    try:
        found = sdc_check(
            model, ids, rounds=args.rounds, sums=sums, progress=lambda done, total: bars.show("checking", done, total)
        )
    finally:
        bars.close()
    facts = to_dict(found, str(path), len(ids))
    print(json.dumps(facts, indent=2) if args.json else "\n".join(lines(found, str(path), len(ids))))
    return 0 if found.holds else DIFFERENT


def _ids(args: argparse.Namespace, path: str | Path, model: LongcatFlashForCausalLM) -> Tensor:
    """The first tokens of a text, or random ones."""
    config = model.config
    if args.text is None:
        return torch.randint(config.vocab_size, (args.tokens,), generator=torch.Generator().manual_seed(args.seed))
    ids = load_tokenizer(path).encode(read_text("--text", args.text)).ids[: args.tokens]
    if len(ids) < 2:
        raise LongcatShapeError(message("sdc-check", "--text", f"{args.text}, of {len(ids)} tokens", "2 or more"))
    return torch.tensor(ids)


def to_dict(found: SdcReport, path: str, tokens: int) -> dict[str, Any]:
    """Plain numbers and strings, ready for JSON."""
    forward, difference = found.forward, found.forward.difference
    return {
        "holds": found.holds, "checkpoint": path, "tokens": tokens, "rounds": found.rounds,
        "weights": {
            "tensors": found.tensors, "bytes": found.num_bytes, "seconds": found.checksum_seconds,
            "changed": found.changed,
        },
        "forward": {
            "calls": forward.calls, "bytes": forward.num_bytes, "seconds": found.round_seconds,
            "difference": asdict(difference) if difference else None,
        },
    }  # fmt: skip


def lines(found: SdcReport, path: str, tokens: int) -> list[str]:
    """What was found, for people."""
    size = f"{found.tensors} tensors, {found.num_bytes / 1e6:.1f} MB, checksums in {found.checksum_seconds:.3f} s"
    weights = f"CHANGED since they were loaded: {', '.join(found.changed)}" if found.changed else "unchanged"
    bad = [name for name, holds in (("weights", not found.changed), ("forward", found.forward.holds)) if not holds]
    verdict = f"CORRUPT OR NOT DETERMINISTIC: {', '.join(bad)}." if bad else "SOUND. Nothing changed its bits."
    return [
        f"{path}, {tokens} tokens, {found.rounds} rounds of {found.round_seconds:.2f} s",
        f"  weights    {size}: {weights}",
        f"  forward    {found.forward}",
        f"verdict: {verdict}",
    ]

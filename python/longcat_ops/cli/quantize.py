"""`python -m longcat_ops quantize`: a progress bar in bytes, then what was made.

With --policy auto, DEST also holds precision_policy.json, calibration.json, calibration.md and calibration.svg.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from time import perf_counter

import torch
from torch import Tensor

from ..errors import LongcatShapeError, message
from ..loading.calibration import Thresholds
from ..loading.quantize import Converted, quantize
from . import terminal
from .main import INTERRUPTED
from .texts import windows_of


def run(args: argparse.Namespace) -> int:
    if args.threads:
        torch.set_num_threads(args.threads)
    start, bars = perf_counter(), terminal.Bars("B")
    text, thresholds = _calibrating(args)
    try:
        made = quantize(
            args.source, args.dest, to=args.to, policy=args.policy, text=text, thresholds=thresholds,
            shard_bytes=args.shard_mb * 10**6, progress=bars.show,
        )  # fmt: skip
    except KeyboardInterrupt:
        bars.close()
        print("\ninterrupted\n  to go on: the same command again", file=sys.stderr)
        return INTERRUPTED
    finally:
        bars.close()
    print(json.dumps(asdict(made), indent=2) if args.json else line(made, perf_counter() - start))
    return 0


def _calibrating(args: argparse.Namespace) -> tuple[list[Tensor], Thresholds | None]:
    """The text and the thresholds of --policy auto; options that belong to it are refused without it."""
    given = {"max_input": args.max_input, "relative": args.max_relative, "absolute": args.max_absolute}
    given = {name: value for name, value in given.items() if value is not None}
    if args.policy != "auto":
        if given or args.calibrate is not None or args.window is not None:
            got = f"{args.policy!r} with options of a calibration"
            raise LongcatShapeError(message("quantize", "--policy", got, "auto"))
        return [], None
    if args.calibrate is None:
        raise LongcatShapeError(message("quantize", "--calibrate", "missing", "a text with --policy auto"))
    text, _ = windows_of(args, args.source, "--calibrate", args.calibrate)
    return text, Thresholds(**given)


def line(made: Converted, seconds: float) -> str:
    """What was made, for people."""
    if made.already:
        return f"{made.dest}: all of it is there already"
    changed = f"{made.widened} multiplied out, " * bool(made.widened) + f"{made.quantised} quantised"
    sizes = f"{made.bytes_read / 1e6:.1f} MB became {made.bytes_written / 1e6:.1f} MB"
    kinds = f"{made.fp8} projections in FP8 and {made.dense} dense ({changed})"
    return f"{made.dest}: {kinds}; {sizes} in {made.shards} files, {seconds:.1f} s"

"""`python -m longcat_ops quantize`: a progress bar in bytes, then what was made."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from time import perf_counter

import torch

from ..loading.quantize import Converted, quantize
from . import terminal
from .main import INTERRUPTED


def run(args: argparse.Namespace) -> int:
    if args.threads:
        torch.set_num_threads(args.threads)
    start, bars = perf_counter(), Bars()
    try:
        made = quantize(args.source, args.dest, to=args.to, policy=args.policy, shard_bytes=args.shard_mb * 10**6,
                        progress=bars.show)  # fmt: skip
    except KeyboardInterrupt:
        bars.close()
        print("\ninterrupted\n  to go on: the same command again", file=sys.stderr)
        return INTERRUPTED
    finally:
        bars.close()
    print(json.dumps(asdict(made), indent=2) if args.json else line(made, perf_counter() - start))
    return 0


class Bars:
    """A progress bar in bytes for each thing that is done, one after another."""

    def __init__(self) -> None:
        self._what, self._done, self._bar = "", 0, None

    def show(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            self.close()
            self._what, self._done, self._bar = what, 0, terminal.bar(what, total, unit="B")
        self._bar.update(done - self._done)
        self._done = done

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._what, self._bar = "", None


def line(made: Converted, seconds: float) -> str:
    """What was made, for people."""
    if made.already:
        return f"{made.dest}: all of it is there already"
    changed = f"{made.widened} multiplied out, " * bool(made.widened) + f"{made.quantised} quantised"
    sizes = f"{made.bytes_read / 1e6:.1f} MB became {made.bytes_written / 1e6:.1f} MB"
    kinds = f"{made.fp8} projections in FP8 and {made.dense} dense ({changed})"
    return f"{made.dest}: {kinds}; {sizes} in {made.shards} files, {seconds:.1f} s"

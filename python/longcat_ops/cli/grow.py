"""`python -m longcat_ops grow`: a progress bar in bytes, then what was made."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from time import perf_counter

from ..loading.grow import Grown, grow_depth
from . import terminal
from .main import INTERRUPTED


def run(args: argparse.Namespace) -> int:
    start, bars = perf_counter(), terminal.Bars("B")
    try:
        shard_bytes = args.shard_mb * 10**6
        made = grow_depth(args.source, args.dest, args.factor, shard_bytes=shard_bytes, progress=bars.show)
    except KeyboardInterrupt:
        bars.close()
        print("\ninterrupted\n  to go on: the same command again", file=sys.stderr)
        return INTERRUPTED
    finally:
        bars.close()
    print(json.dumps(asdict(made), indent=2) if args.json else line(made, args.factor, perf_counter() - start))
    return 0


def line(made: Grown, factor: int, seconds: float) -> str:
    """What was made, for people."""
    if made.already:
        return f"{made.dest}: all of it is there already"
    layers = f"{made.layers // factor} layers became {made.layers}"
    tensors = f"{made.stacked} tensors stand {factor} times, {made.kept} once"
    size = f"{made.bytes_written / 1e6:.1f} MB in {made.shards} files"
    return f"{made.dest}: {layers}; {tensors}; {size}, {seconds:.1f} s"

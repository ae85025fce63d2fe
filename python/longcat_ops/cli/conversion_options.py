"""Parsers of the commands that convert checkpoints and judge the result. Imports no torch."""

from __future__ import annotations

import argparse

from .options import command, integer


def add_quantize(commands: argparse._SubParsersAction) -> None:
    p = command(commands, "quantize", "write the block FP8 form of a checkpoint, or the bf16 form of an FP8 one")
    p.add_argument("source", metavar="SOURCE", help="checkpoint folder; it stays as it is")
    p.add_argument("dest", metavar="DEST", help="new or empty folder; an interrupted run goes on in it")
    p.add_argument("--to", choices=("fp8", "bf16"), default="fp8", help="default: fp8")
    which = "which projections are FP8: all that can be, none, or as a JSON policy says (default: all)"
    p.add_argument("--policy", default="all", metavar="all|none|FILE", help=which)
    p.add_argument("--shard-mb", type=integer(1, 10**6), default=5000, metavar="N", help="of a file (default: 5000)")
    p.add_argument("--threads", type=integer(1, 1024), metavar="N", help="CPU threads of torch")
    p.add_argument("--json", action="store_true", help="one JSON object instead of text")

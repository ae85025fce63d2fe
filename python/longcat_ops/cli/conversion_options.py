"""Parsers of the commands that convert checkpoints and judge the result. Imports no torch."""

from __future__ import annotations

import argparse

from .options import command, integer


def add_quantize(commands: argparse._SubParsersAction) -> None:
    p = command(commands, "quantize", "write the block FP8 form of a checkpoint, or the bf16 form of an FP8 one")
    p.add_argument("source", metavar="SOURCE", help="checkpoint folder; it stays as it is")
    p.add_argument("dest", metavar="DEST", help="new or empty folder; an interrupted run goes on in it")
    p.add_argument("--to", choices=("fp8", "bf16"), default="fp8", help="default: fp8")
    which = (
        "which projections are FP8: all that can be, none, as --calibrate finds, as a JSON policy says (default: all)"
    )
    p.add_argument("--policy", default="all", metavar="all|none|auto|FILE", help=which)
    p.add_argument("--shard-mb", type=integer(1, 10**6), default=5000, metavar="N", help="of a file (default: 5000)")
    p.add_argument("--threads", type=integer(1, 1024), metavar="N", help="CPU threads of torch")
    p.add_argument("--json", action="store_true", help="one JSON object instead of text")
    text = "a projection stays bf16 if its inputs and its errors are large; the report of it lies in DEST"
    auto = p.add_argument_group("with --policy auto", text)
    auto.add_argument("--calibrate", metavar="FILE", help="the text that the network reads for it")
    add_window(auto)
    auto.add_argument("--max-input", type=float, metavar="X", help="inputs above are large (default: 28672)")
    relative = "and errors are large where a block's relative error is above it (default: 0.03125)"
    auto.add_argument("--max-relative", type=float, metavar="X", help=relative)
    absolute = "and its absolute one above this one (default: 0.0625 / sqrt(hidden_size))"
    auto.add_argument("--max-absolute", type=float, metavar="X", help=absolute)


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    p = command(commands, "evaluate", "judge a checkpoint by a text, alone or beside another form of it")
    p.add_argument("folder", metavar="CHECKPOINT", help="its folder")
    p.add_argument("--text", metavar="FILE", required=True, help="the text, which it was not trained on; - is stdin")
    p.add_argument("--against", metavar="OTHER", help="a folder with the same shapes, such as what was quantized")
    add_window(p)
    p.add_argument("--dtype", choices=("bfloat16", "float32", "float64"), help="of activations and what is not FP8")
    p.add_argument("--precision", metavar="bf16|fp8|FILE", help="of CHECKPOINT's projections (default: as stored)")
    p.add_argument("--threads", type=integer(1, 1024), metavar="N", help="CPU threads of torch")
    p.add_argument("--json", action="store_true", help="one JSON object instead of text")


def add_window(p: argparse._ActionsContainer) -> None:
    window = "the text is cut into pieces of so many tokens, which begin anew (default: 1024)"
    p.add_argument("--window", type=integer(2), metavar="N", help=window)

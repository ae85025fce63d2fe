"""The arguments of `python -m longcat_ops perf-model`. Parsing them imports no torch."""

from __future__ import annotations

import argparse

from ..perf.deployment.deployment import OVERLAPS, PRECISIONS
from ..perf.deployment.hardware import EFFICIENCIES, GPUS, LINKS
from ..perf.deployment.network import NETWORKS

METRICS = {"tpot": "ms a token", "dollars": "$ a million tokens", "user": "tokens/s/user", "gpu": "tokens/s/GPU"}


def add(p: argparse.ArgumentParser) -> None:
    names = ", ".join(NETWORKS)
    p.add_argument("network", nargs="?", default="LongCat-Flash", metavar="NETWORK|config.json",
                   help=f"{names}, or the config.json of another with experts (default: LongCat-Flash)")  # fmt: skip
    what = p.add_argument_group("what to show", "without any of these: one deployment, part by part")
    mode = what.add_mutually_exclusive_group()
    mode.add_argument("--report", action="store_true", help="tables 6 and 7 of the LongCat-Flash report beside ours")
    mode.add_argument("--worth", action="store_true", help="the deployment without one thing at a time")
    sweep = "AXIS=VALUE,.. or AXIS=LOW..HIGH, which doubles; may be given twice"
    mode.add_argument("--sweep", action="append", metavar="AXIS=VALUES", help=sweep)
    solve = 'the cheapest deployment with, as "tokens/s/user >= 100" or "tpot <= 20 and dollars <= 0.5"'
    mode.add_argument("--solve", metavar="TARGET", help=solve)
    what.add_argument("--plot", metavar="FILE.svg", help="draw the sweep; needs matplotlib")
    what.add_argument("--metric", choices=METRICS, default="tpot", help="what the plot shows (default: tpot)")
    what.add_argument("--json", action="store_true", help="one JSON object instead of text")
    _add_deployment(p.add_argument_group("deployment"))


def _add_deployment(g: argparse._ArgumentGroup) -> None:
    g.add_argument("--gpu", choices=tuple(GPUS), help="default: H800; with --solve every kind that has a price")
    share = "GPUs that share the experts (default: up to 128; with --solve any number)"
    g.add_argument("--ep", type=int, metavar="N", help=share)
    g.add_argument("--batch", type=int, default=96, metavar="N", help="sequences of a GPU (default: 96)")
    g.add_argument("--drafts", type=int, default=1, metavar="N", help="of a step and sequence (default: 1)")
    g.add_argument("--acceptance", type=float, default=0.8, metavar="P", help="of a draft (default: 0.8)")
    g.add_argument("--context", type=int, default=5000, metavar="N", help="rows of a sequence (default: 5000)")
    overlap = "default: sbo where the network has a shortcut, else tbo"
    g.add_argument("--overlap", choices=OVERLAPS, help=overlap)
    g.add_argument("--precision", choices=tuple(PRECISIONS), default="fp8", help="of products and dispatch")
    g.add_argument("--attention-precision", choices=tuple(PRECISIONS), help="of its projections (default: the same)")
    attention = (
        "of one attention at this batch and context; other ones keep its ratio to the model (default: the model's)"
    )
    g.add_argument("--attention-us", type=float, metavar="US", help=attention)
    aware = "choices of zero experts do not travel (default)"
    g.add_argument("--zero-aware", action=argparse.BooleanOptionalAction, default=True, help=aware)
    g.add_argument("--ffn-experts", type=float, metavar="X", help="of a token in the mean (default: the network's)")
    g.add_argument("--tp", type=int, default=1, metavar="N", help="GPUs that share attention's heads (default: 1)")
    g.add_argument("--link", choices=LINKS, help="default: NVLink behind one switch, else RDMA")
    g.add_argument("--link-gb-s", type=float, metavar="GB/S", help="another link, by its rate; every row counts")
    price = "dollars an hour, X for --gpu or GPU=X; may be repeated"
    g.add_argument("--price", action="append", default=[], metavar="[GPU=]X", help=price)
    shares = f"of peaks: {', '.join(EFFICIENCIES)}, achieved (fitted to the report's measurements), or an answers.jsonl"
    g.add_argument("--efficiency", default="report", metavar="NAME|FILE", help=shares)

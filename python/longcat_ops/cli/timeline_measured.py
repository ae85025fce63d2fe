"""`python -m longcat_ops timeline --measure`: the picture of what was `Measured`, under both executors."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from typing import Any, TextIO

import torch

from .. import _library
from ..engine.rank_alone import join_alone, random_rank
from ..engine.stage_times import LayerTimes, Measured, Spread, measure
from ..errors import LongcatError, LongcatUnsupportedError, message
from ..model import LongcatFlashForCausalLM
from ..perf.model import digits
from ..perf.timeline import LANES
from .stage_picture import Row, picture

LAYERS = 4
NOWHERE = (
    "one rank has all experts and its rows go nowhere: transfers are plan, quantisation and copies, without a wire"
)
TOTALS = {
    "compute": "computation",
    "communication": "communication",
    "exposed": "of it exposed, while nothing computes",
    "idle": "neither lane works",
    "layer": "the layer",
}


def run(args: argparse.Namespace) -> int:
    device = _gpu()
    try:
        if args.checkpoint is None:
            model = random_rank(device, args.layers or LAYERS, num_nextn_predict_layers=0)
        else:
            model = LongcatFlashForCausalLM.from_pretrained(args.checkpoint, device=device)
        join_alone(model, args.sequences * args.rows)
        found = measure(model, args.sequences, args.rows, args.context)
    except torch.OutOfMemoryError as error:
        fix = "fewer layers, sequences or rows of context"
        raise LongcatError(f"timeline: the device has no memory for this measurement.\n  fix: {fix}") from error
    network = Network.of(model, args.checkpoint)
    print(json.dumps(to_dict(found, network), indent=2) if args.json else "\n".join(lines(found, network, sys.stdout)))
    return 0


def _gpu() -> str:
    """The device to measure on. Raises LongcatUnsupportedError where there is none."""
    problem = "torch finds no CUDA device"
    if torch.cuda.is_available():
        supported, text = _library.load().device_supported(torch.cuda.current_device())
        problem = "" if supported else text
    if problem:
        got, fix = "set on a machine without a GPU that can run it", "without --measure the stages are modelled"
        raise LongcatUnsupportedError(message("timeline", "measure", got, "a Hopper GPU", problem, fix))
    return "cuda"


@dataclass(frozen=True)
class Network:
    """What was measured. weights: "random", or a folder."""

    weights: str
    precision: str
    layers: int
    hidden_size: int
    ffn_experts: int
    zero_experts: int
    top_k: int

    @classmethod
    def of(cls, model: LongcatFlashForCausalLM, folder: str | None) -> Network:
        c = model.config
        precision = "bf16" if model.layers[0].mlp.gate_up_scale is None else "fp8"
        return cls(folder or "random", precision, c.num_layers, c.hidden_size, c.n_routed_experts, c.zero_expert_num,
                   c.moe_topk)  # fmt: skip


def to_dict(found: Measured, network: Network) -> dict[str, Any]:
    """Times are us: median, p10 and p90 over the layers of all rounds; begin and end from the begin of the layer.

    layer_without_marks: of layers in which no stage was marked. late_rounds: those in which the device may have waited
    for the host.
    """
    return {
        "source": "measured",
        "device": found.device,
        "torch": torch.__version__,
        **asdict(found.shape),
        "transfers": NOWHERE if found.shape.ranks == 1 else None,
        "model": asdict(network),
        "rounds": found.rounds,
        "serial": _times(found, found.serial),
        "overlapped": _times(found, found.overlapped),
        "serial_over_overlapped": round(found.serial.whole.median / found.overlapped.whole.median, 3),
    }


def _times(found: Measured, times: LayerTimes) -> dict[str, Any]:
    return {
        "stages": [
            {"name": one.name, "lane": LANES[one.communicates], "us": _spread(times.us(one.name)),
             "begin": _spread(times.begin(one.name)), "end": _spread(times.end(one.name))}
            for one in found.stages
        ],
        **{name: _spread(times.total(name)) for name in TOTALS},
        "layer_without_marks": _spread(times.whole),
        "late_rounds": times.late,
    }  # fmt: skip


def _spread(us: Spread) -> dict[str, float]:
    return {name: round(value, 3) for name, value in asdict(us).items()}


def lines(found: Measured, network: Network, stream: TextIO) -> list[str]:
    """Both pictures and their sums, line by line; block characters only if `stream` can encode them."""
    shape, n = found.shape, network
    described = f"{n.weights} weights, {n.precision}, {n.layers} layers of {n.ffn_experts} experts"
    return [
        f"one layer of a decode step, measured: {found.device}, torch {torch.__version__}, ranks: {shape.ranks};",
        f"{shape.sequences} sequences x {shape.rows} rows, context {shape.context:,}; {described}",
        *([f"{NOWHERE}."] if shape.ranks == 1 else []),
        "",
        "one stage after another",
        *_picture(found, found.serial, stream),
        "",
        "on two lanes",
        *_picture(found, found.overlapped, stream),
        "",
        *_sum_lines(found),
    ]


def _picture(found: Measured, times: LayerTimes, stream: TextIO) -> list[str]:
    rows, middle = [], times.median
    for one in found.stages:
        span = middle.spans[one.name]
        rows.append(Row(one.name, one.communicates, _numbers(times.us(one.name), span.begin, span.end), span))
    header = f"{'us':>8}{'p10 .. p90':>14}{'begin':>9}{'end':>9}"
    return picture(header, rows, _numbers(times.total("exposed")), middle.layer, "medians", stream)


def _numbers(us: Spread, *ends: float) -> str:
    return f"{digits(us.median):>8}{_tenths(us):>14}" + "".join(f"{digits(end):>9}" for end in ends)


def _tenths(us: Spread) -> str:
    return f"{digits(us.p10)} .. {digits(us.p90)}"


def _sum_lines(found: Measured) -> list[str]:
    both = found.serial, found.overlapped
    texts = {**{text: [one.total(name) for one in both] for name, text in TOTALS.items()},
             "the layer, its stages not marked": [one.whole for one in both]}  # fmt: skip
    out = [f"  {'us, medians and p10 .. p90':<40}{'in turn':>8}{'':>16}{'two lanes':>11}"]
    for text, (serial, lanes) in texts.items():
        out.append(f"  {text:<40}{digits(serial.median):>8}{_tenths(serial):>16}"
                   f"{digits(lanes.median):>11}{_tenths(lanes):>16}")  # fmt: skip
    ratio = found.serial.whole.median / found.overlapped.whole.median
    out.append(f"  {'in turn / two lanes, stages not marked':<40}{ratio:>8.2f}")
    late, rounds = sum(one.late for one in both), 2 * found.rounds
    out.append(f"  {found.rounds} rounds each; in {late} of {rounds} the device may have waited for the host")
    return out

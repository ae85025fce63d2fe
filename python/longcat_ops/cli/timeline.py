"""`python -m longcat_ops timeline`: the picture of a `Timeline`; with --measure, of what a GPU does."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any, TextIO

from ..errors import LongcatShapeError, message
from ..model.scmoe import ScMoELayer
from ..perf import DEVICES
from ..perf.expert_parallel import NODE, NODE_RATE
from ..perf.model import Band, digits
from ..perf.step import ACCEPTED, LAYERS, REPORT, Shape
from ..perf.timeline import LANES, REPORTED_LAYER, Schedule, Timeline, ms_a_token, predicted
from . import timeline_measured
from .stage_picture import Row, picture

DEFAULT_DEVICE = "H800"
_SOURCE = "LongCat-Flash technical report, arXiv:2509.01322, section 6"


def run(args: argparse.Namespace) -> int:
    if args.measure:
        _require_absent(args, ("device", "ranks"), "with --measure, which runs one rank on the GPU that is here")
        if args.checkpoint is not None:
            _require_absent(args, ("layers",), "with --checkpoint, which has its own")
        return timeline_measured.run(args)
    _require_absent(args, ("layers", "checkpoint"), "without --measure")
    shape = Shape(args.sequences, args.rows, args.context, args.ranks or REPORT.ranks)
    found = predicted(ScMoELayer.PARALLEL, DEVICES[args.device or DEFAULT_DEVICE], shape)
    print(json.dumps(to_dict(found), indent=2) if args.json else "\n".join(lines(found, sys.stdout)))
    return 0


def _require_absent(args: argparse.Namespace, names: tuple[str, ...], why: str) -> None:
    for name in names:
        if (got := getattr(args, name)) is not None:
            raise LongcatShapeError(message("timeline", name, repr(got), f"none {why}"))


def to_dict(timeline: Timeline) -> dict[str, Any]:
    """us: [kind, unkind]. report: the report's figures, for its own deployment, else null."""
    reported, layer = timeline.beside_report(), [timeline.kind.layer, timeline.unkind.layer]
    return {
        "source": "modelled, not measured",
        "device": timeline.device,
        **asdict(timeline.shape),
        "stages": [
            {"name": one.name, "lane": LANES[one.communicates], "us": _pair(timeline.us[one.name]),
             "begin": [end.spans[one.name].begin for end in (timeline.kind, timeline.unkind)],
             "end": [end.spans[one.name].end for end in (timeline.kind, timeline.unkind)]}
            for one in timeline.stages
        ],
        "kind": _sums(timeline.kind),
        "unkind": _sums(timeline.unkind),
        "report": {
            "parts": {name: {"report_us": us, "us": _pair(ours)} for name, (us, ours) in reported.items()},
            "layer": {"report_us": REPORTED_LAYER, "us": layer},
            "ms_a_token": {"report": ms_a_token(REPORTED_LAYER), "here": [ms_a_token(us) for us in layer]},
        } if reported else None,
    }  # fmt: skip


def _pair(band: Band) -> list[float]:
    return [band.low, band.high]


def _sums(one: Schedule) -> dict[str, float]:
    names = "compute", "communication", "exposed", "layer", "serial", "ratio"
    return {name: getattr(one, name) for name in names}


def lines(timeline: Timeline, stream: TextIO) -> list[str]:
    """The picture, line by line; block characters only if `stream` can encode them."""
    shape = timeline.shape
    wire = "one NVLink switch" if shape.ranks <= NODE else f"nodes of {NODE}, {NODE_RATE.value / 1e9:g} GB/s a GPU"
    return [
        f"one layer of a decode step, modelled, not measured: {timeline.device}, EP {shape.ranks} ({wire}),",
        f"{shape.sequences} sequences x {shape.rows} rows, context {shape.context:,}, FP8; us, kind .. unkind",
        "",
        *_picture(timeline, stream),
        "",
        *_sum_lines(timeline),
        "  left out: what the lanes take from each other, ranks that come late, the host",
        *_report_lines(timeline),
    ]


def _picture(timeline: Timeline, stream: TextIO) -> list[str]:
    rows = []
    for one in timeline.stages:
        ends = (timeline.kind.spans[one.name], timeline.unkind.spans[one.name])
        begin, end = Band(*(span.begin for span in ends)), Band(*(span.end for span in ends))
        numbers = _numbers(timeline.us[one.name], begin, end)
        rows.append(Row(one.name, one.communicates, numbers, timeline.middle.spans[one.name]))
    exposed = Band(*sorted((timeline.kind.exposed, timeline.unkind.exposed)))
    header, layer = _numbers("us", "begin", "end"), timeline.middle.layer
    return picture(header, rows, _numbers(exposed), layer, "middles", stream)


def _numbers(us: object, begin: object = "", end: object = "") -> str:
    return f"{us!s:>12}{begin!s:>14}{end!s:>14}"


def _sum_lines(timeline: Timeline) -> list[str]:
    names = {
        "compute": "computation",
        "communication": "communication",
        "exposed": "of it exposed, while nothing computes",
        "layer": "the layer",
        "serial": "the layer, one stage after another",
    }
    kind, unkind = timeline.kind, timeline.unkind
    out = [f"  {'us':<40}{'kind':>8}{'unkind':>10}"]
    out += [f"  {text:<40}{digits(getattr(kind, n)):>8}{digits(getattr(unkind, n)):>10}" for n, text in names.items()]
    return [*out, f"  {'serial / overlapped':<40}{kind.ratio:>8.2f}{unkind.ratio:>10.2f}"]


def _report_lines(timeline: Timeline) -> list[str]:
    if not (reported := timeline.beside_report()):
        return []
    here = Band(timeline.kind.layer, timeline.unkind.layer)
    out = ["", f"  {'us':<40}{'report':>8}  here"]
    out += [f"  {name:<40}{us:>8.0f}  {ours}" for name, (us, ours) in reported.items()]
    out += [f"  {'the layer':<40}{REPORTED_LAYER:>8.0f}  {here}"]
    ms, ours = ms_a_token(REPORTED_LAYER), f"{ms_a_token(here.low):.2f} .. {ms_a_token(here.high):.2f}"
    out += [f"  {f'ms a token, {LAYERS} layers / {1 + ACCEPTED:g}':<40}{ms:>8.2f}  {ours}, without head and MTP"]
    return [
        *out,
        f"  report: {_SOURCE}; H800, context not stated.",
        "  Its layer is the sum of the four: the second attention and both FFNs count as hidden.",
    ]

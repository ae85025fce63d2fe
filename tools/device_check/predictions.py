"""What an H200 should measure, as bands that a measurement may fall outside of. longcat_ops.perf gives those of the
kernels it knows; a few more are for probes of the device. Nothing here has seen a GPU.

Sources of the probes' bands: a device-to-device copy on one H200 moved 4.3 TB/s of the 4.8 of its data sheet; public
kernels read 80 to 120 GB/s by TMA on one multiprocessor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from longcat_ops import perf
from longcat_ops.perf import attention, chain, dispatch, products
from longcat_ops.perf import step as whole_step
from longcat_ops.perf.chain import Share
from longcat_ops.perf.model import constants_by_name

from .plan import PLAN
from .steps import Step

DEVICE = perf.DEVICES["H200"]


@dataclass(frozen=True)
class Band:
    """metric: the path into the step's answer, with dots. A measurement m is inside if low <= m <= high."""

    step: str
    metric: str
    low: float
    high: float
    unit: str

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high


def in_a_graph(*launches: perf.Counts) -> tuple[float, float]:
    """us of launches that follow each other: the low end assumes that they overlap, the high one that they do not."""
    bands = [(perf.predict(one, DEVICE, overlaps=True), perf.predict(one, DEVICE)) for one in launches]
    return sum(overlapped.low for overlapped, _ in bands), sum(alone.high for _, alone in bands)


def _times(step: Step) -> Iterator[tuple[str, float, float, str]]:
    a = step.arguments
    if step.ask == "times.product":
        found = products.product(a["groups"], a["groups"] * a["tokens"], a["n"], a["k"], max_rows=a["tokens"])
        yield "times.longcat_ops.us", *in_a_graph(found), "us"
        if "cuBLASLt" in a["peers"]:  # a call for each expert
            yield "peer_over_ours.cuBLASLt scaled_mm", 1.0, 6.0, "times ours"
        if "DeepGEMM" in a["peers"]:
            yield f"peer_over_ours.{a['peers']}", 1.0, 1.4, "times ours"
    elif step.ask == "times.chain":
        share = Share(a["tokens"], a["ranks"])
        for name, form in (("fused", "fused"), ("unfused", "apart")):
            low, high = in_a_graph(*chain.FORMS[form].launches(share))
            yield f"times.{name}.us", 0.8 * low, 1.2 * high, "us"  # the routing is drawn: more or fewer experts
        yield "unfused_over_fused", 1.0, 1.6, "times"
    elif step.ask == "times.layer":
        shapes = ((2 * a["width"], a["hidden"]), (a["hidden"], a["width"]))
        weights = a["experts"] * sum(products.weight_bytes(*shape) for shape in shapes)
        low, high = in_a_graph(perf.Counts("experts", weights), *[perf.Counts("another launch")] * 5)
        yield "times.us", low, high, "us"
        yield "gb_per_s", 1e-3 * weights / high, 1e-3 * weights / low, "GB/s"
    elif step.ask == "times.dispatch":
        for op, launches in dispatch.OPS.items():
            yield f"times.{op}.us", *in_a_graph(*launches(a["tokens"])), "us"
    elif step.ask == "times.attention":
        for split in a["splits"]:
            call = attention.Call(a["sequences"], a["rows"], a["context"], split)
            yield f"times.split_rows {split}.us", *in_a_graph(*attention.mla_decode(call)), "us"
    elif step.ask == "step.whole":
        model = whole_step.predicted(DEVICE, whole_step.Shape(a["sequences"], a["rows"], a["context"]))
        parts = {"attention": model.attention, "ffn": model.ffn, "layer": model.layer, "head": model.head}
        for name, band in parts.items():
            yield f"parts.{name}.us", 0.8 * band.low, 1.5 * band.high, "us"  # fewer rows for the experts
    elif step.ask == "times.quantisation":
        for op in ("per_token_group_quant_fp8", "silu_and_mul_quant_fp8", "rms_norm_quant_fp8", "per_block_quant_fp8"):
            yield f"gb_per_s.{op}", 2800.0, 4500.0, "GB/s"


def _rates(step: Step) -> Iterator[tuple[str, float, float, str]]:
    if step.name == "rates/memory":
        yield "copy_gb_per_s", 4100.0, 4500.0, "GB/s"
        yield "read_gb_per_s", 4100.0, 4650.0, "GB/s"
    elif step.name == "rates/peaks":
        yield "tma_read_gb_per_s", 4000.0, 4650.0, "GB/s"
        yield "copy_gb_per_s", 4100.0, 4500.0, "GB/s"
        yield "e4m3_wgmma_tflop_per_s", 1200.0, 1900.0, "TFLOP/s"
    elif step.name.startswith("rates/box-"):
        sms = step.arguments["number"]
        yield "gb_per_s_of_one", min(80.0, 3800.0 / sms), min(130.0, 4650.0 / sms), "GB/s"


def _residency(step: Step) -> Iterator[tuple[str, float, float, str]]:
    if step.ask == "residency.beside":
        for carveout in ("default", "largest"):
            yield f"{carveout}.equal", 1, 1, "true"
        yield "default.entered", 0, 0, "true"
        yield "largest.entered", 1, 1, "true"
    elif step.ask == "residency.two_launches_back":
        yield "wrong", 0, 0, "words"
    elif step.ask == "residency.entry_times":
        low, high = (0.5, 1.0) if step.arguments["carveout"] == 100 else (0.0, 0.2)
        yield "kernels.gate_up.early_share", low, high, "of its blocks"


def bands() -> list[Band]:
    """The bands, in the order of the plan."""
    sources = {"times": _times, "rates": _rates, "residency": _residency}
    found = []
    for step in PLAN:
        source = sources.get(step.name.split("/")[0])
        found += [Band(step.name, metric, _short(low), _short(high), unit)
                  for metric, low, high, unit in (source(step) if source else ())]  # fmt: skip
    return found


def _short(value: float) -> float:
    """Three digits are more than a prediction has."""
    return float(f"{value:.3g}")


def content() -> dict[str, Any]:
    """The content of docs/results/h200-predictions.json."""
    return {
        "device": "NVIDIA H200",
        "constants": constants_by_name(),
        "figures": {name: asdict(figure) for name, figure in DEVICE.figures().items()},
        "bands": [asdict(band) for band in bands()],
    }


def look_up(answer: dict[str, Any], metric: str) -> float | None:
    """The number at a metric's path; None if the answer has none. A path cannot reach a name with dots in it."""
    value: Any = answer
    for key in metric.split("."):
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return float(value) if isinstance(value, int | float) else None

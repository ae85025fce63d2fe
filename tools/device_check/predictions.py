"""What an H200 should measure, as bands that a measurement can fall out of: each from two sets of constants, one that
is kind to the kernels and one that is not. Nothing here has seen a GPU.

Sources: a device-to-device copy on one H200 moved 4.3 TB/s of the 4.8 of its data sheet; DeepGEMM plans with 8 TB/s
from L2, this project's tables with 5.5; public kernels leave about 2.5 us a launch that is not overlapped, and read 80
to 120 GB/s by TMA on one multiprocessor; a published layer of 128 x 8 rows reads its weights at 3.71 TB/s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from bench_moe import predicted
from chain_model import DOWN, GATE_UP, HIDDEN, Kernel, Share, weight_bytes
from moe_gemm_problem import SHAPES, Cell

from .plan import PLAN
from .steps import Step


@dataclass(frozen=True)
class Constants:
    memory: float  # bytes/s
    l2: float
    fp8: float  # flops/s
    alone_us: float  # of a launch that does not overlap
    follows_us: float  # of one behind another


KIND = Constants(4.5e12, 8.0e12, 1.6e15, 1.5, 0.7)
UNKIND = Constants(3.6e12, 5.0e12, 1.2e15, 5.0, 4.5)


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


def product_us(cell: Cell, c: Constants, pairs: bool) -> float:
    """Weights once for each 256 rows of an expert, tokens once for each 128 (in pairs 256) rows of weights."""
    (n, k), m, groups = SHAPES[cell.shape], cell.tokens, cell.groups
    through_l2 = groups * (-(-m // 256) * n * k + -(-n // (256 if pairs else 128)) * m * k)
    return 1e6 * max(cell.bytes / c.memory, cell.flops / c.fp8, through_l2 / c.l2) + c.alone_us


def _kernel_us(kernel: Kernel, c: Constants) -> float:
    flops = 2 * kernel.rows * kernel.shape[0] * kernel.shape[1]
    return 1e6 * max(kernel.bytes / c.memory, flops / c.fp8) + c.follows_us


def _times(step: Step) -> Iterator[tuple[str, float, float, str]]:
    a = step.arguments
    if step.ask == "times.product":
        name = f"{a['n']}x{a['k']}"
        SHAPES.setdefault(name, (a["n"], a["k"]))
        cell = Cell(name, a["groups"], a["tokens"])
        low, high = product_us(cell, KIND, cell.tokens >= 128), product_us(cell, UNKIND, False)
        yield "times.longcat_ops.us", low, high, "us"
        if "cuBLASLt" in a["peers"]:  # a call for each expert
            yield "peer_over_ours.cuBLASLt scaled_mm", 1.0, 6.0, "times ours"
        if "DeepGEMM" in a["peers"]:
            yield f"peer_over_ours.{a['peers']}", 1.0, 1.4, "times ours"
    elif step.ask == "times.chain":
        share = Share(a["tokens"], a["ranks"])
        for name, fused in (("fused", True), ("unfused", False)):
            low, high = (sum(_kernel_us(kernel, c) for kernel in share.kernels(fused)) for c in (KIND, UNKIND))
            yield f"times.{name}.us", 0.8 * low, 1.2 * high, "us"  # the routing is drawn: more or fewer experts
        yield "unfused_over_fused", 1.0, 1.6, "times"
    elif step.ask == "times.layer":
        shapes = ((2 * a["width"], a["hidden"]), (a["hidden"], a["width"]))
        weights = a["experts"] * sum(weight_bytes(shape) for shape in shapes)
        low, high = (1e6 * weights / c.memory + 6 * c.follows_us for c in (KIND, UNKIND))
        yield "times.us", low, high, "us"
        yield "gb_per_s", 1e-3 * weights / high, 1e-3 * weights / low, "GB/s"
    elif step.ask == "times.dispatch":
        for op in ("moe_route", "moe_plan", "moe_permute_quant", "moe_combine"):
            us = predicted(op, a["tokens"])["predicted_us"]
            yield f"times.{op}.us", 0.5 * us, 1.6 * us, "us"
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
    """In the order of the plan."""
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
    """Of docs/results/h200-predictions.json."""
    assert (GATE_UP, DOWN, HIDDEN) == ((4096, 6144), (6144, 2048), 6144)
    constants = {"kind": asdict(KIND), "unkind": asdict(UNKIND)}
    return {"device": "NVIDIA H200", "constants": constants, "bands": [asdict(band) for band in bands()]}


def look_up(answer: dict[str, Any], metric: str) -> float | None:
    """The number at a metric's path; None where the answer has none. A name may hold dots no path has."""
    value: Any = answer
    for key in metric.split("."):
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return float(value) if isinstance(value, int | float) else None

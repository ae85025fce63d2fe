"""Tables of what this folder computes, as a heading and rows of text: for the command and for docs/perf_model.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .hardware import DEEPEP, GIB, GPUS, RDMA, Efficiency
from .network import NETWORKS
from .reported import MEASURED_MS, TABLE_6, TABLE_7, achieved
from .solve import Solution
from .step import Result, evaluate
from .studies import Point, ablation

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
COSTS = ("ms a token", "tokens/s/user", "tokens/s/GPU", "$ a million")


def number(value: float | None) -> str:
    """Three digits, or all those ahead of the point; "-" for none."""
    if value is None:
        return "-"
    if value == 0 or abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 0.9995 else f"{value:.2f}" if abs(value) < 9.995 else f"{value:.1f}"


def costs(result: Result) -> tuple[str, ...]:
    return tuple(number(one) for one in (result.tpot_ms, result.tokens_s_user, result.tokens_s_gpu, result.dollars))


def longest(result: Result) -> str:
    """The part that a layer waits for most, its share, and what bounds it."""
    name, part = result.binding
    return f"{name} {part.us / result.layer_us:.0%}, {part.bound}"


def memory(result: Result) -> str:
    verdict = "" if result.fits else ": does not fit"
    return f"{(result.weights + result.cache) / GIB:.0f} of {result.capacity / GIB:.0f}{verdict}"


def table_7() -> Table:
    """The report's cells, printed / by formula."""
    rows = []
    for name in TABLE_7[0].cells:
        note = "at 5,000 rows of context; the report states none" if name == "attention" else ""
        cells = [f"{printed:.0f} / {ours:.1f}" for printed, ours in (column.cells[name] for column in TABLE_7)]
        rows.append((f"{name}, us", *cells, note))
    found = [column.result for column in TABLE_7]
    rows.append(("overlap", *(column.overlap.upper() for column in TABLE_7), ""))
    note = "with the printed attention"
    rows.append(("a layer with experts, us", *(f"{one.layer_us:.1f}" for one in found), note))
    tpot = [f"{column.tpot_ms:g} / {one.tpot_ms:.2f}" for column, one in zip(TABLE_7, found, strict=True)]
    rows.append(("ms a token", *tpot, note))
    dollars = [f"{c.dollars:.2f} / {c.dollars_of_printed:.4f}" for c in TABLE_7]
    rows.append(("$ a million tokens", *dollars, "from the printed ms"))
    rows.append(("GiB of a GPU", *(memory(one) for one in found), "at 5,000 rows of context"))
    return ("printed / by formula", *(column.network for column in TABLE_7), ""), rows


def table_6() -> Table:
    """Operating points of LongCat-Flash: the 16 ms of table 7, what was measured, and the formulas at that batch."""
    rows = []
    table = TABLE_7[2]
    base, fit = table.deployment, achieved()
    ours, reached = evaluate(base), evaluate(replace(base, efficiency=fit))
    for name, ms in (("table 7, a limit", table.tpot_ms), ("measured at that batch", MEASURED_MS)):
        rows.append(_point(name, base.batch, base.context, "fp8", ms, ours, reached))
    for point in TABLE_6:
        results = (evaluate(replace(point.deployment, efficiency=one)) for one in (point.deployment.efficiency, fit))
        rows.append(_point("table 6, measured", point.batch, point.context, point.attention_precision, point.tpot_ms,
                           *results))  # fmt: skip
    heading = ("operating point", "batch", "context", "attention", "ms a token", "tokens/s/user", "$ a million",
               "by formula, ms", "$", "`achieved`, ms", "$")  # fmt: skip
    return heading, rows


def _point(
    name: str, batch: int, context: int, precision: str, ms: float, ours: Result, fit: Result
) -> tuple[str, ...]:
    dollars = TABLE_7[2].deployment.gpu.price.value * 1e6 * ms / (3.6e6 * batch)
    both = [number(one) for result in (ours, fit) for one in (result.tpot_ms, result.dollars)]
    return (name, str(batch), f"{context:,}", precision, number(ms), number(1e3 / ms), f"{dollars:.3f}", *both)


def worth(result: Result) -> Table:
    """The ablation: a layer, and times and costs over those of the deployment as it is."""
    rows, base = [], result
    for name, point in ablation(result.deployment):
        if (one := point.result) is None:
            rows.append((name, "-", "-", "-", "-", point.reason))
            continue
        change = "" if one.deployment == base.deployment else f"{one.tpot_ms / base.tpot_ms - 1:+.0%}"
        note = longest(one) + ("" if one.fits else "; does not fit")
        rows.append((name, number(one.layer_us), number(one.tpot_ms), number(one.dollars), change, note))
    return ("deployment", "a layer, us", "ms a token", "$ a million", "dearer by", "the longest part of a layer"), rows


def swept(axes: Mapping[str, Sequence[Any]], points: Iterable[Point]) -> Table:
    rows = []
    for point in points:
        values = tuple(map(str, point.values))
        if point.result is None:
            rows.append((*values, *("-" for _ in COSTS), "-", point.reason))
        else:
            rows.append((*values, *costs(point.result), memory(point.result), longest(point.result)))
    return (*axes, *COSTS, "GiB", "the longest part of a layer"), rows


def solved(solution: Solution) -> Table:
    """The cheapest of each GPU kind, the cheapest first."""
    rows = []
    for name, one in solution.by_gpu.items():
        d = one.deployment
        rows.append((name, str(d.ep), str(d.batch), d.hiding, d.path.name, *costs(one), longest(one)))
    return ("GPU", "GPUs (EP)", "batch", "overlap", "link", *COSTS, "the longest part of a layer"), rows


def networks() -> Table:
    rows = []
    for n in NETWORKS.values():
        count = f"{n.experts} + {n.zero_experts} zero" if n.zero_experts else str(n.experts)
        shared = f", {n.shared_width // n.expert_width} shared" if n.shared_width else ""
        attention = f"{n.attentions} x {n.attention.name}, {n.attention.heads} heads"
        rows.append((n.name, str(n.hidden), f"{n.layers}, {n.moe_layers} with experts", attention,
                     f"{count}, top {n.choices}{shared}", str(n.expert_width),
                     f"{n.parameters / 1e9:.1f}", f"{n.active() / 1e9:.1f}", n.source))  # fmt: skip
    return (
        "network",
        "hidden",
        "layers",
        "attention",
        "experts",
        "width",
        "parameters, B",
        "active, B",
        "source",
    ), rows


def gpus() -> Table:
    rows = []
    for g in GPUS.values():
        price = "" if g.price is None else f"{g.price.value:g}"
        rows.append((g.name, f"{g.memory.value / 1e12:g}", f"{g.fp8.value / 1e12:g}", f"{g.bf16.value / 1e12:g}",
                     f"{g.capacity.value / GIB:.0f}", f"{g.wire.value / 1e9:.0f}", str(g.domain), price))  # fmt: skip
    return ("GPU", "memory, TB/s", "FP8, TFLOPS", "bf16, TFLOPS", "GiB", "NVLink a direction, GB/s", "GPUs of a switch",
            "$ an hour"), rows  # fmt: skip


def sources() -> Table:
    """Each source of a figure of `gpus`, with the figures."""
    found: dict[str, list[str]] = {}
    for g in GPUS.values():
        for name, figure in g.figures().items():
            found.setdefault(figure.source, []).append(f"{g.name} {name}")
    return ("source", "figures"), [(source, ", ".join(names)) for source, names in found.items()]


def links() -> Table:
    rows = [("NVLink", "", "the GPU's own", "", "rows for other ranks", "as the table of GPUs says")]
    for link in (RDMA, DEEPEP):
        for ranks, *rates in link.rates:
            upto = str(ranks) if len(link.rates) > 1 else ""
            rows.append((link.name, upto, *(f"{rate / 1e9:.0f}" for rate in rates), "every row", link.source))
    return ("link", "up to EP", "dispatch, GB/s", "combine, GB/s", "counts", "source"), rows


def efficiencies(known: Iterable[Efficiency]) -> Table:
    rows = [(f"`{e.name}`", *(f"{share:.3g}" for share in (e.memory, e.products, e.attention, e.slowdown)),
             f"{e.fixed_us / 1e3:.3g}", e.source) for e in known]  # fmt: skip
    return ("efficiency", "memory", "products", "attention", "slowdown", "ms more a step", "source"), rows

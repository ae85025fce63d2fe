"""The plot of a sweep: its first axis across, a line for each value of its second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import LongcatUnsupportedError
from ..perf.deployment.step import Result
from ..perf.deployment.studies import Point
from .perf_model_arguments import METRICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "longcat_ops", "font.size": 8}  # the same sweep gives the same file


def write(path: str, axes: Mapping[str, Sequence[Any]], points: Sequence[Point], metric: str, title: str) -> None:
    """Raises LongcatUnsupportedError without matplotlib or for a type of file that it does not write."""
    try:
        import matplotlib
    except ImportError:
        raise LongcatUnsupportedError(
            "perf-model: --plot needs matplotlib.\n  fix: pip install matplotlib, or the extra [bench]"
        ) from None
    with matplotlib.rc_context(_STYLE):
        try:
            figure(axes, points, metric, title).savefig(
                path, metadata={"Date": None} if path.endswith(".svg") else None
            )
        except ValueError as error:
            raise LongcatUnsupportedError(f"perf-model: --plot {path}: {error}.") from None


def value(result: Result, metric: str) -> float | None:
    names = {"tpot": "tpot_ms", "dollars": "dollars", "user": "tokens_s_user", "gpu": "tokens_s_gpu"}
    return getattr(result, names[metric])


def figure(axes: Mapping[str, Sequence[Any]], points: Sequence[Point], metric: str, title: str) -> Figure:
    """Points that do not fit on a GPU are hollow; those that cannot be are left out."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6, 3.6), layout="constrained")
    plot = drawn.add_subplot()
    (across, values), *rest = axes.items()
    for other in rest[0][1] if rest else (None,):
        own = [p for p in points if p.result is not None and p.values[1:] == ((other,) if rest else ())]
        line = [(p.values[0], value(p.result, metric), p.result.fits) for p in own]
        line = [one for one in line if one[1] is not None]
        if not line:
            continue
        label = f"{rest[0][0]} {other}" if rest else None
        (made,) = plot.plot([x for x, _, _ in line], [y for _, y, _ in line], "-", linewidth=1, label=label)
        for fits, fill in ((True, made.get_color()), (False, "white")):
            some = [(x, y) for x, y, one in line if one == fits]
            plot.plot([x for x, _ in some], [y for _, y in some], "o", color=made.get_color(), markersize=3,
                      markerfacecolor=fill)  # fmt: skip
    if len(values) > 1 and all(isinstance(one, int) and one > 0 for one in values):
        plot.set_xscale("log", base=2)
        plot.xaxis.set_major_formatter(lambda at, _: f"{at:g}")
    plot.set(xlabel=across, ylabel=METRICS[metric])
    plot.set_ylim(bottom=0)
    plot.set_title(f"{title}, modelled; hollow: does not fit on a GPU")
    if rest:
        plot.legend()
    return drawn

"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from longcat_ops.perf import Band
from tables import short_bound


def table(heading: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def with_bound(band: Band) -> str:
    """us, with the limit in brackets unless it is memory alone."""
    return f"{band}{short_bound(band.bound)}"

"""The picture of a layer's stages: a bar for each on one scale, in the character of its lane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from ..perf.model import digits
from ..perf.timeline import LANES, Span
from .report import can_encode

WIDTH, NUMBERS = 44, 40  # characters of a bar, and of the numbers ahead of it
_BLOCKS, _ASCII = "█▒", "#="  # by lane


@dataclass(frozen=True)
class Row:
    """A stage. numbers: what stands between its lane and its bar, NUMBERS characters."""

    name: str
    communicates: bool
    numbers: str
    span: Span


def picture(header: str, rows: Sequence[Row], exposed: str, layer: float, what: str, stream: TextIO) -> list[str]:
    """Line by line. header, exposed: the numbers above the rows and below. what: which spans of a layer of `layer` us
    the bars show. Block characters only if `stream` can encode them."""
    marks = _BLOCKS if can_encode(stream, _BLOCKS) else _ASCII
    out = [_line("stage", "lane", header, f"{what}; a character is {digits(layer / WIDTH)} us")]
    cells = {False: set[int](), True: set[int]()}
    for row in rows:
        filled = _filled(row.span, layer)
        cells[row.communicates].update(filled)
        out.append(_line(row.name, LANES[row.communicates], row.numbers, _bar(filled, marks[row.communicates])))
    return [*out, _line("exposed", "", exposed, _bar(cells[True] - cells[False], marks[True]))]


def _line(name: str, lane: str, numbers: str, bar: str) -> str:
    return f"  {name:<18}{lane:<14}{numbers:<{NUMBERS}}  {bar}"


def _filled(span: Span, whole: float) -> range:
    """Characters of a bar; at least one for a stage that takes time."""
    first, last = (round(WIDTH * us / whole) for us in (span.begin, span.end))
    if span.end > span.begin and first == last:
        first = min(first, WIDTH - 1)
        last = first + 1
    return range(first, last)


def _bar(filled: range | set[int], mark: str) -> str:
    return "".join(mark if i in filled else "." for i in range(WIDTH))

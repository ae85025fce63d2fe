"""Pairwise test design: few rows that hold every pair of values of two factors, where the full product is too large."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
Pair = tuple[str, int, str, int]  # two factors, in their order, each with the index of its value


def design(factors: dict[str, Sequence[Any]], feasible: Callable[[Row], bool]) -> list[Row]:
    """Rows that hold every pair that a feasible row can hold. `feasible` also receives rows with missing factors and
    must reject one only if no completion is feasible."""
    names, rows, held = list(factors), [], set()
    uses = {(name, i): 0 for name in names for i in range(len(factors[name]))}

    def allowed(row: dict[str, int]) -> bool:
        return feasible({name: factors[name][i] for name, i in row.items()})

    def new_pairs(row: dict[str, int], name: str, i: int) -> int:
        return sum(_pair(names, name, i, other, j) not in held for other, j in row.items())

    def complete(row: dict[str, int]) -> dict[str, int]:
        for name in names:
            if name not in row:
                values = sorted(range(len(factors[name])), key=lambda i: (-new_pairs(row, name, i), uses[name, i]))
                row[name] = next(i for i in values if allowed(row | {name: i}))
        return row

    for first, i, second, j in pairs(factors):
        row = {first: i, second: j}
        if (first, i, second, j) in held or not allowed(row):
            continue
        row = complete(row)
        held |= {_pair(names, *a, *b) for a, b in itertools.combinations(row.items(), 2)}
        for used in row.items():
            uses[used] += 1
        rows.append({name: factors[name][row[name]] for name in names})
    return rows


def pairs(factors: dict[str, Sequence[Any]]) -> list[Pair]:
    """Every pair of values of two factors."""
    ordered = itertools.combinations(factors, 2)
    return [(a, i, b, j) for a, b in ordered for i in range(len(factors[a])) for j in range(len(factors[b]))]


def _pair(names: list[str], a: str, i: int, b: str, j: int) -> Pair:
    return (a, i, b, j) if names.index(a) < names.index(b) else (b, j, a, i)

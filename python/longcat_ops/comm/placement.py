"""A placement of experts on ranks by the tokens that each got: the busiest have several replicas, and ranks have loads
as equal as a greedy choice makes them. Plain Python on the host, between steps: `moe_place` reads the tables.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ..errors import LongcatShapeError, message
from ..types import Placement

_NAME = "balance_experts"


def balance_experts(counts: Tensor | Sequence[float], ranks: int, replicas: int = 0) -> Placement:
    """Places N FFN experts and `replicas` further copies of the busiest on `ranks` ranks.

    Each further slot goes to the expert with the most tokens a replica, of equal ones to the lower id; none has more
    than `ranks` replicas. Then the replicas, those with the most tokens first, each go to the rank with the fewest that
    has a slot left and not yet this expert, of equal ones to the lower rank. All of it is exact, so the result is the
    same on every rank that has the same counts.

    Args:
        counts: [N], tokens of each FFN expert, as `Routing.counts[:N]` summed over steps and ranks, without zero
            experts: integers or floats, at least 0, as a sequence or a tensor, which is read on the host.
        ranks: among which N + replicas is divided evenly.
        replicas: slots beyond one an expert, up to N * (ranks - 1).

    Returns:
        Placement on the CPU, of N + replicas slots, those of a rank by expert; M is the largest number of replicas.

    Raises:
        LongcatShapeError: an argument is not as above.
    """
    exact = _whole(_checked(counts))
    experts = len(exact)
    _check_number("ranks", ranks, 1)
    _check_number("replicas", replicas, 0)
    if replicas > experts * (ranks - 1):
        expected = f"at most {experts * (ranks - 1)}, one of each of N = {experts} experts on each further rank"
        raise LongcatShapeError(message(_NAME, "replicas", replicas, expected))
    if (experts + replicas) % ranks:
        expected = f"a number for which N + replicas = {experts} + {replicas} is a multiple of ranks = {ranks}"
        raise LongcatShapeError(message(_NAME, "replicas", replicas, expected))
    copies = _copies(exact, ranks, replicas)
    return _tables(_ranks_of_experts(exact, copies, ranks))


def _check_number(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise LongcatShapeError(message(_NAME, name, f"of type {type(value).__name__}", "of type int"))
    if value < least:
        raise LongcatShapeError(message(_NAME, name, value, f"at least {least}"))


def _checked(counts: Any) -> list[int | float]:
    if isinstance(counts, Tensor):
        if counts.ndim != 1 or counts.dtype == torch.bool or counts.is_complex():
            got = f"{counts.dtype} of shape {list(counts.shape)}"
            raise LongcatShapeError(message(_NAME, "counts", got, "integers or floats of shape [N]"))
        counts = counts.tolist()
    if not isinstance(counts, Sequence) or isinstance(counts, str | bytes):
        raise LongcatShapeError(message(_NAME, "counts", f"of type {type(counts).__name__}", "a tensor or a sequence"))
    if not counts:
        raise LongcatShapeError(message(_NAME, "counts", "empty", "at least one expert"))
    for i, count in enumerate(counts):
        if not isinstance(count, int | float) or isinstance(count, bool):
            raise LongcatShapeError(message(_NAME, f"counts[{i}]", f"of type {type(count).__name__}", "int or float"))
        if not 0 <= count < math.inf:  # not true of NaN
            raise LongcatShapeError(message(_NAME, f"counts[{i}]", count, "a finite number, at least 0"))
    return list(counts)


def _whole(counts: list[int | float]) -> list[int]:
    """Integers in the ratios of the counts."""
    exact = [Fraction(count) for count in counts]
    unit = math.lcm(*(count.denominator for count in exact))
    return [int(count * unit) for count in exact]


def _copies(counts: list[int], ranks: int, replicas: int) -> list[int]:
    """How many replicas each expert has."""
    copies = [1] * len(counts)
    heap = [(Fraction(-count), expert) for expert, count in enumerate(counts)] if ranks > 1 else []
    heapq.heapify(heap)
    for _ in range(replicas):
        _, expert = heapq.heappop(heap)
        copies[expert] += 1
        if copies[expert] < ranks:
            heapq.heappush(heap, (Fraction(-counts[expert], copies[expert]), expert))
    return copies


def _ranks_of_experts(counts: list[int], copies: list[int], ranks: int) -> list[list[int]]:
    """The ranks of each expert's replicas.

    NOTE: a rank is always left. An expert that has several replicas got the last one as the busiest, so none before it
    has more than twice its tokens a replica, but for those that lie on every rank. So no rank holds two replicas more
    than another, and a rank that lacks the expert has a slot.
    """
    unit = math.lcm(*copies)
    tokens = [count * (unit // copy) for count, copy in zip(counts, copies, strict=True)]  # a replica, in 1 / unit
    size, loads, used = sum(copies) // ranks, [0] * ranks, [0] * ranks
    places: list[list[int]] = [[] for _ in counts]
    for expert in sorted(range(len(counts)), key=lambda e: (-tokens[e], e)):
        for _ in range(copies[expert]):
            left = [rank for rank in range(ranks) if used[rank] < size and rank not in places[expert]]
            rank = min(left, key=lambda r: (loads[r], r))
            loads[rank] += tokens[expert]
            used[rank] += 1
            places[expert].append(rank)
    return places


def _tables(places: list[list[int]]) -> Placement:
    """places: the ranks of each expert, of which all get as many."""
    most = max(map(len, places))
    experts = [expert for _, expert in sorted((rank, expert) for expert, on in enumerate(places) for rank in on)]
    slots: list[list[int]] = [[] for _ in places]
    for slot, expert in enumerate(experts):
        slots[expert].append(slot)
    padded = [row + [-1] * (most - len(row)) for row in slots]
    return Placement(*(torch.tensor(part, dtype=torch.int32) for part in (padded, list(map(len, slots)), experts)))

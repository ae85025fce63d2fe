"""Operands in the layouts that DeepGEMM's tests use, on a CPU, each with its product in float64.

Elements that no product may read are NaN, those that none may write hold a mark. Of several groups, one has no row.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...types import BLOCK, Fp8Pair
from . import testing, utils

MARK = 7.0
_NAN_CODE = 0x7F
# Bounds on calc_diff, with room, for a float32 sum that is rounded once to each dtype. DeepGEMM asks for 1e-3, compared
# with unquantised sums.
LIMIT = {torch.bfloat16: 3e-6, torch.float16: 5e-8, torch.float32: 1e-11}


class Grouped(NamedTuple):
    """a ([M, K], f32), b ([G, N, K], f32), and per group its rows of a and their float64 product."""

    a: Fp8Pair
    b: Fp8Pair
    spans: list[slice]
    expected: list[Tensor]


def wide(pair: Fp8Pair, rows: int) -> Tensor:
    """float64 values of [R, K]; `rows` rows share a scale."""
    values, scales = pair
    spread = scales.double().repeat_interleave(BLOCK, 1)[:, : values.shape[1]]
    return values.float().double() * spread.repeat_interleave(rows, 0)[: values.shape[0]]


@functools.lru_cache(maxsize=64)
def activation(m: int, k: int) -> tuple[Fp8Pair, Tensor]:
    """FP8 rows [M, K] and their float64 values."""
    pair = utils.per_token_cast_to_fp8(_normal(m, k), False)
    return pair, wide(pair, 1)


@functools.lru_cache(maxsize=64)
def weight(groups: int, n: int, k: int) -> tuple[Fp8Pair, list[Tensor]]:
    """FP8 weights [G, N, K] and their float64 values."""
    pairs = [utils.per_block_cast_to_fp8(w, False) for w in _normal(groups, n, k)]
    return (torch.stack([q for q, _ in pairs]), torch.stack([s for _, s in pairs])), [wide(p, BLOCK) for p in pairs]


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def counts(groups: int, mean: int, most: int | None = None) -> list[int]:
    """Rows of each group: within 0.7 .. 1.3 of the mean, and one group without any."""
    draw = random.Random(groups * mean)
    rows = [min(most or mean * 2, int(mean * draw.uniform(0.7, 1.3))) for _ in range(groups)]
    rows[groups // 2] = 0
    return rows


def grouped(rows: Sequence[int], starts: Sequence[int], size: int, n: int, k: int) -> Grouped:
    """Each group's rows at its start among `size` rows, all others NaN."""
    (q, s), values = activation(max(1, sum(rows)), k)
    codes = torch.full((size, k), _NAN_CODE, dtype=torch.uint8)
    scales = torch.full((size, s.shape[1]), torch.nan)
    b, wides = weight(len(rows), n, k)
    spans, expected = [], []
    ends = itertools.accumulate(rows)
    for count, start, end, w in zip(rows, starts, ends, wides, strict=True):
        codes[start : start + count] = q.view(torch.uint8)[end - count : end]
        scales[start : start + count] = s[end - count : end]
        spans.append(slice(start, start + count))
        expected.append(values[end - count : end] @ w.mT)
    return Grouped((codes.view(q.dtype), scales), b, spans, expected)


def aligned_starts(rows: Sequence[int]) -> tuple[list[int], int]:
    """The first row of each group, where the alignment that is set puts it, and the end of the last group's padding."""
    starts, end = [], 0
    for count in rows:
        starts.append(end)
        end += utils.align(count, utils.get_mk_alignment_for_contiguous_layout())
    return starts, end


def zero_padding(problem: Grouped) -> None:
    """Sets rows of no group to what quantising zeros gives: zeros, with scales that are numbers."""
    for span in gaps(problem.spans, len(problem.a[0])):
        problem.a[0].view(torch.uint8)[span] = 0
        problem.a[1][span] = 1.0


def gaps(spans: Sequence[slice], size: int) -> Iterator[slice]:
    """The rows between, before and behind the spans."""
    end = 0
    for span in [*spans, slice(size, size)]:
        yield slice(end, span.start)
        end = span.stop


def indices(problem: Grouped) -> Tensor:
    """The group of each row, -1 for padding: i32 [M]."""
    out = torch.full((len(problem.a[0]),), -1, dtype=torch.int32)
    for g, span in enumerate(problem.spans):
        out[span] = g
    return out


def ends(problem: Grouped) -> Tensor:
    """The psum layout: i32 [G]."""
    return torch.tensor([span.stop for span in problem.spans], dtype=torch.int32)


def marked(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.full(shape, MARK, dtype=dtype)


def by_columns(pair: Fp8Pair) -> Fp8Pair:
    """The pair with column-major scales."""
    return pair[0], utils.get_mn_major_tma_aligned_tensor(pair[1])


def worst(d: Tensor, problem: Grouped) -> float:
    """The largest difference of any group of d [M, N], in units of what its dtype allows."""
    pairs = zip(problem.spans, problem.expected, strict=True)
    return max(difference(d[span], expected) for span, expected in pairs)


def difference(d: Tensor, expected: Tensor) -> float:
    """calc_diff in units of LIMIT: below 1 is right."""
    return float(testing.calc_diff(d, expected)) / LIMIT[d.dtype]

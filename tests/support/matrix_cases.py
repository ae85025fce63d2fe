"""Factors of the GEMM test matrices: distributions of rows over groups, and values that force edge cases."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from longcat_ops import per_token_group_quant_fp8
from support.covering import Row
from support.grouped import Fp8Pair

ROWS = (1, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 160, 192, 255, 256, 257, 512)
GROUPS = (1, 2, 3, 4, 8, 16, 32, 64, 512)
DISTRIBUTIONS = ("uniform", "poisson", "one hot", "only the last", "only the first", "alternating")
WEIGHTS = ("normal", "subnormal", "saturated", "equal", "powers of two")
VALUES = ("zeros", "outliers", "peaks", *WEIGHTS)


@functools.cache
def sizes(m: int, groups: int, distribution: str) -> tuple[int, ...]:
    if distribution == "poisson":
        means = torch.full((groups,), float(m))
        return tuple(torch.poisson(means, generator=torch.Generator().manual_seed(m)).int().tolist())
    return {
        "uniform": (m,) * groups,
        "one hot": tuple(m if g == groups // 2 else 1 for g in range(groups)),
        "only the last": (0,) * (groups - 1) + (m,),
        "only the first": (m,) + (0,) * (groups - 1),
        "alternating": tuple(0 if g % 2 else m for g in range(groups)),
    }[distribution]


def feasible(row: Row, products: int, elements: int) -> bool:
    """Whether a row has at most `products` products, or rows in one group only, and at most `elements` elements in its
    weights and in its other tensors. Missing factors take their cheapest value."""
    n, k = row.get("shape", (8, 128))
    m, groups = row.get("m", 1), row.get("groups", 1)
    rows = sizes(m, groups, row.get("distribution", "only the last"))
    stored = groups * max(rows) if row.get("layout") == "masked" else sum(rows)
    few = sum(rows) * n * k <= products or sum(rows) == m
    return few and groups * n * k <= elements and stored * (n + k) <= elements


def assert_every_pair(cases: Sequence[Any], factors: Mapping[str, Sequence[Any]], elements: int) -> None:
    """The cases hold each pair of values of two factors, but those of weights with more than `elements` elements."""
    for a, b in itertools.combinations(factors, 2):
        wanted = itertools.product(factors[a], factors[b])
        if (a, b) == ("shape", "groups"):
            wanted = [((n, k), groups) for (n, k), groups in wanted if groups * n * k <= elements]
        missing = set(map(str, wanted)) - {str((getattr(case, a), getattr(case, b))) for case in cases}
        assert not missing, (a, b, missing)


def operand(values: str, rows: int, k: int, quantise: Callable[[Tensor], Fp8Pair], seed: int = 0) -> Fp8Pair:
    generator = torch.Generator().manual_seed(1000 * rows + k + seed)
    x = torch.randn(rows, k, generator=generator)
    if values == "zeros":
        x.zero_()
    elif values == "outliers":  # one in each group of 128
        x[:, 5::128] = 1e6
    elif values == "peaks":  # beside these, tensor cores truncate much of the other terms
        x.abs_()[:, 5::128] *= 1000
    q, s = quantise(x)
    codes = q.view(torch.uint8)
    if values == "subnormal":
        codes &= 0x87
    elif values == "saturated":
        codes.bitwise_and_(0x80).bitwise_or_(0x7E)
    elif values == "equal":  # all products have one sign, so that errors in one direction add up
        codes.fill_(0x3D)
        s.fill_(1 / 3)
    elif values == "powers of two":
        s = s.log2().ceil().exp2()
    return q, s


def activations(values: str, rows: Sequence[int], k: int) -> list[Fp8Pair]:
    """Rows of each group."""
    q, s = operand(values, sum(rows), k, per_token_group_quant_fp8)
    return list(zip(q.split(list(rows)), s.split(list(rows)), strict=True))

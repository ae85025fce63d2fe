"""The grouped bf16 GEMMs over shapes, groups, rows of a group, distributions of rows, values, layouts, hints, dtypes:
the cases hold every pair of values, each element is within its own fp64 bound. Then what must not change a bit.

Rows of no group are NaN in the operands; in the output they keep the sentinel.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from longcat_ops import bf16_gemm_nt
from longcat_ops.testing.op_results import bits
from support import covering
from support.bf16_grouped import BACKEND, DTYPES, LAYOUTS, product, run_contiguous, run_masked, run_offset
from support.grouped import assert_close
from support.matrix_cases import DISTRIBUTIONS, GROUPS, ROWS, assert_every_pair, feasible, sizes

pytestmark = pytest.mark.long

EMULATED = BACKEND == "emu"  # slow: few and small cases; test_bf16_gemm_emu.py has the kernel's edge cases


class Case(NamedTuple):
    shape: tuple[int, int]  # N, K
    m: int  # rows of a group that has some
    groups: int
    distribution: str
    values: str  # of activations
    weights: str
    layout: str
    slack: int  # where groups start, see _run
    hint: float | None  # in multiples of m
    split_k: int  # of the offset layout
    wide: bool  # rows and groups of operands lie apart
    operands: torch.dtype
    out: torch.dtype

    def __str__(self) -> str:
        n, k = self.shape
        return f"{n}x{k}-{self.groups}x{self.m}-{self.distribution}-{self.values} x {self.weights}-{self.layout}"


# N below, at and past the edge of a tile of 64 or 128 rows; K of a part of a stage of 64, of several, and of models.
SMALL = [(8, 8), (72, 72), (160, 136), (160, 384), (576, 384), (160, 2048), (160, 6144), (136, 7168)]
LARGE = [(576, 6144), (1472, 2048), (6144, 2048), (7168, 2048), (4096, 6144), (4096, 7168)]
WEIGHTS = ("normal", "subnormal", "large", "equal", "powers of two")
VALUES = ("zeros", "outliers", "peaks", *WEIGHTS)

FACTORS: dict[str, Sequence[Any]] = {
    "shape": SMALL,
    "m": ROWS,
    "groups": GROUPS,
    "distribution": DISTRIBUTIONS,
    "values": VALUES,
    "weights": WEIGHTS,
    "layout": tuple(LAYOUTS),
    "slack": range(8),
    "hint": (None, 0.0, 0.5, 1.0, 1e6),
    "split_k": (1, 2, 4),
    "wide": (False, True),
    "operands": DTYPES,
    "out": (torch.float32, torch.bfloat16),
}


def _cases(products: int, elements: int, /, **factors: Sequence[Any]) -> list[Case]:
    rows = covering.design(FACTORS | factors, functools.partial(feasible, products=products, elements=elements))
    return sorted((Case(**row) for row in rows), key=lambda case: (case.shape, case.weights, case.groups))


SMALL_CASES = _cases(2**24, 2**23) if not EMULATED else _cases(2**21, 2**20, shape=SMALL[:4], m=ROWS[:17])
LARGE_CASES = _cases(
    2**30, 2**27, shape=LARGE, m=(1, 8, 33), groups=(1, 2), distribution=("uniform", "poisson", "one hot"),
    values=("normal", "outliers", "equal"), weights=("normal",), slack=(0, 3, 5), hint=(None, 0.5), wide=(False,),
)  # fmt: skip
FULL_CASES = _cases(2**34, 2**28, shape=SMALL + LARGE)


def operand(values: str, rows: int, k: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    x = torch.randn(rows, k, generator=torch.Generator().manual_seed(1000 * rows + k + seed))
    if values == "zeros":
        x.zero_()
    elif values == "outliers":
        x[:, 5::128] = 1e6
    elif values == "peaks":  # beside these, tensor cores truncate much of the other terms
        x.abs_()[:, 5::128] *= 1000
    elif values == "subnormal":
        x *= 2.0**-128
    elif values == "large":
        x *= 2.0**50
    elif values == "equal":  # all products have one sign, so that errors in one direction add up
        x.fill_(1 / 3)
    elif values == "powers of two":
        x = x.sign() * x.abs().log2().ceil().exp2()
    return x.to(dtype)


@functools.lru_cache(maxsize=2)
def base_weights(values: str, n: int, k: int, dtype: torch.dtype) -> Tensor:
    """D different weights [D, N, K]; D is 1 where they are large."""
    return torch.stack([operand(values, n, k, dtype, seed) for seed in range(min(8, max(1, 2**19 // (n * k))))])


def factors(groups: int, count: int) -> Tensor:
    """[G, 1, 1]: group g's weight is this factor times base weight g % count; its neighbours' differ in sign."""
    return (-2.0) ** (torch.arange(groups) // count % 4)[:, None, None]


@functools.lru_cache(maxsize=2)
def weights(values: str, n: int, k: int, groups: int, dtype: torch.dtype) -> Tensor:
    base = base_weights(values, n, k, dtype)
    return base[torch.arange(groups) % len(base)] * factors(groups, len(base)).to(dtype)


def _run(case: Case, parts: Sequence[Tensor], b: Tensor) -> list[Tensor]:
    """slack: the first offset; for masked groups no spare row, one, or as many as make 64 i - 1, 64 i or 64 i + 1 rows;
    for contiguous rows the number of rows of index -1 around each group."""
    hint = None if case.hint is None else int(case.hint * case.m)
    if case.layout == "offset":
        hints = {"max_m_hint": hint, "counts_ready": case.slack % 2 == 1, "split_k": case.split_k}
        return run_offset(parts, b, case.out, wide=case.wide, lead=case.slack, **hints)
    if case.layout == "contiguous":
        return run_contiguous(parts, b, case.out, wide=case.wide, gap=case.slack)
    most = max(map(len, parts))
    spare = (0, 1, *((end - most) % 64 for end in (-1, 0, 1)))[case.slack % 5]
    return run_masked(parts, b, case.out, wide=case.wide, spare=spare, expected_m=hint or 0)


def activations(values: str, rows: Sequence[int], k: int, dtype: torch.dtype) -> list[Tensor]:
    return list(operand(values, sum(rows), k, dtype).split(list(rows)))


def check(case: Case) -> None:
    b = weights(case.weights, *case.shape, case.groups, case.operands)
    rows = sizes(case.m, case.groups, case.distribution)
    parts = activations(case.values, rows, case.shape[1], case.operands)
    outs = _run(case, parts, b)  # below the normal range, each product and each result loses up to half its last bit
    base = base_weights(case.weights, *case.shape, case.operands)
    for i, one in enumerate(base):  # all groups of one base weight at once
        mine = [g for g in range(i, case.groups, len(base)) if len(outs[g])]
        if mine:
            value, bound = product(torch.cat([parts[g] for g in mine]), one)
            scale = factors(case.groups, len(base))[:, 0].double()
            times = torch.cat([scale[g].expand(len(outs[g]), 1) for g in mine])
            lost = 2.0**-149 * case.shape[1] + torch.finfo(case.out).smallest_normal * torch.finfo(case.out).eps / 2
            assert_close(torch.cat([outs[g] for g in mine]), value * times, bound * times.abs() + lost)


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_small_shapes(case: Case) -> None:
    check(case)


@pytest.mark.skipif(EMULATED, reason="too large for the emulator")
@pytest.mark.parametrize("case", LARGE_CASES, ids=str)
def test_shapes_of_models(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.skipif(EMULATED, reason="too large for the emulator")
@pytest.mark.parametrize("case", FULL_CASES, ids=str)
def test_every_shape(case: Case) -> None:
    check(case)


@pytest.mark.skipif(EMULATED, reason="there are fewer cases")
@pytest.mark.parametrize(
    ("cases", "shapes", "elements"), [(SMALL_CASES, SMALL, 2**23), (FULL_CASES, SMALL + LARGE, 2**28)], ids=["", "full"]
)
def test_the_cases_hold_every_pair(cases: list[Case], shapes: list[tuple[int, int]], elements: int) -> None:
    """Only weights that are too large are left out."""
    assert_every_pair(cases, FACTORS | {"shape": shapes}, elements)


N, K = 160, 384
KERNELS = pytest.mark.skipif(BACKEND == "reference", reason="sums of the reference follow the number of rows")


@KERNELS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_does_not_depend_on_its_group(layout: str, dtype: torch.dtype) -> None:
    """All groups start with the same rows, then hold them in reverse: bits depend on neither row count nor place, and
    are those of the dense product."""
    counts = ROWS[:17] if EMULATED else ROWS
    (one,) = weights("normal", N, K, 1, dtype)
    (pool,) = activations("normal", [max(counts)], K, dtype)
    b = one.expand(len(counts), N, K).contiguous()
    expected = bf16_gemm_nt(pool, one, torch.empty(len(pool), N))
    for turn in (pool, pool.flip(0)):
        outs = LAYOUTS[layout]([turn[:m] for m in counts], b)
        rows = expected if turn is pool else expected.flip(0)
        assert bits(outs) == bits([rows[:m] for m in counts])


@KERNELS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_order_of_experts_does_not_matter(layout: str) -> None:
    rows = (9, 0, 33, 1, 8, 65)
    b, parts = weights("normal", N, K, len(rows), DTYPES[0]), activations("normal", rows, K, DTYPES[0])
    expected = bits(LAYOUTS[layout](parts, b))
    for order in itertools.islice(itertools.permutations(range(len(rows))), 1, 720, 89):
        outs = LAYOUTS[layout]([parts[g] for g in order], b[list(order)])
        assert bits([outs[order.index(g)] for g in range(len(rows))]) == expected


@pytest.mark.parametrize("groups", [1, 3, 512])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_group_has_rows(layout: str, groups: int) -> None:
    """Nothing is written, and operands without any row are accepted."""
    none = {"offset": "lead", "masked": "spare", "contiguous": "gap"}[layout]
    b, parts = weights("normal", 8, 72, groups, DTYPES[0]), activations("normal", [0] * groups, 72, DTYPES[0])
    for options in ({}, {none: 0}):
        assert [out.shape for out in LAYOUTS[layout](parts, b, **options)] == [(0, 8)] * groups

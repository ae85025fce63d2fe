"""The FP8 GEMMs over shapes, numbers of groups, rows of a group, distributions of rows, values, layouts, hints, dtypes:
the cases hold every pair of values, each element is within its own fp64 bound. Then what must not change a bit.

Rows of no group are NaN in the operands; in the output they keep the NaN or the sentinel that they hold.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from longcat_ops import fp8_gemm_nt, per_block_quant_fp8
from longcat_ops.testing.op_results import bits
from support import carried, covering, grouped
from support.grouped import SENTINEL, Fp8Pair, assert_close, gemm, place, run_contiguous, run_masked, run_offset
from support.matrix_cases import (
    DISTRIBUTIONS,
    GROUPS,
    ROWS,
    VALUES,
    WEIGHTS,
    activations,
    assert_every_pair,
    feasible,
    operand,
    sizes,
)

pytestmark = pytest.mark.long

BACKEND = "cuda" if carried.active else os.environ.get("LONGCAT_OPS_BACKEND", "cpu")
EMULATED = BACKEND == "emu"  # slow: few and small cases; test_moe_gemm_emu.py has the kernel's edge cases


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
    column_major: bool
    dtype: torch.dtype
    fill: float

    def __str__(self) -> str:
        n, k = self.shape
        return f"{n}x{k}-{self.groups}x{self.m}-{self.distribution}-{self.values} x {self.weights}-{self.layout}"


# N below, at and past the edge of a block; K of an even and an odd number of blocks, and of models.
SMALL = [(8, 128), (160, 128), (160, 256), (160, 384), (576, 384), (160, 2048), (160, 6144), (160, 7168)]
LARGE = [(576, 6144), (1472, 2048), (6144, 2048), (7168, 2048), (4096, 6144), (4096, 7168)]

FACTORS: dict[str, Sequence[Any]] = {
    "shape": SMALL,
    "m": ROWS,
    "groups": GROUPS,
    "distribution": DISTRIBUTIONS,
    "values": VALUES,
    "weights": WEIGHTS,
    "layout": ("offset", "masked", "contiguous"),
    "slack": range(8),
    "hint": (None, 0.0, 0.5, 1.0, 1e6),
    "split_k": (1, 2, 4),
    "column_major": (False, True),
    "dtype": (torch.float32, torch.bfloat16),
    "fill": (SENTINEL, torch.nan),
}


def _cases(products: int, elements: int, /, **factors: Sequence[Any]) -> list[Case]:
    rows = covering.design(FACTORS | factors, functools.partial(feasible, products=products, elements=elements))
    return sorted((Case(**row) for row in rows), key=lambda case: (case.shape, case.weights, case.groups))


SMALL_CASES = _cases(2**25, 2**24) if not EMULATED else _cases(2**21, 2**20, shape=SMALL[:4], m=ROWS[:17])
LARGE_CASES = _cases(
    2**30, 2**27, shape=LARGE, m=(1, 8, 33), groups=(1, 2), distribution=("uniform", "poisson", "one hot"),
    values=("normal", "outliers", "equal"), weights=("normal",), slack=(0, 3, 5), hint=(None, 0.5),
)  # fmt: skip
FULL_CASES = _cases(2**34, 2**28, shape=SMALL + LARGE)


@functools.lru_cache(maxsize=2)
def base_weights(values: str, n: int, k: int) -> tuple[Fp8Pair, Tensor]:
    """D different weights [D, N, K] and their fp64 values; D is 1 where they are large."""
    count = min(8, max(1, 2**19 // (n * k)))
    pairs = [operand(values, n, k, per_block_quant_fp8, seed) for seed in range(count)]
    q, s = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
    return (q, s), grouped.wide(q, s, block_rows=128)


def factor(group: int, count: int) -> float:
    """Group g's weight is this factor times base weight g % count; its sign and scale differ from its neighbours'."""
    return (-2.0) ** (group // count % 4)


@functools.lru_cache(maxsize=2)
def weights(values: str, n: int, k: int, groups: int) -> Fp8Pair:
    (q, s), _ = base_weights(values, n, k)
    index = torch.arange(groups) % len(q)
    factors = torch.tensor([factor(g, len(q)) for g in range(groups)])[:, None, None]
    codes = q.view(torch.uint8)[index]
    codes ^= (factors < 0).to(torch.uint8) << 7
    return codes.view(q.dtype), s[index] * factors.abs()


def _run(case: Case, parts: Sequence[Fp8Pair], rhs: Fp8Pair) -> list[Tensor]:
    """slack: the first offset; for masked groups no spare row, one, or as many as make 64 i - 1, 64 i or 64 i + 1 rows;
    for contiguous rows the number of rows of index -1 around each group."""
    options: dict[str, Any] = {"column_major": case.column_major, "fill": case.fill}
    hint = None if case.hint is None else int(case.hint * case.m)
    if case.layout == "offset":
        hints = {"max_m_hint": hint, "counts_ready": case.slack % 2 == 1, "split_k": case.split_k}
        return run_offset(parts, rhs, case.dtype, lead=case.slack, **hints, **options)
    if case.layout == "contiguous":
        return run_contiguous(parts, rhs, case.dtype, gap=case.slack, **options)
    most = max(len(q) for q, _ in parts)
    spare = (0, 1, *((end - most) % 64 for end in (-1, 0, 1)))[case.slack % 5]
    return run_masked(parts, rhs, case.dtype, spare=spare, expected_m=hint or 0, **options)


def check(case: Case) -> None:
    rhs = weights(case.weights, *case.shape, case.groups)
    parts = activations(case.values, sizes(case.m, case.groups, case.distribution), case.shape[1])
    outs = _run(case, parts, rhs)
    _, base = base_weights(case.weights, *case.shape)
    for i, b in enumerate(base):  # all groups of one base weight at once
        mine = [g for g in range(i, case.groups, len(base)) if len(outs[g])]
        if mine:
            rows = tuple(torch.cat(tensors) for tensors in zip(*(parts[g] for g in mine), strict=True))
            value, bound = gemm(rows, b)
            times = torch.tensor([[factor(g, len(base))] for g in mine for _ in outs[g]], dtype=torch.float64)
            assert_close(torch.cat([outs[g] for g in mine]), value * times, bound * times.abs())


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


@pytest.mark.parametrize(
    ("cases", "shapes", "elements"), [(SMALL_CASES, SMALL, 2**24), (FULL_CASES, SMALL + LARGE, 2**28)], ids=["", "full"]
)
@pytest.mark.skipif(EMULATED, reason="there are fewer cases")
def test_the_cases_hold_every_pair(cases: list[Case], shapes: list[tuple[int, int]], elements: int) -> None:
    """Only weights that are too large are left out. Groups start at every number mod 8."""
    assert_every_pair(cases, FACTORS | {"shape": shapes}, elements)
    starts: set[int] = set()
    for case in cases:
        rows = sizes(case.m, case.groups, case.distribution)
        if case.layout == "offset":
            ends = itertools.accumulate(rows, initial=case.slack)
            starts |= {start % 8 for start, size in zip(ends, rows, strict=False) if size}
    assert starts == set(range(8))


@pytest.mark.parametrize("groups", [1, 3, 512])
@pytest.mark.parametrize("layout", [run_offset, run_masked, run_contiguous])
def test_no_group_has_rows(layout: grouped.Run, groups: int) -> None:
    """Nothing is written, and operands without any row are accepted."""
    none = {run_offset: "lead", run_masked: "spare", run_contiguous: "gap"}[layout]
    rhs, parts = weights("normal", 8, 128, groups), activations("normal", [0] * groups, 128)
    for options in ({}, {none: 0}):
        assert [out.shape for out in layout(parts, rhs, **options)] == [(0, 8)] * groups


N, K = 160, 384
SHORT = ROWS[:17] if EMULATED else ROWS


@pytest.mark.skipif(BACKEND == "reference", reason="sums of the reference follow the number of rows")
@pytest.mark.parametrize("layout", [run_offset, run_masked, run_contiguous])
def test_a_row_does_not_depend_on_its_group(layout: grouped.Run) -> None:
    """All groups start with the same rows, then hold them in reverse: bits depend on neither row count nor place."""
    b, sb = weights("normal", N, K, 1)
    (pool,) = activations("normal", [max(SHORT)], K)
    rhs = b.view(torch.uint8).expand(len(SHORT), N, K).contiguous().view(b.dtype), sb.expand(len(SHORT), -1, -1)
    outs = layout([grouped.select(pool, range(m)) for m in SHORT], rhs)
    reverse = layout([grouped.select(pool, reversed(range(m))) for m in SHORT], rhs)
    for out, turned in zip(outs, reverse, strict=True):
        assert bits(out) == bits(outs[-1][: len(out)]) == bits(turned.flip(0))
    assert len(set(bits(list(outs[-1])))) == max(SHORT)


def test_one_expert_is_a_dense_product() -> None:
    """Every layout has the bits of the dense product; the reference is within twice the bound."""
    rhs, (_, b) = weights("normal", N, K, 1), base_weights("normal", N, K)
    for m in SHORT:
        (part,) = activations("normal", [m], K)
        dense = fp8_gemm_nt(part, (rhs[0][0], rhs[1][0]), torch.empty(m, N))
        for layout in (run_offset, run_masked, run_contiguous):
            (out,) = layout([part], rhs)
            if BACKEND == "reference":
                assert_close(out, dense.double(), 2 * gemm(part, b[0])[1])
            else:
                assert bits(out) == bits(dense)


@pytest.mark.parametrize("layout", [run_offset, run_masked, run_contiguous])
def test_the_order_of_experts_does_not_matter(layout: grouped.Run) -> None:
    rows = (9, 0, 33, 1, 8, 65)
    b, sb = weights("normal", N, K, len(rows))
    parts = activations("normal", rows, K)
    expected = bits(layout(parts, (b, sb)))
    for order in itertools.islice(itertools.permutations(range(len(rows))), 1, 720, 89):
        outs = layout([parts[g] for g in order], (b.view(torch.uint8)[list(order)].view(b.dtype), sb[list(order)]))
        assert bits([outs[order.index(g)] for g in range(len(rows))]) == expected


@pytest.mark.parametrize("layout", [run_offset, run_masked, run_contiguous])
def test_repeats_have_the_same_bits(layout: grouped.Run) -> None:
    rhs, parts = weights("normal", N, K, 4), activations("normal", (9, 0, 33, 1), K)
    expected = bits(layout(parts, rhs))
    for _ in range(3 if EMULATED else 100):
        assert bits(layout(parts, rhs)) == expected


@pytest.mark.parametrize("aligned", [8, 64, 128])
def test_groups_that_start_at_a_multiple(aligned: int) -> None:
    """DeepGEMM's aligned group ends work as offsets: padding rows belong to the group before them and stay NaN."""
    rows = (1, 0, aligned + 1, aligned, 7)
    rhs, parts = weights("normal", N, K, len(rows)), activations("normal", rows, K)
    outs = run_offset([place([part], [0], len(part[0]) + -len(part[0]) % aligned) for part in parts], rhs, lead=aligned)
    compact = run_offset(parts, rhs)
    for g, (out, m) in enumerate(zip(outs, rows, strict=True)):
        assert bool(out[m:].isnan().all()) and len(out) % aligned == 0
        b = grouped.wide(rhs[0][g], rhs[1][g], block_rows=128)
        assert_close(out[:m], *gemm(parts[g], b))
        assert BACKEND == "reference" or bits(out[:m]) == bits(compact[g])

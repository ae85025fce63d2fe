"""m_grouped_fp8_swiglu_gemm_nt_offset over shapes, groups, rows of a group, distributions, values, hints: the cases
hold every pair of values. Codes and scales must be those of float32 values within the fp64 bound, and near those of the
GEMM followed by silu_and_mul_quant_fp8. Then NaN, zeros and overflow, which stay where they are.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from longcat_ops import interleave_gate_up, per_block_quant_fp8, silu_and_mul_quant_fp8
from longcat_ops.testing.op_results import bits
from support import carried, covering
from support.build_oracle import codes_of
from support.grouped import NAN_CODE, Fp8Pair, run_offset, select
from support.matrix_cases import DISTRIBUTIONS, GROUPS, ROWS, VALUES, WEIGHTS, activations, feasible, operand, sizes
from support.near_oracle import silu_and_mul
from support.swiglu_oracle import FLOOR_SCALE, assert_quantised, expected, run

pytestmark = pytest.mark.long

BACKEND = "cuda" if carried.active else os.environ.get("LONGCAT_OPS_BACKEND", "cpu")
EMULATED = BACKEND == "emu"  # slow: few and small cases


class Case(NamedTuple):
    shape: tuple[int, int]  # I, K
    m: int  # rows of a group that has some
    groups: int
    distribution: str
    values: str  # of activations
    weights: str
    lead: int  # where the first group starts
    hint: float | None  # in multiples of m
    column_major: bool

    def __str__(self) -> str:
        width, k = self.shape
        return f"{width}x{k}-{self.groups}x{self.m}-{self.distribution}-{self.values} x {self.weights}"


SMALL = [(8, 128), (128, 384), (136, 128), (160, 256), (576, 128), (160, 2048), (136, 6144), (8, 7168)]
LARGE = [(576, 6144), (2048, 6144)]

FACTORS: dict[str, Sequence[Any]] = {
    "shape": SMALL,
    "m": ROWS,
    "groups": GROUPS,
    "distribution": DISTRIBUTIONS,
    "values": VALUES,
    "weights": WEIGHTS,
    "lead": range(8),
    "hint": (None, 0.0, 0.5, 1.0, 1e6),
    "column_major": (False, True),
}


def _cases(products: int, elements: int, /, **factors: Sequence[Any]) -> list[Case]:
    rows = covering.design(FACTORS | factors, functools.partial(feasible, products=products, elements=elements))
    return sorted((Case(**row) for row in rows), key=lambda case: (case.shape, case.weights, case.groups))


if EMULATED:
    SMALL_CASES = _cases(2**20, 2**19, shape=SMALL[:4], m=ROWS[:17], groups=GROUPS[:5])
else:
    SMALL_CASES = _cases(2**23, 2**21, m=(1, 7, 8, 9, 17, 31, 33, 64, 65, 127, 129, 192, 257), groups=GROUPS[:7])
LARGE_CASES = _cases(2**30, 2**25, shape=LARGE, m=(1, 33), groups=(1,), distribution=("uniform",), weights=("normal",),
                     values=("normal", "outliers"), lead=(3, 4), hint=(None, 0.5))  # fmt: skip
FULL_CASES = _cases(2**32, 2**26, shape=SMALL + LARGE)


def _interleaved(gate: Fp8Pair, up: Fp8Pair) -> Fp8Pair:
    return interleave_gate_up(*(torch.cat(tensors, 1) for tensors in zip(gate, up, strict=True)))


@functools.lru_cache(maxsize=2)
def gate_up(values: str, width: int, k: int, groups: int) -> tuple[Fp8Pair, Fp8Pair, Fp8Pair]:
    """Gate [G, I, K], up, and both interleaved."""
    halves = []
    for first in (0, groups):  # seeds
        pairs = [operand(values, width, k, per_block_quant_fp8, first + g) for g in range(groups)]
        halves.append(tuple(torch.stack(tensors) for tensors in zip(*pairs, strict=True)))
    return *halves, _interleaved(*halves)


def check(case: Case) -> None:
    gate, up, both = gate_up(case.weights, *case.shape, case.groups)
    parts = activations(case.values, sizes(case.m, case.groups, case.distribution), case.shape[1])
    hint = None if case.hint is None else int(case.hint * case.m)
    options = {"max_m_hint": hint, "counts_ready": case.lead % 2 == 1, "column_major": case.column_major}
    h, sh = (torch.cat(tensors) for tensors in zip(*run(parts, both, lead=case.lead, **options), strict=True))
    value, bound = (torch.cat(tensors) for tensors in zip(*expected(parts, both), strict=True))
    assert_quantised(h, sh, value, bound)
    if case.values == "zeros":
        assert not (codes_of(h) & 0x7F).any() and (sh.numpy() == FLOOR_SCALE).all()

    # Both results are within the bound, so their values of h are within twice the bound of each other.
    z, v = (torch.cat(run_offset(parts, half, **options)) for half in (gate, up))
    chain = silu_and_mul_quant_fp8(torch.cat([z, v], 1))
    assert_quantised(*chain, value, bound)
    assert_quantised(h, sh, silu_and_mul(z.double(), v.double())[0], 2 * bound)
    if BACKEND != "reference":  # its order of sums depends on the number of columns
        assert bits((h, sh)) == bits(chain)


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


N, K = 160, 384  # two blocks of h, the second one ragged
SHORT = ROWS[:17] if EMULATED else ROWS


@pytest.mark.parametrize("rows", [1, 8, 9, 65])
def test_a_block_of_zeros_leaves_the_others_alone(rows: int) -> None:
    """Where gate or up of a block is zero, codes are 0 and the scale is the smallest; other blocks do not change."""
    gate, up, both = gate_up("normal", N, K, 2)
    parts = activations("normal", (rows, rows), K)
    (plain, plain_s), plain_second = run(parts, both)
    for half, block in itertools.product(range(2), range(2)):
        pair = [(q.clone(), s.clone()) for q, s in (gate, up)]
        columns = slice(128 * block, 128 * (block + 1))
        pair[half][0].view(torch.uint8)[0, columns] = 0
        (h, sh), second = run(parts, _interleaved(*pair))
        assert not (codes_of(h[:, columns]) & 0x7F).any() and (sh[:, block].numpy() == FLOOR_SCALE).all()
        others = slice(128, None) if block == 0 else slice(0, 128)
        assert bits(h[:, others]) == bits(plain[:, others]) and torch.equal(sh[:, 1 - block], plain_s[:, 1 - block])
        assert bits(second) == bits(plain_second)


# Of gate (0) or up (1): the values (0) or scales (1), the element that is NaN, the block of h that it reaches.
NANS = [(0, 0, (2, 5, 7), 0), (1, 0, (2, 130, 7), 1), (0, 1, (2, 0, 1), 0), (1, 1, (2, 1, 2), 1)]


@pytest.mark.parametrize(("half", "tensor", "element", "block"), NANS)
@pytest.mark.parametrize("rows", [1, 8, 9, 65])
def test_nan_stays_in_its_row_or_block(rows: int, half: int, tensor: int, element: tuple[int, ...], block: int) -> None:
    """A NaN in a row of activations or in its scale reaches that row; one in a weight or its scale reaches its block of
    128 columns, only in the weight's own group."""
    gate, up, both = gate_up("normal", N, K, 3)
    parts = [select(part, range(len(part[0]))) for part in activations("normal", (rows, rows + 1, rows), K)]
    plain = run(parts, both)
    parts[0][0].view(torch.uint8)[rows - 1, 200] = NAN_CODE
    parts[1][1][rows, 2] = torch.nan
    weights = [(q.clone(), s.clone()) for q, s in (gate, up)]
    if tensor == 0:
        weights[half][0].view(torch.uint8)[element] = NAN_CODE
    else:
        weights[half][1][element] = torch.nan
    for g, (h, sh) in enumerate(run(parts, _interleaved(*weights))):
        nan = torch.zeros(len(h), 2, dtype=torch.bool)
        nan[(slice(None), block) if g == 2 else -1] = True
        assert torch.equal(sh.isnan(), nan) and bits(sh[~nan]) == bits(plain[g][1][~nan])
        columns = nan.repeat_interleave(128, 1)[:, :N].numpy()
        assert (codes_of(h) == np.where(columns, NAN_CODE, codes_of(plain[g][0]))).all()


@pytest.mark.parametrize("rows", [8, 9])
def test_products_that_overflow(rows: int) -> None:
    """silu(gate) * up past the largest float32 is infinite, as is the scale of its 128 columns; its code is NaN, and
    the codes beside it are 0."""
    _, _, both = gate_up("normal", N, K, 1)
    ((q, s),) = activations("normal", (rows,), K)
    s = s.clone()
    s[rows - 1] *= 1e21
    ((h, sh),) = run([(q, s)], both)
    ((value, bound),) = expected([(q, s)], both)
    value = torch.where(value.abs() > torch.finfo(torch.float32).max, value.sign() * torch.inf, value)
    assert value[-1, :128].isinf().any() and value[-1, 128:].isinf().any()
    assert_quantised(h, sh, value, bound)
    assert sh.isinf().tolist() == [[row == rows - 1] * 2 for row in range(rows)]


def test_a_row_does_not_depend_on_its_group() -> None:
    """All groups start with the same rows, then hold them in reverse: bits depend on neither row count nor place."""
    stable = [m for m in SHORT if m <= 8] if BACKEND == "reference" else SHORT  # its order of sums changes past 8
    q, s = (t.expand(len(stable), -1, -1).contiguous() for t in gate_up("normal", N, K, 1)[2])
    (pool,) = activations("normal", [max(stable)], K)
    outs = run([select(pool, range(m)) for m in stable], (q, s))
    reverse = run([select(pool, reversed(range(m))) for m in stable], (q, s))
    for (h, sh), (turned, turned_s) in zip(outs, reverse, strict=True):
        turned = turned.view(torch.uint8).flip(0), turned_s.flip(0)
        assert bits([h, sh]) == bits([t[: len(h)] for t in outs[-1]]) == bits(turned)


def test_repeats_and_the_order_of_experts() -> None:
    rows = (9, 0, 33, 1, 8, 65)
    _, _, (b, sb) = gate_up("normal", N, K, len(rows))
    parts = activations("normal", rows, K)
    plain = bits(run(parts, (b, sb)))
    for _ in range(3 if EMULATED else 50):
        assert bits(run(parts, (b, sb))) == plain
    for order in itertools.islice(itertools.permutations(range(len(rows))), 1, 720, 89):
        outs = run([parts[g] for g in order], (b.view(torch.uint8)[list(order)].view(b.dtype), sb[list(order)]))
        assert bits([outs[order.index(g)] for g in range(len(rows))]) == plain

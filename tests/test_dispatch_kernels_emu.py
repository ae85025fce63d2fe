"""moe_permute_quant, moe_permute and moe_combine in the host emulator, its detectors on: the quantiser's bits at every
row the plan names and no other byte touched; and the reference's sums, bit for bit, whatever the layout or schedule.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from build_oracle import assert_same_bits, hostile_input
from emulated_kernels import (  # noqa: F401  (fixtures of every test here)
    DTYPES,
    LAYOUTS,
    apart,
    assert_gaps_untouched,
    copied,
    library,
    one_thread,
    run,
    scales,
    schedule,
)
from longcat_ops import Plan, Routing, reference
from longcat_ops.ops import emulated

# (T, K, H): no token, one, more than a block's warps; up to 32 choices; half groups, odd chunks, a row of 24 warps.
SHAPES = [(0, 4, 128), (1, 1, 8), (2, 4, 160), (7, 12, 576), (31, 8, 128), (33, 12, 136), (96, 32, 8), (1, 12, 6144)]
ALL_SHAPES = [(t, k, h) for t in (0, 1, 2, 7, 31, 33, 96) for k in (1, 4, 8, 12, 32) for h in (8, 128, 160, 576)]
SMALL_SHAPES = [(2, 4, 160), (7, 12, 576), (5, 32, 40)]


def choices(tokens: int, k: int, seed: int = 0) -> Plan:
    """0 to k rows per token; the first token has all, the second none."""
    g = torch.Generator().manual_seed(100 * tokens + k + seed)
    ids = torch.rand(tokens, 2 * k, generator=g).argsort(1)[:, :k].to(torch.int32)
    ids.masked_fill_(ids >= k + k // 2, -1)
    ids[:1] = torch.arange(k, dtype=torch.int32)
    ids[1:2] = -1
    return reference.moe_plan(ids, 2 * k)


def permute_quant(x: Tensor, plan: Plan, layout: tuple[int, ...] = LAYOUTS[0],
                  column_major: bool = False) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(q, s) of the kernel in outputs of fillers."""
    gap, offset, q_gap, q_offset = layout
    rows, width = len(plan.src_of), x.shape[1]
    q = apart(rows, width, torch.float8_e4m3fn, q_gap, q_offset)
    s = scales(rows, -(-width // 128), column_major)
    run("moe_permute_quant", copied(x, gap, offset), plan.row_of, plan.src_of, q, s)
    assert_gaps_untouched(q, s)
    return q, s


def assert_permuted(actual: Tensor, rows: Tensor, plan: Plan) -> None:
    """Each row of the plan is that of its token; the others are fillers still."""
    expected = apart(*actual.shape, actual.dtype)
    used = plan.src_of >= 0
    token = plan.src_of[used].long() // plan.row_of.shape[1]
    raw = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[actual.element_size()]
    expected.view(raw)[used] = rows.view(raw)[token]
    assert_same_bits(actual, expected)


def check_permute_quant(x: Tensor, plan: Plan, layout: tuple[int, ...], column_major: bool) -> None:
    q, s = permute_quant(x, plan, layout, column_major)
    expected_q, expected_s = reference.per_token_group_quant_fp8(x)
    assert_permuted(q, expected_q, plan)
    assert_permuted(s, expected_s, plan)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "k", "width"), SHAPES)
def test_permute_quant(tokens: int, k: int, width: int, dtype: torch.dtype) -> None:
    check_permute_quant(hostile_input(tokens, width, dtype), choices(tokens, k), LAYOUTS[0], tokens % 2 == 1)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("tokens", "k", "width"), SMALL_SHAPES)
def test_permute_quant_layouts(tokens: int, k: int, width: int, layout: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        for column_major in (False, True):
            check_permute_quant(hostile_input(tokens, width, dtype), choices(tokens, k), layout, column_major)


def test_a_plan_that_disagrees_with_itself_is_safe() -> None:
    """Rows that do not exist, one row for two choices, sources that do not exist: nothing is written there, and of two
    choices that want a row the one it names has it."""
    x, plan = hostile_input(7, 160, torch.bfloat16), choices(7, 4)
    rows = len(plan.src_of)
    garbage = torch.tensor([rows, 2**31 - 1, -2, -(2**31)], dtype=torch.int32)
    last = int(plan.offsets[-1]) - 1
    at_garbage = plan.row_of[0].clone()
    plan.row_of[0] = garbage
    plan.row_of[1] = last
    plan.src_of[at_garbage.long()] = garbage.neg()
    q, s = permute_quant(x, plan)
    expected_q, expected_s = reference.per_token_group_quant_fp8(x)
    plan.src_of[at_garbage.long()] = -1
    assert_permuted(q, expected_q, plan)
    assert_permuted(s, expected_s, plan)


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "k", "width"), ALL_SHAPES)
def test_every_shape(tokens: int, k: int, width: int) -> None:
    for dtype in DTYPES:
        test_permute_quant(tokens, k, width, dtype)
        test_permute(tokens, k, width, dtype)
        test_combine(tokens, k, width, dtype)


def permute(x: Tensor, plan: Plan, gap: int = 0, offset: int = 0) -> Tensor:
    out, source = apart(len(plan.src_of), x.shape[1], x.dtype, gap, offset), copied(x, gap, offset)
    emulator, k = emulated.load(), ctypes.c_int32(plan.row_of.shape[1])
    row_of, src_of = emulated._data(plan.row_of), emulated._data(plan.src_of)
    arguments = (emulated._matrix(source), row_of, k, src_of, ctypes.c_int64(len(plan.src_of)), emulated._matrix(out))
    assert emulator.lc_moe_permute(*arguments, None) == 0, emulator.lc_last_error().decode()
    assert_gaps_untouched(out)
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "k", "width"), SHAPES)
def test_permute(tokens: int, k: int, width: int, dtype: torch.dtype) -> None:
    x, plan = hostile_input(tokens, width, dtype), choices(tokens, k)
    for gap, offset in ((0, 0), (8, 0), (3, 1)):
        assert_permuted(permute(x, plan, gap, offset), x, plan)


def combine_case(tokens: int, k: int, width: int, y_dtype: torch.dtype, dtype: torch.dtype) -> tuple:
    """(y, plan, routing, x, add): hostile values in all of them, in zero_weight a NaN; unused rows of y NaN."""
    plan, g = choices(tokens, k), torch.Generator().manual_seed(width)
    y = hostile_input(len(plan.src_of), width, y_dtype, seed=1)
    y[int(plan.offsets[-1]) :] = torch.nan
    weights, zero_weight = torch.rand(tokens, k, generator=g) * 4, torch.rand(tokens, generator=g)
    weights[::5, 0] *= -1e30
    zero_weight[6:7] = torch.nan
    unused = torch.zeros(1, dtype=torch.int32)
    routing = Routing(unused, weights, zero_weight, unused, unused, unused)
    return y, plan, routing, hostile_input(tokens, width, dtype, 2), hostile_input(tokens, width, dtype, 3)


def combine(y: Tensor, plan: Plan, routing: Routing, x: Tensor, add: Tensor | None = None,
            layout: tuple[int, ...] = LAYOUTS[0]) -> Tensor:  # fmt: skip
    gap, offset, *_ = layout
    out = apart(*x.shape, x.dtype, gap, offset)
    operands = (t if t is None else copied(t, gap, offset) for t in (y, x, add))
    y, x, add = operands
    run("moe_combine", y, plan.row_of, routing.weights, routing.zero_weight, x, add, out)
    assert_gaps_untouched(out)
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "k", "width"), SHAPES)
def test_combine(tokens: int, k: int, width: int, dtype: torch.dtype) -> None:
    y, plan, routing, x, add = combine_case(tokens, k, width, dtype, dtype)
    for added in (None, add):
        assert_same_bits(combine(y, plan, routing, x, added), reference.moe_combine(y, plan, routing, x, added))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("tokens", "k", "width"), SMALL_SHAPES)
def test_combine_layouts(tokens: int, k: int, width: int, layout: tuple[int, ...]) -> None:
    for y_dtype in DTYPES:
        for dtype in DTYPES:
            y, plan, routing, x, add = combine_case(tokens, k, width, y_dtype, dtype)
            expected = reference.moe_combine(y, plan, routing, x, add)
            assert_same_bits(combine(y, plan, routing, x, add, layout), expected)


def test_a_sum_of_negative_zeros() -> None:
    """-0 only if every choice has a row and every term is -0: a choice without a row counts as +0, as in the
    reference."""
    unused = torch.zeros(1, dtype=torch.int32)
    row_of = torch.tensor([[0, 1], [0, -1], [-1, 1], [-1, -1]], dtype=torch.int32)
    plan, y, x = Plan(unused, row_of, unused), torch.full((2, 8), -0.0), torch.full((4, 8), -0.0)
    routing = Routing(unused, torch.ones(4, 2), torch.ones(4), unused, unused, unused)
    for dtype in DTYPES:
        out = combine(y.to(dtype), plan, routing, x.to(dtype))
        assert_same_bits(out, reference.moe_combine(y.to(dtype), plan, routing, x.to(dtype)))
        assert [bool(row.signbit().all()) for row in out] == [True, False, False, False]
        assert not out[1:].signbit().any()


def _all_outputs() -> list[Tensor]:
    y, plan, routing, x, add = combine_case(9, 12, 160, torch.bfloat16, torch.bfloat16)
    return [*permute_quant(x, plan), permute(x, plan), combine(y, plan, routing, x, add), combine(y, plan, routing, x)]


def test_the_same_bits_on_50_runs() -> None:
    expected = _all_outputs()
    for seed in range(50):
        emulated.configure(seed, list(emulated.POLICIES)[seed % 3], detectors=True)
        for actual, wanted in zip(_all_outputs(), expected, strict=True):
            assert_same_bits(actual, wanted)


def test_bits_of_a_token_do_not_depend_on_its_batch() -> None:
    """Alone, and as the last of a batch in another order."""
    y, plan, routing, x, add = combine_case(33, 12, 160, torch.bfloat16, torch.bfloat16)
    q, s = permute_quant(x, plan)
    together = combine(y, plan, routing, x, add)
    for order in ([0], [17], [32], list(range(32, -1, -1))):
        ids = torch.where(plan.row_of[order] < 0, -1, torch.arange(12, dtype=torch.int32))
        part = reference.moe_plan(ids, 12)
        part_q, part_s = permute_quant(x[order], part)
        own = part.src_of >= 0
        source = part.src_of[own].long()
        rows = plan.row_of[torch.tensor(order)[source // 12], source % 12].long()
        assert_same_bits(part_q.view(torch.uint8)[own], q.view(torch.uint8)[rows])
        assert_same_bits(part_s[own], s[rows])
        own_y = torch.full((len(part.src_of), 160), torch.nan, dtype=y.dtype)
        own_y[own] = y[rows]
        own_routing = routing._replace(weights=routing.weights[order], zero_weight=routing.zero_weight[order])
        assert_same_bits(combine(own_y, part, own_routing, x[order], add[order]), together[order])


def _short_output() -> None:
    x, plan = torch.ones(7, 128), choices(7, 4)
    q, s = apart(len(plan.src_of), 128, torch.float8_e4m3fn), scales(1, 1, False)
    run("moe_permute_quant", x, plan.row_of, plan.src_of, q, s)


def _short_rows() -> None:
    y, plan, routing, x, _ = combine_case(7, 4, 128, torch.bfloat16, torch.bfloat16)
    y = copied(y[:, :120].contiguous(), 8, 0)
    run("moe_combine", y, plan.row_of, routing.weights, routing.zero_weight, x, None, apart(7, 128, x.dtype))


@pytest.mark.parametrize("call", [_short_output, _short_rows])
def test_an_access_outside_the_arguments_is_reported(call: Callable[[], None]) -> None:
    with pytest.raises(emulated.EmulatorError, match="out-of-bounds"):
        call()

"""moe_permute_quant, moe_permute and moe_combine in the host emulator with its detectors on: every planned row has the
quantiser's bits and no other byte changes; sums have the reference's bits in every layout and schedule.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from longcat_ops import Plan, reference
from longcat_ops.ops import emulated
from support.build_oracle import assert_same_bits, hostile_input
from support.dispatch_calls import (
    SHAPES,
    assert_permuted,
    check_a_plan_that_disagrees_with_itself_is_safe,
    check_a_sum_of_negative_zeros,
    check_combine,
    check_permute_quant,
    choices,
    combine,
    combine_case,
    permute_quant,
)
from support.emulated_kernels import (
    DTYPES,
    LAYOUTS,
    PermuteArgs,
    apart,
    assert_gaps_untouched,
    copied,
    run,
    scales,
)

ALL_SHAPES = [(t, k, h) for t in (0, 1, 2, 7, 31, 33, 96) for k in (1, 4, 8, 12, 32) for h in (8, 128, 160, 576)]
SMALL_SHAPES = [(2, 4, 160), (7, 12, 576), (5, 32, 40)]


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
    check_a_plan_that_disagrees_with_itself_is_safe()


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "k", "width"), ALL_SHAPES)
def test_every_shape(tokens: int, k: int, width: int) -> None:
    for dtype in DTYPES:
        test_permute_quant(tokens, k, width, dtype)
        test_permute(tokens, k, width, dtype)
        test_combine(tokens, k, width, dtype)


def permute(x: Tensor, plan: Plan, gap: int = 0, offset: int = 0) -> Tensor:
    out, source = apart(len(plan.src_of), x.shape[1], x.dtype, gap, offset), copied(x, gap, offset)
    args = PermuteArgs.of(source, plan.row_of, plan.src_of, out)
    emulator = emulated.load()
    assert emulator.lc_moe_permute(ctypes.byref(args), None) == 0, emulator.lc_last_error().decode()
    assert_gaps_untouched(out)
    return out


def test_a_call_is_a_value() -> None:
    """A call's struct can be kept and reused, over what its memory then holds; one of another size is refused."""
    x, plan = hostile_input(7, 64, torch.bfloat16), choices(7, 4)
    out, emulator = apart(len(plan.src_of), 64, x.dtype), emulated.load()
    kept = ctypes.create_string_buffer(bytes(PermuteArgs.of(x, plan.row_of, plan.src_of, out)))
    for _ in range(2):
        assert emulator.lc_moe_permute(kept, None) == 0, emulator.lc_last_error().decode()
        assert_permuted(out, x, plan)
        x.neg_()
    for size in (0, len(kept) - 9, len(kept) + 8):
        ctypes.memmove(kept, ctypes.byref(ctypes.c_size_t(size)), 8)
        assert emulator.lc_moe_permute(kept, None) == 4
        text = f"lc_moe_permute: struct_size {size}, expected {ctypes.sizeof(PermuteArgs)}"
        assert text in emulator.lc_last_error().decode()
    assert emulator.lc_moe_permute(None, None) == 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "k", "width"), SHAPES)
def test_permute(tokens: int, k: int, width: int, dtype: torch.dtype) -> None:
    x, plan = hostile_input(tokens, width, dtype), choices(tokens, k)
    for gap, offset in ((0, 0), (8, 0), (3, 1)):
        assert_permuted(permute(x, plan, gap, offset), x, plan)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "k", "width"), SHAPES)
def test_combine(tokens: int, k: int, width: int, dtype: torch.dtype) -> None:
    check_combine(tokens, k, width, dtype)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("tokens", "k", "width"), SMALL_SHAPES)
def test_combine_layouts(tokens: int, k: int, width: int, layout: tuple[int, ...]) -> None:
    for y_dtype in DTYPES:
        for dtype in DTYPES:
            y, plan, routing, x, add = combine_case(tokens, k, width, y_dtype, dtype)
            expected = reference.moe_combine(y, plan, routing, x, add)
            assert_same_bits(combine(y, plan, routing, x, add, layout), expected)


def test_a_sum_of_negative_zeros() -> None:
    check_a_sum_of_negative_zeros()


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
    """A token has the same bits alone and in a batch in reverse order."""
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

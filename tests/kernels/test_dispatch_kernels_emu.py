"""moe_place, moe_permute_quant, moe_permute and moe_combine in the host emulator with its detectors on: every choice
has its slot; every planned row has the quantiser's bits and no other byte changes; sums have the reference's bits in
every layout and schedule.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from longcat_ops import reference
from longcat_ops.ops import emulated
from support.build_oracle import assert_same_bits, hostile_input
from support.dispatch_calls import (
    SHAPES,
    check_a_plan_that_disagrees_with_itself_is_safe,
    check_a_sum_of_negative_zeros,
    check_combine,
    check_permute,
    check_permute_quant,
    check_place,
    choices,
    combine,
    combine_case,
    permute,
    permute_quant,
)
from support.emulated_kernels import (
    DTYPES,
    LAYOUTS,
    ROOT,
    apart,
    copied,
    run,
    scales,
)

ALL_SHAPES = [(t, k, h) for t in (0, 1, 2, 7, 31, 33, 96) for k in (1, 4, 8, 12, 32) for h in (8, 128, 160, 576)]
SMALL_SHAPES = [(2, 4, 160), (7, 12, 576), (5, 32, 40)]
HEADER = (ROOT / "cuda/include/longcat_ops.h").read_text(encoding="utf-8")


@pytest.mark.parametrize(("experts", "most"), [(1, 1), (6, 4), (96, 1), (512, 3)])
@pytest.mark.parametrize(("tokens", "k"), [(0, 4), (1, 1), (5, 12), (33, 32), (128, 1), (129, 4)])
def test_place(tokens: int, k: int, experts: int, most: int) -> None:
    check_place(tokens, k, experts, most)


@pytest.mark.parametrize("policy", emulated.POLICIES)
def test_place_in_every_policy(policy: str) -> None:
    for seed in (1, 2, 3):
        emulated.configure(seed, policy, detectors=True)
        check_place(43, 12, 64, 3)


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


@pytest.mark.parametrize("check", [check_permute, check_permute_quant])
def test_a_plan_that_disagrees_with_itself_is_safe(check: Callable[..., None]) -> None:
    check_a_plan_that_disagrees_with_itself_is_safe(check)


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "k", "width"), ALL_SHAPES)
def test_every_shape(tokens: int, k: int, width: int) -> None:
    for dtype in DTYPES:
        test_permute_quant(tokens, k, width, dtype)
        test_permute(tokens, k, width, dtype)
        test_combine(tokens, k, width, dtype)


@pytest.mark.parametrize("function", re.findall(r"LC_API int (lc_\w+)\(const \w+_args\* args, lc_stream_t", HEADER))
def test_a_struct_of_another_header_is_refused(function: str) -> None:
    """The size that a call's struct states must be the library's, and there must be a struct."""
    emulator = emulated.load()
    call = getattr(emulator, function)

    def refusal(size: int) -> str:
        assert call(ctypes.byref(ctypes.c_size_t(size)), None) == 4
        return emulator.lc_last_error().decode()

    expected = int(re.match(rf"{function}: struct_size 0, expected (\d+): built with", refusal(0))[1])
    for size in (expected - 8, expected + 8):
        assert refusal(size).startswith(f"{function}: struct_size {size}, expected {expected}: built with")
    assert call(None, None) == 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "k", "width"), SHAPES)
def test_permute(tokens: int, k: int, width: int, dtype: torch.dtype) -> None:
    check_permute(hostile_input(tokens, width, dtype), choices(tokens, k))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("tokens", "k", "width"), SMALL_SHAPES)
def test_permute_layouts(tokens: int, k: int, width: int, layout: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        check_permute(hostile_input(tokens, width, dtype), choices(tokens, k), layout)


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

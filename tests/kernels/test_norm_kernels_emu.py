"""rms_norm_quant_fp8 in the host emulator: y is within the bound of the op's own test, q and s are the reference's for
that y. For all quantisation kernels: schedule, neighbours and alignment change no bit, and accesses outside the
arguments are reported.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from longcat_ops import reference
from longcat_ops.ops import emulated
from support.build_oracle import assert_same_bits, hostile_input
from support.emulated_kernels import (
    DTYPES,
    LAYOUTS,
    apart,
    assert_gaps_untouched,
    assert_near_fp64,
    copied,
    run,
    scales,
    shapes,
    special_inputs,
)
from support.norm_oracle import HALF_STEP, assert_normed


def norm(x: torch.Tensor, residual: torch.Tensor | None, layout: tuple[int, ...], column_major: bool) -> None:
    gap, offset, q_gap, q_offset = layout
    rows, columns = x.shape
    weight = apart(1, columns, torch.float32, 0, offset).uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    q = apart(rows, columns, torch.float8_e4m3fn, q_gap, q_offset)
    s = scales(rows, -(-columns // 128), column_major)
    y, total = apart(rows, columns, x.dtype, gap, offset), None
    if residual is not None:
        total, residual = apart(rows, columns, x.dtype, gap, offset), copied(residual, gap, offset)
    run("rms_norm_quant_fp8", copied(x, gap, offset), weight[0], 1e-5, residual, q, s, y, total)
    if residual is not None:
        assert_same_bits(total, (x.float() + residual.float()).to(x.dtype))
        assert_gaps_untouched(total)
    assert_normed(y, x if total is None else total, weight[0], 1e-5)
    expected_q, expected_s = reference.per_token_group_quant_fp8(y)
    assert_same_bits(q, expected_q)
    assert_same_bits(s, expected_s)
    assert_gaps_untouched(q, s, y)


def _check_special(x: torch.Tensor, residual: torch.Tensor | None) -> None:
    """Checks finite rows as norm() does; elsewhere y is NaN where x is not finite or the row has a NaN, else zero. All
    against float64 too: s within 4 ulp plus half a step of y's format, to which y is rounded first; q within a step.
    """
    rows, columns = x.shape
    weight = torch.rand(columns, generator=torch.Generator().manual_seed(1)) + 0.5
    q, s, y = (
        apart(rows, columns, torch.float8_e4m3fn),
        scales(rows, -(-columns // 128), False),
        apart(*x.shape, x.dtype),
    )
    total = None if residual is None else apart(rows, columns, x.dtype)
    run("rms_norm_quant_fp8", copied(x, 0, 0), weight, 1e-5, residual, q, s, y, total)
    if residual is not None:
        x = (x.float() + residual.float()).to(x.dtype)
        assert_same_bits(total, x)
        assert_gaps_untouched(total)
    finite = x.isfinite().all(1)
    assert_normed(y[finite], x[finite], weight, 1e-5)
    rest = x[~finite]
    assert bool((y[~finite].isnan() == (rest.isnan().any(1, keepdim=True) | rest.isinf())).all())
    assert not y[~finite].nan_to_num().any()
    expected_q, expected_s = reference.per_token_group_quant_fp8(y)
    assert_same_bits(q, expected_q)
    assert_same_bits(s, expected_s)
    wide = x.double()
    expected = wide / (wide.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert_near_fp64(q, s, expected.numpy(), HALF_STEP[x.dtype])
    assert_gaps_untouched(q, s, y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), shapes(4097 * 160))
def test_rms_norm_quant(rows: int, columns: int, dtype: torch.dtype) -> None:
    for x in special_inputs(rows, columns, dtype):
        _check_special(x, None)
        if rows < 4097:
            _check_special(x, torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(dtype))


# One, two, three, four and more chunks per thread; rows of the last two widths are read twice.
WIDTHS = [8, 128, 160, 576, 2056, 4096, 6144, 8192, 16384, 16392, 20000]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", WIDTHS)
def test_rms_norm_quant_widths(columns: int, dtype: torch.dtype) -> None:
    x, residual = (torch.randn(2, columns, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(2))
    norm(x, None, LAYOUTS[0], column_major=False)
    norm(x, residual, LAYOUTS[0], column_major=True)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(0, 8), (1, 160), (7, 576), (33, 8), (2, 16392)])
def test_rms_norm_quant_layouts(rows: int, columns: int, layout: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        x, residual = (torch.randn(rows, columns, generator=torch.Generator().manual_seed(i)) * 30 for i in range(2))
        norm(x.to(dtype), residual.to(dtype), layout, column_major=False)
        norm(x.to(dtype), None, layout, column_major=True)


def _all_outputs() -> list[torch.Tensor]:
    x, residual = hostile_input(9, 576, torch.bfloat16), hostile_input(9, 576, torch.bfloat16, seed=2)
    q, s = apart(9, 576, torch.float8_e4m3fn), scales(9, 5, True)
    run("per_token_group_quant_fp8", x, 128, q, s)
    outputs = [q, s]
    q, s = apart(9, 576, torch.float8_e4m3fn), scales(1, 5, False)
    run("per_block_quant_fp8", x.nan_to_num(1, 1, 1), q, s)
    out = apart(9, 576, torch.float16)
    run("dequant_fp8", q, s, 128, out)
    outputs += [q, s, out]
    q, s = apart(9, 288, torch.float8_e4m3fn), scales(9, 3, False)
    run("silu_and_mul_quant_fp8", x, q, s)
    outputs += [q, s]
    q, s, y, total = apart(9, 576, q.dtype), scales(9, 5, False), apart(9, 576, x.dtype), apart(9, 576, x.dtype)
    run("rms_norm_quant_fp8", x, torch.ones(576), 1e-5, residual, q, s, y, total)
    return [*outputs, q, s, y, total]


def test_bits_do_not_depend_on_the_schedule() -> None:
    expected = _all_outputs()
    for policy in emulated.POLICIES:
        for seed in (2, 3, 4):
            emulated.configure(seed, policy, detectors=True)
            for actual, wanted in zip(_all_outputs(), expected, strict=True):
                assert_same_bits(actual, wanted)


def test_bits_of_a_row_do_not_depend_on_its_neighbours_or_alignment() -> None:
    """A row has the same bits among enough rows that a thread takes several, alone, and unaligned."""
    x = torch.randn(40, 1152, generator=torch.Generator().manual_seed(0)).bfloat16()

    def each(x: torch.Tensor) -> list[torch.Tensor]:
        rows = len(x)
        q, s = apart(rows, 576, torch.float8_e4m3fn), scales(rows, 5, False)
        run("silu_and_mul_quant_fp8", x, q, s)
        q2, s2, y = apart(rows, 1152, q.dtype), scales(rows, 9, False), apart(rows, 1152, x.dtype)
        run("rms_norm_quant_fp8", x, torch.ones(1152), 1e-5, None, q2, s2, y, None)
        return [q, s, q2, s2, y]

    together = each(x)
    for row in (0, 17, 39):
        for actual, wanted in zip(each(x[row : row + 1]), together, strict=True):
            assert_same_bits(actual, wanted[row : row + 1])
    for actual, wanted in zip(each(copied(x, 3, 1)), together, strict=True):
        assert_same_bits(actual, wanted)


def _short_scales() -> None:
    q, s = apart(7, 128, torch.float8_e4m3fn), torch.empty(6, 1)
    run("per_token_group_quant_fp8", torch.ones(7, 128), 128, q, s)


def _short_residual() -> None:
    x, q, s = torch.ones(7, 128), apart(7, 128, torch.float8_e4m3fn), scales(7, 1, False)
    run(
        "rms_norm_quant_fp8",
        x,
        torch.ones(128),
        0.0,
        torch.ones(7, 120),
        q,
        s,
        torch.empty(7, 128),
        torch.empty(7, 128),
    )


@pytest.mark.parametrize("call", [_short_scales, _short_residual])
def test_an_access_outside_the_arguments_is_reported(call: Callable[[], None]) -> None:
    with pytest.raises(emulated.EmulatorError, match="out-of-bounds"):
        call()

"""rms_norm_quant_fp8 against the steps that it fuses: the addition, rms_norm and the quantisation."""

from __future__ import annotations

import pytest
import torch

from longcat_ops import per_token_group_quant_fp8, rms_norm, rms_norm_quant_fp8
from longcat_ops.testing.op_results import bits
from support.build_oracle import assert_same_bits, codes_of
from support.near_oracle import FLOOR_SCALE
from support.norm_oracle import HALF_STEP, assert_normed

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def inputs(
    rows: int, columns: int, dtype: torch.dtype, residual: bool, scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, float, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(rows + columns)
    x, r = ((torch.randn(rows, columns, generator=generator) * scale).to(dtype) for _ in range(2))
    return x, torch.rand(columns, generator=generator) + 0.5, 1e-5, r if residual else None


def check(x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None, column_major: bool) -> None:
    q, s, y, residual_out = rms_norm_quant_fp8(x, weight, eps, residual, column_major_scales=column_major)
    assert y.dtype == x.dtype and y.shape == x.shape
    if residual is None:
        assert residual_out is None
    else:
        # A float32 sum has more than twice the bits of either format, so rounding it again equals rounding once.
        assert_same_bits(residual_out, (x.float() + residual.float()).to(x.dtype))
    assert_normed(y, x if residual is None else residual_out, weight, eps)
    expected_q, expected_s = per_token_group_quant_fp8(y, column_major_scales=column_major)
    assert_same_bits(q, expected_q)
    assert_same_bits(s, expected_s)
    assert s.stride() == expected_s.stride()


@pytest.mark.parametrize("column_major", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(0, 128), (1, 8), (7, 136), (8, 160), (33, 576), (5, 6144)])
def test_is_the_chain_of_its_steps(
    rows: int, columns: int, dtype: torch.dtype, residual: bool, column_major: bool
) -> None:
    for scale in (1.0, 1e-3, 200.0):
        check(*inputs(rows, columns, dtype, residual, scale), column_major)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_norm_is_of_the_rounded_sum(dtype: torch.dtype) -> None:
    """The sum rounds to 1 except for one element, 1 + eps; unrounded it is 1 + eps / 2, and that y is one step less."""
    x = torch.full((1, 128), 1.0, dtype=dtype)
    half_step = torch.finfo(dtype).eps / 2
    residual = torch.full((1, 128), half_step, dtype=dtype)  # a tie, to the even 1.0
    residual[0, 1] = 2 * half_step
    q, s, y, residual_out = rms_norm_quant_fp8(x, torch.ones(128), 0.0, residual)
    assert (residual_out == 1).sum() == 127 and residual_out[0, 1] == 1 + torch.finfo(dtype).eps
    assert_normed(y, residual_out, torch.ones(128), 0.0)
    assert_same_bits(q, per_token_group_quant_fp8(y)[0])
    assert_same_bits(s, per_token_group_quant_fp8(y)[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_y_is_rms_norm(dtype: torch.dtype) -> None:
    """The two ops may sum in another order: each is within a bound of fp64, so they are within two of each other."""
    x, weight, eps, _ = inputs(9, 576, dtype, False)
    y, other = rms_norm_quant_fp8(x, weight, eps)[2], rms_norm(x, weight, eps)
    relative = 2 * ((576 / 32 + 8) * 2.0**-24 + HALF_STEP[dtype])
    assert bool(((y.double() - other.double()).abs() <= relative * other.double().abs() * (1 + relative)).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_rows(dtype: torch.dtype) -> None:
    """A row of zeros, also as a sum of a row and its negative, gives 0 and the smallest scale; other rows do not."""
    x, weight, eps, residual = inputs(4, 160, dtype, True)
    x[1], residual[1] = 0, 0
    residual[2] = -x[2]
    q, s, y, residual_out = rms_norm_quant_fp8(x, weight, eps, residual)
    for row in range(4):
        zero = row in (1, 2)
        assert bool((residual_out[row] == 0).all()) == bool((y[row] == 0).all()) == zero
        assert (not (codes_of(q)[row] & 0x7F).any()) == zero
        assert bool((s[row] == float(FLOOR_SCALE)).all()) == zero


@pytest.mark.parametrize("where", ["x", "residual"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_nan_stays_in_its_row(dtype: torch.dtype, where: str) -> None:
    x, weight, eps, residual = inputs(5, 160, dtype, True)
    clean = rms_norm_quant_fp8(x, weight, eps, residual)
    (x if where == "x" else residual)[3, 40] = torch.nan
    q, s, y, residual_out = rms_norm_quant_fp8(x, weight, eps, residual)
    assert residual_out.isnan().nonzero().tolist() == [[3, 40]]
    assert bool(y[3].isnan().all()) and bool(s[3].isnan().all()) and (codes_of(q)[3] == 0x7F).all()
    others = [0, 1, 2, 4]
    assert_same_bits(q.view(torch.uint8)[others], clean[0].view(torch.uint8)[others])
    for got, expected in zip((s, y, residual_out), clean[1:], strict=True):
        assert_same_bits(got[others], expected[others])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [8, 160, 6144])
def test_a_row_does_not_depend_on_its_batch(columns: int, dtype: torch.dtype) -> None:
    """Up to 8 rows, as in decode, a row has the same bits in every part of the batch."""
    x, weight, eps, residual = inputs(8, columns, dtype, True)
    whole = rms_norm_quant_fp8(x, weight, eps, residual)
    for begin, end in [(0, 1), (7, 8), (0, 2), (1, 4), (3, 8)]:
        part = rms_norm_quant_fp8(x[begin:end], weight, eps, residual[begin:end])
        assert bits(part) == bits([t[begin:end] for t in whole]), (begin, end)

"""silu_and_mul_quant_fp8 against fp64 SwiGLU and the numpy e4m3 oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longcat_ops import per_token_group_quant_fp8, silu_and_mul_quant_fp8
from longcat_ops.testing.op_results import bits
from support.build_oracle import assert_same_bits, codes_of, hostile_input
from support.near_oracle import FLOOR_SCALE, assert_quantised, silu_and_mul

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NAN, INF = float("nan"), float("inf")


def random(rows: int, width: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return (torch.randn(rows, 2 * width, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def check(gate_up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    q, s = silu_and_mul_quant_fp8(gate_up)
    assert q.dtype == torch.float8_e4m3fn and q.is_contiguous()
    assert_quantised(q, s, *silu_and_mul(*gate_up.double().chunk(2, -1)))
    return q, s


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 65])
@pytest.mark.parametrize("width", [8, 128, 136, 160, 576])
def test_against_fp64_on_hostile_values(rows: int, width: int, dtype: torch.dtype) -> None:
    """Rows of widely varying magnitude, with 1e6, subnormals, inf and NaN in gate and in up, are within the bound."""
    check(hostile_input(rows, 2 * width, dtype))
    flipped = hostile_input(rows, 2 * width, dtype, seed=1).roll(width, 1)
    check(flipped)


@pytest.mark.parametrize("width", [2048, 12288])
def test_against_fp64_at_model_width(width: int) -> None:
    check(random(3, width, torch.bfloat16))
    check(random(12, width, torch.bfloat16))


@pytest.mark.parametrize("rows", [8, 40])
def test_the_check_notices(rows: int) -> None:
    """The check fails for h rounded to bf16 or with silu a little off, a scale 2^-18 off, a code one step off."""
    x = random(rows, 160)
    exact, error = silu_and_mul(*x.double().chunk(2, -1))
    q, s = check(x)
    gate, up = x.chunk(2, -1)
    for wrong in (exact.bfloat16(), exact.float() * (1 + 2.0**-18), torch.sigmoid(1.001 * gate) * gate * up, gate * up):
        with pytest.raises(AssertionError):
            assert_quantised(*per_token_group_quant_fp8(wrong), exact, error)
    with pytest.raises(AssertionError):
        assert_quantised(q, s * (1 + 2.0**-18), exact, error)
    codes = q.clone().view(torch.uint8)
    codes[3, 50] ^= 1
    with pytest.raises(AssertionError, match=r"1 of [0-9]+ codes are off"):
        assert_quantised(codes.view(q.dtype), s, exact, error)


@pytest.mark.parametrize("rows", [8, 40])
def test_an_outlier_costs_its_own_group_only(rows: int) -> None:
    x = random(rows, 576)
    q, s = check(x)
    outlier = x.clone()
    outlier[2, 130], outlier[5, 576 + 300] = 1e6, -1e6
    outlier_q, outlier_s = check(outlier)
    assert outlier_s[2, 1] > 1000 * s[2, 1] and outlier_s[5, 2] > 1000 * s[5, 2]
    differs = outlier_s != s
    assert differs.nonzero().tolist() == [[2, 1], [5, 2]]
    same = ~differs.repeat_interleave(128, 1)[:, :576].numpy()
    assert (codes_of(outlier_q)[same] == codes_of(q)[same]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [4, 12])
def test_groups_of_zero_have_the_smallest_scale(rows: int, dtype: torch.dtype) -> None:
    """Where gate or up is 0, or their product is below 1e-4 / 448 / 1024, all codes are 0."""
    x = random(rows, 160, dtype)
    x[0] = 0
    x[1, :160] = 0
    x[2, 160:] = -0.0
    x[3, :128], x[3, 160 : 160 + 128] = 1e-5, -1e-5
    q, s = check(x)
    codes = codes_of(q) & 0x7F
    assert not codes[:3].any() and not codes[3, :128].any()
    assert (s[:3].numpy() == FLOOR_SCALE).all() and s[3, 0].item() == FLOOR_SCALE
    assert s[3, 1].item() > FLOOR_SCALE and codes[3, 128:].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [8, 12])
def test_exp_overflows_to_zero(rows: int, dtype: torch.dtype) -> None:
    """For v below -88, exp(-v) overflows float32 to inf and v / inf is 0, not NaN; above 104, exp(-v) vanishes."""
    x = random(rows, 160, dtype)
    x[0, :160] = -1e4
    x[1, :160] = torch.linspace(-110, -80, 160).to(dtype)
    x[2, 7] = -1e4
    x[3, 7] = 1e4
    q, s = check(x)
    assert not (codes_of(q)[:2] & 0x7F).any() and (s[:2].numpy() == FLOOR_SCALE).all()
    assert codes_of(q)[2, 7] & 0x7F == 0 and np.count_nonzero(codes_of(q)[2] & 0x7F) > 150
    largest = abs(x[3, 7].item() * x[3, 167].item())  # silu(1e4) = 1e4
    assert s[3, 0].item() == pytest.approx(largest / 448, rel=2.0**-22)


@pytest.mark.parametrize("rows", [8, 12])
def test_nan_and_inf_stay_in_their_group(rows: int) -> None:
    x = random(rows, 160)
    x[0, 5] = NAN  # gate
    x[1, 160 + 130] = NAN  # up
    x[2, 6] = INF
    x[3, 6] = -INF  # silu(-inf) = -inf / inf
    x[4, 160 + 6] = -INF
    x[5, 6], x[5, 160 + 6] = INF, 0.0
    x[6, 6], x[6, 160 + 6] = 1e30, -1e30  # the product overflows float32
    q, s = silu_and_mul_quant_fp8(x)
    h, error = silu_and_mul(*x.double().chunk(2, -1))
    h[6, 6] = -INF
    assert_quantised(q, s, h, error)
    codes = codes_of(q)
    for row, column in [(0, 5), (1, 130), (3, 6), (5, 6)]:  # the group is NaN, the other one is not
        group = slice(0, 128) if column < 128 else slice(128, 160)
        assert (codes[row, group] == 0x7F).all() and np.count_nonzero(codes[row] == 0x7F) == group.stop - group.start
        assert s[row].isnan().tolist() == [column < 128, column >= 128]
    for row in (2, 4, 6):  # inf / inf, and 0 beside it
        assert s[row].isinf().tolist() == [True, False]
        assert np.flatnonzero(codes[row, :128] & 0x7F).tolist() == [6] and codes[row, 6] == 0x7F
    assert s[7:].isfinite().all() and (codes[7:] & 0x7F != 0x7F).all()


@pytest.mark.parametrize("rows", [1, 4, 7, 33])
def test_both_layouts_of_scales_are_equal(rows: int) -> None:
    x = hostile_input(rows, 2 * 576, torch.bfloat16)
    q, s = silu_and_mul_quant_fp8(x)
    other_q, other_s = silu_and_mul_quant_fp8(x, column_major_scales=True)
    assert s.is_contiguous() and other_s.shape == (rows, 5)
    assert other_s.stride() == (1, -(-rows // 4) * 4)
    assert_same_bits(other_q, q)
    assert_same_bits(other_s, s)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [8, 136, 160, 2048, 4640, 12288])
def test_a_row_does_not_depend_on_its_batch(width: int, dtype: torch.dtype) -> None:
    """Up to 8 rows, as in decode, a row has the same bits alone, in any part of the batch and at another place."""
    for seed in range(-(-2048 // width)):  # some 100 groups each: only the largest element of one shows its last bits
        x = random(8, width, seed=seed)
        x[:, :width] = -x[:, :width].abs()  # where those are the last bits of exp
        x = x.to(dtype)
        q, s = silu_and_mul_quant_fp8(x)
        for begin, end in [(0, 1), (7, 8), (0, 2), (1, 4), (3, 8), (0, 7)]:
            part = silu_and_mul_quant_fp8(x[begin:end])
            assert bits(part) == bits((q[begin:end], s[begin:end])), (begin, end)
        turned_q, turned_s = silu_and_mul_quant_fp8(x.flip(0))
        assert bits((turned_q.view(torch.uint8).flip(0), turned_s.flip(0))) == bits((q, s))

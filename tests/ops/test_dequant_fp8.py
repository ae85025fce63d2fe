from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import longcat_ops
from longcat_ops.reference import quant as reference_quant
from support.build_oracle import assert_same_bits, codes_of, decode, hostile_input

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def oracle(q: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`scales` already has the shape of q. e4m3 times float32 is exact in float64, so it is rounded to float32 once."""
    with np.errstate(all="ignore"):
        product = (decode(codes_of(q)) * scales.double().numpy()).astype(np.float32)
    return torch.from_numpy(product).to(dtype)


def spread(s: torch.Tensor, q: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    return s.repeat_interleave(rows, 0)[: q.shape[0]].repeat_interleave(columns, 1)[:, : q.shape[1]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.0, -2.5, 3e-5, 1e-7, 147.3, 1e36, 1e-40, float("inf"), float("nan")])
def test_every_code(scale: float, dtype: torch.dtype) -> None:
    q = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).view(32, 8)
    s = torch.full((32, 1), scale)
    actual = longcat_ops.dequant_fp8(q, s, dtype)
    assert_same_bits(actual, oracle(q, spread(s, q, 1, 8), dtype))
    assert_same_bits(actual, reference_quant.dequant_fp8(q, s, dtype))


@given(
    rows=st.integers(0, 300),
    eighths=st.integers(1, 40),
    group=st.integers(1, 20).map(lambda n: 8 * n),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_both_granularities(rows: int, eighths: int, group: int, dtype: torch.dtype, seed: int) -> None:
    x = hostile_input(rows, 8 * eighths, torch.float32, seed)
    q, s = longcat_ops.per_token_group_quant_fp8(x, group)
    actual = longcat_ops.dequant_fp8(q, s, dtype, group_size=group)
    assert_same_bits(actual, oracle(q, spread(s, q, 1, group), dtype))
    assert_same_bits(actual, reference_quant.dequant_fp8(q, s, dtype, group_size=group))
    q, s = longcat_ops.per_block_quant_fp8(x)
    actual = longcat_ops.dequant_fp8(q, s, dtype)
    assert_same_bits(actual, oracle(q, spread(s, q, 128, 128), dtype))
    assert_same_bits(actual, reference_quant.dequant_fp8(q, s, dtype))


def test_column_major_scales_and_rows_apart() -> None:
    x = torch.randn(9, 576)
    q, s = longcat_ops.per_token_group_quant_fp8(x, column_major_scales=True)
    assert_same_bits(longcat_ops.dequant_fp8(q, s), longcat_ops.dequant_fp8(q, s.contiguous()))
    assert_same_bits(longcat_ops.dequant_fp8(q[::2], s[::2]), longcat_ops.dequant_fp8(q, s)[::2])


def test_round_trip_error() -> None:
    w = torch.randn(256, 512)
    back = longcat_ops.dequant_fp8(*longcat_ops.per_block_quant_fp8(w), torch.float32)
    assert ((back - w).norm() / w.norm()).item() < 0.03


def test_scales_that_fit_neither_granularity_name_both() -> None:
    q, s = longcat_ops.per_token_group_quant_fp8(torch.zeros(300, 576))
    expected = r"expected \[300, 5\] \(one scale per row and 128 columns\) or \[3, 5\] \(one per 128 x 128 block\)"
    for bad in (s[:, :4], s[:2]):
        with pytest.raises(longcat_ops.LongcatShapeError, match=expected):
            longcat_ops.dequant_fp8(q, bad)

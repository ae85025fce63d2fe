from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import longcat_ops
from longcat_ops.reference import quant as reference_quant
from support.build_oracle import assert_same_bits, codes_of, decode, hostile_input, quantise

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check_against_oracle(x: torch.Tensor, group_size: int = 128) -> None:
    q, s = longcat_ops.per_token_group_quant_fp8(x, group_size)
    codes, scales = quantise(x, 1, group_size)
    np.testing.assert_array_equal(codes_of(q), codes)
    np.testing.assert_array_equal(s.numpy(), scales)
    ref_q, ref_s = reference_quant.per_token_group_quant_fp8(x, group_size)
    assert_same_bits(q, ref_q)
    assert_same_bits(s, ref_s)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 7, 65])
@pytest.mark.parametrize("columns", [8, 128, 160, 576])
def test_matches_oracle_on_hostile_values(rows: int, columns: int, dtype: torch.dtype) -> None:
    check_against_oracle(hostile_input(rows, columns, dtype))


def test_matches_oracle_at_model_width() -> None:
    check_against_oracle(hostile_input(13, 6144, torch.bfloat16))


def test_many_rows_on_several_threads() -> None:
    x = hostile_input(4097, 128, torch.bfloat16)
    q, s = longcat_ops.per_token_group_quant_fp8(x)
    ref_q, ref_s = reference_quant.per_token_group_quant_fp8(x)
    assert_same_bits(q, ref_q)
    assert_same_bits(s, ref_s)


@given(
    rows=st.integers(0, 9),
    eighths=st.integers(1, 40),
    group=st.integers(1, 20).map(lambda n: 8 * n),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_matches_oracle_for_any_shape(rows: int, eighths: int, group: int, dtype: torch.dtype, seed: int) -> None:
    check_against_oracle(hostile_input(rows, 8 * eighths, dtype, seed), group)


def test_every_float16_value() -> None:
    codes = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    check_against_oracle(codes.view(torch.float16).reshape(-1, 128), 8)


def test_rounds_up_as_often_as_down() -> None:
    x = torch.randn(512, 1024, generator=torch.Generator().manual_seed(3))
    q, s = longcat_ops.per_token_group_quant_fp8(x)
    error = decode(codes_of(q)) * s.repeat_interleave(128, 1).double().numpy() - x.double().numpy()
    share_up = (error > 0).mean()
    assert abs(share_up - 0.5) < 0.005  # 5 sigma of a fair coin is 0.0035
    bound = x.abs().double().numpy() / 16 + s.repeat_interleave(128, 1).double().numpy() * 2.0**-10
    assert (np.abs(error) <= bound * (1 + 1e-6)).all()


def test_special_groups() -> None:
    x = torch.zeros(4, 128)
    x[1, 5] = float("nan")
    x[2, 7] = float("-inf")
    x[2, 8] = 3.0
    x[3] = 1e-30
    q, s = longcat_ops.per_token_group_quant_fp8(x)
    codes = codes_of(q)
    smallest = float(torch.tensor(1e-4) / 448)
    assert s[0].item() == s[3].item() == smallest
    assert (codes[0] == 0).all() and (codes[3] == 0).all()
    assert s[1].isnan().all() and (codes[1] == 0x7F).all()
    assert s[2].item() == float("inf")
    assert codes[2, 7] == 0x7F and codes[2, 8] == 0


def test_rows_apart_and_unaligned() -> None:
    storage = hostile_input(9, 200, torch.bfloat16)
    x = storage[::2, 3:163]
    assert x.stride() == (400, 1)
    q, s = longcat_ops.per_token_group_quant_fp8(x)
    expected_q, expected_s = longcat_ops.per_token_group_quant_fp8(x.contiguous())
    assert q.is_contiguous()
    assert_same_bits(q, expected_q)
    assert_same_bits(s, expected_s)


@pytest.mark.parametrize("rows", [0, 1, 4, 7])
def test_column_major_scales(rows: int) -> None:
    x = hostile_input(rows, 576, torch.bfloat16)
    q, s = longcat_ops.per_token_group_quant_fp8(x, column_major_scales=True)
    row_q, row_s = longcat_ops.per_token_group_quant_fp8(x)
    assert s.shape == (rows, 5)
    if rows > 1:
        assert s.stride() == (1, -(-rows // 4) * 4)
    assert_same_bits(q, row_q)
    assert_same_bits(s, row_s)


def test_supports_takes_meta_tensors() -> None:
    x = torch.empty(5, 576, dtype=torch.bfloat16, device="meta")
    assert longcat_ops.supports("per_token_group_quant_fp8", x) == (True, "", "")
    assert longcat_ops.supports("per_token_group_quant_fp8", x, group_size=3)[0] is False

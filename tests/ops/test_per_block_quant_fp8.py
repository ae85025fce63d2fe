from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import longcat_ops
from longcat_ops.reference import quant as reference_quant
from support.build_oracle import assert_same_bits, codes_of, hostile_input, quantise

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check_against_oracle(w: torch.Tensor) -> None:
    q, s = longcat_ops.per_block_quant_fp8(w)
    codes, scales = quantise(w, 128, 128)
    np.testing.assert_array_equal(codes_of(q), codes)
    np.testing.assert_array_equal(s.numpy(), scales)
    ref_q, ref_s = reference_quant.per_block_quant_fp8(w)
    assert_same_bits(q, ref_q)
    assert_same_bits(s, ref_s)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 8), (1, 8), (7, 128), (128, 160), (300, 576), (576, 136)], ids=str)
def test_matches_oracle_on_hostile_values(shape: tuple[int, int], dtype: torch.dtype) -> None:
    check_against_oracle(hostile_input(*shape, dtype))


@given(rows=st.integers(0, 300), eighths=st.integers(1, 40), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
def test_matches_oracle_for_any_shape(rows: int, eighths: int, dtype: torch.dtype, seed: int) -> None:
    check_against_oracle(hostile_input(rows, 8 * eighths, dtype, seed))


def test_a_nan_stays_in_its_block() -> None:
    w = torch.ones(256, 256)
    w[130, 5] = float("nan")
    q, s = longcat_ops.per_block_quant_fp8(w)
    assert s.isnan().tolist() == [[False, False], [True, False]]
    assert (codes_of(q)[128:, :128] == 0x7F).all()
    assert (codes_of(q)[:128] == 0x7E).all()  # 1.0 / (1.0 / 448) = 448

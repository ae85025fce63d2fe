from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import longcat_ops
from build_oracle import assert_only_marked_arguments_change, assert_same_bits, codes_of, hostile_input, quantise
from longcat_ops.reference import quant as reference_quant

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
OP = torch.ops.longcat_ops.per_block_quant_fp8.default


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


def test_rows_apart() -> None:
    w = hostile_input(140, 400, torch.float32)[:, 8:168]
    for actual, expected in zip(
        longcat_ops.per_block_quant_fp8(w), longcat_ops.per_block_quant_fp8(w.contiguous()), strict=True
    ):
        assert_same_bits(actual, expected)


BAD_ARGUMENTS = [
    (lambda: torch.zeros(128), "argument `w` is 1-D [128], expected 2-D [N, K]"),
    (lambda: torch.zeros(2, 128, 128), "argument `w` is 3-D [2, 128, 128], expected 2-D [N, K]"),
    (lambda: torch.zeros(4, 12), "argument `w` is of width 12, expected a multiple of 8"),
    (lambda: torch.zeros(4, 8, dtype=torch.float64), "argument `w` is torch.float64, expected torch.bfloat16"),
    (lambda: torch.zeros(8, 16).t(), "argument `w` is of strides (1, 16), expected a last stride of 1"),
]


@pytest.mark.parametrize(("make", "text"), BAD_ARGUMENTS)
def test_bad_arguments(make, text: str) -> None:
    with pytest.raises(longcat_ops.LongcatShapeError) as caught:
        longcat_ops.per_block_quant_fp8(make())
    assert text in str(caught.value)
    supported, reason, _ = longcat_ops.supports("per_block_quant_fp8", make())
    assert not supported and text in reason


def test_op_contract() -> None:
    w = torch.randn(130, 136)
    q, s = torch.zeros(130, 136, dtype=torch.uint8).view(torch.float8_e4m3fn), torch.zeros(2, 2)
    utils = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(OP, (w, q.clone(), s.clone()), test_utils=utils)
    assert_only_marked_arguments_change(OP, (w, q, s))


def test_meta_and_compile() -> None:
    q, s = longcat_ops.per_block_quant_fp8(torch.empty(300, 576, device="meta"))
    assert (q.shape, s.shape, s.device.type) == ((300, 576), (3, 5), "meta")
    compiled = torch.compile(longcat_ops.per_block_quant_fp8, fullgraph=True, backend="aot_eager")
    w = torch.randn(130, 136)
    for actual, expected in zip(compiled(w), longcat_ops.per_block_quant_fp8(w), strict=True):
        assert_same_bits(actual, expected)

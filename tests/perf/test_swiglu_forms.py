"""gate_up with SwiGLU in one kernel or two: the counts of both, and which one is predicted to be faster."""

from __future__ import annotations

import pytest
import torch

import longcat_ops
from longcat_ops.perf import DEVICES, Band, predict
from longcat_ops.perf.products import product
from longcat_ops.perf.swiglu import Forms, apart, forms

H100 = DEVICES["H100"]
N, K = 4096, 6144


def test_apart_is_the_plain_product_and_what_lies_between() -> None:
    """Gate and up are written once and read once as bf16; h is written as e4m3 with a scale per 128."""
    first, second = apart(4, 256, N, K, max_rows=64)
    assert first == product(4, 256, N, K, max_rows=64)
    assert second.bytes == 256 * (2 * N + N // 2 + 4 * N // 2 // 128)


def test_weights_leave_l2_again_above_128_rows() -> None:
    one, two = (product(16, 16 * m, N, K, max_rows=m, swiglu=True).l2_bytes for m in (128, 256))
    weights = 16 * N * K
    assert two - one >= weights  # for the second 128 tokens
    plain = product(16, 16 * 256, N, K, max_rows=256)
    assert plain.l2_bytes - plain.l2_shared < two


@pytest.mark.parametrize(
    ("fused", "alone", "faster", "text"),
    [
        ((1, 2), (3, 4), "fused", "fused is faster with L2 at 5.5 TB/s and at 8 TB/s"),
        ((3, 4), (1, 2), "apart", "apart is faster with L2 at 5.5 TB/s and at 8 TB/s"),
        ((1, 4), (2, 3), "", "fused is faster with L2 at 8 TB/s, apart at 5.5 TB/s"),
        ((2, 3), (1, 4), "", "apart is faster with L2 at 8 TB/s, fused at 5.5 TB/s"),
    ],
)
def test_the_rule_names_the_rate(fused: tuple, alone: tuple, faster: str, text: str) -> None:
    both = Forms(Band(*fused), Band(*alone), 8e12, 5.5e12)
    assert both.faster == faster and str(both).endswith(text)


def test_times_are_those_of_the_model() -> None:
    both = forms(16, 16 * 256, N, K, H100, max_rows=256)
    counts = product(16, 16 * 256, N, K, max_rows=256, swiglu=True)
    assert both.fused == predict(counts, H100, overlaps=True)
    assert both.apart == predict(apart(16, 16 * 256, N, K, max_rows=256), H100, overlaps=True)


def test_explain_prints_both() -> None:
    def e4m3(*sizes: int) -> torch.Tensor:
        return torch.empty(sizes, dtype=torch.float8_e4m3fn, device="meta")

    def f32(*sizes: int) -> torch.Tensor:
        return torch.empty(sizes, device="meta")

    lhs, gate_up = (e4m3(4096, K), f32(4096, 48)), (e4m3(16, N, K), f32(16, 32, 48))
    offsets = torch.empty(17, dtype=torch.int32, device="meta")
    found = longcat_ops.explain("m_grouped_fp8_swiglu_gemm_nt_offset", lhs, gate_up, offsets, max_m_hint=256)
    assert found.forms["H100"] == forms(16, 4096, N, K, H100, max_rows=256)
    assert f"on H100, predicted: {found.forms['H100']}" in str(found)
    empty = (e4m3(0, K), f32(0, 48))
    assert longcat_ops.explain("m_grouped_fp8_swiglu_gemm_nt_offset", empty, gate_up, offsets).forms == {}
    in_bf16 = longcat_ops.explain("m_grouped_fp8_swiglu_gemm_nt_offset", lhs, gate_up, offsets, quantise=False)
    assert in_bf16.forms == {} and in_bf16.bytes_written == 2 * 4096 * N // 2
    plain = longcat_ops.explain("fp8_gemm_nt", lhs, (e4m3(N, K), f32(32, 48)))
    assert plain.forms == {}

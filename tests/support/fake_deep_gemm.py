"""A CPU stand-in for DeepGEMM."""

from __future__ import annotations

from torch import Tensor

from longcat_ops import reference


def assert_blocks_of_one_group(indices: Tensor) -> None:
    for block in indices.split(128):
        assert block[0] >= 0 and set(block.tolist()) <= {-1, int(block[0])}
    assert len(indices) % 128 == 0


class DeepGemm:
    """Checks the layouts that DeepGEMM requires, then calls this library's reference, which has the same functions."""

    def __init__(self) -> None:
        self.sms, self.used = 132, []

    def get_num_sms(self) -> int:
        return self.sms

    def set_num_sms(self, sms: int) -> None:
        self.sms = sms

    def get_mk_alignment_for_contiguous_layout(self) -> int:
        return 128

    def bf16_gemm_nt(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        assert a.is_contiguous() and b.is_contiguous()
        reference.bf16_gemm_nt(a, b, out)

    def m_grouped_bf16_gemm_nt_masked(self, a: Tensor, b: Tensor, out: Tensor, counts: Tensor, expected: int) -> None:
        assert a.shape[1] % 128 == 0 and a.is_contiguous() and expected > 0
        reference.m_grouped_bf16_gemm_nt_masked(a, b, out, counts, expected)

    def m_grouped_bf16_gemm_nt_contiguous(self, a: Tensor, b: Tensor, out: Tensor, indices: Tensor) -> None:
        assert_blocks_of_one_group(indices)
        reference.m_grouped_bf16_gemm_nt_contiguous(a, b, out, indices)

    def fp8_m_grouped_gemm_nt_masked(self, lhs: tuple, rhs: tuple, out: Tensor, counts: Tensor, expected: int) -> None:
        height = lhs[1].shape[1]
        assert height % 128 == 0 and expected > 0
        assert lhs[1].transpose(1, 2).is_contiguous()
        self.used.append(self.sms)
        reference.m_grouped_fp8_gemm_nt_masked(lhs, rhs, out, counts, expected)

    def m_grouped_fp8_gemm_nt_contiguous(self, lhs: tuple, rhs: tuple, out: Tensor, indices: Tensor) -> None:
        assert_blocks_of_one_group(indices)
        assert lhs[1].is_contiguous()
        reference.m_grouped_fp8_gemm_nt_contiguous(lhs, rhs, out, indices)

"""A CPU stand-in for DeepGEMM."""

from __future__ import annotations

from torch import Tensor

from longcat_ops import reference


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

    def fp8_m_grouped_gemm_nt_masked(self, lhs: tuple, rhs: tuple, out: Tensor, counts: Tensor, expected: int) -> None:
        height = lhs[1].shape[1]
        assert height % 128 == 0 and expected > 0
        assert lhs[1].transpose(1, 2).is_contiguous()
        self.used.append(self.sms)
        reference.m_grouped_fp8_gemm_nt_masked(lhs, rhs, out, counts, expected)

    def m_grouped_fp8_gemm_nt_contiguous(self, lhs: tuple, rhs: tuple, out: Tensor, indices: Tensor) -> None:
        for block in indices.split(128):
            assert block[0] >= 0 and set(block.tolist()) <= {-1, int(block[0])}
        assert len(indices) % 128 == 0 and lhs[1].is_contiguous()
        reference.m_grouped_fp8_gemm_nt_contiguous(lhs, rhs, out, indices)

"""The ops in plain torch, under the same names: the oracle of the tests, the path of what has no kernel yet, and what
an fp64 model runs on: sums run in float32, or in float64 where the input is.
"""

from .. import _torch  # noqa: F401  (first: it says what to do where torch is missing)
from ..types import Plan, Routing
from .experts import fused_moe
from .gemm import (
    fp8_gemm_nt,
    interleave_gate_up,
    m_grouped_fp8_gemm_nt_contiguous,
    m_grouped_fp8_gemm_nt_masked,
    m_grouped_fp8_gemm_nt_offset,
    m_grouped_fp8_swiglu_gemm_nt_offset,
)
from .moe import moe_combine, moe_permute_quant, moe_plan, moe_route
from .norm import rms_norm, rms_norm_quant_fp8
from .quant import dequant_fp8, per_block_quant_fp8, per_token_group_quant_fp8, silu_and_mul_quant_fp8

__all__ = [
    "Plan",
    "Routing",
    "dequant_fp8",
    "fp8_gemm_nt",
    "fused_moe",
    "interleave_gate_up",
    "m_grouped_fp8_gemm_nt_contiguous",
    "m_grouped_fp8_gemm_nt_masked",
    "m_grouped_fp8_gemm_nt_offset",
    "m_grouped_fp8_swiglu_gemm_nt_offset",
    "moe_combine",
    "moe_permute_quant",
    "moe_plan",
    "moe_route",
    "per_block_quant_fp8",
    "per_token_group_quant_fp8",
    "rms_norm",
    "rms_norm_quant_fp8",
    "silu_and_mul_quant_fp8",
]

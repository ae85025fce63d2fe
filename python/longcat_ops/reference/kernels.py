"""The reference behind each schema of torch.ops.longcat_ops: same arguments in the same order, outputs written."""

from __future__ import annotations

from torch import Tensor

from ..types import Plan, Routing
from . import experts, gemm, moe, norm, quant


def per_token_group_quant_fp8(x: Tensor, group_size: int, q: Tensor, s: Tensor) -> None:
    _write((q, s), quant.per_token_group_quant_fp8(x, group_size))


def per_block_quant_fp8(w: Tensor, q: Tensor, s: Tensor) -> None:
    _write((q, s), quant.per_block_quant_fp8(w))


def silu_and_mul_quant_fp8(gate_up: Tensor, q: Tensor, s: Tensor) -> None:
    _write((q, s), quant.silu_and_mul_quant_fp8(gate_up))


def dequant_fp8(q: Tensor, s: Tensor, group_size: int, out: Tensor) -> None:
    out.copy_(quant.dequant_fp8(q, s, out.dtype, group_size=group_size))


def rms_norm(x: Tensor, weight: Tensor, eps: float, y: Tensor) -> None:
    y.copy_(norm.rms_norm(x, weight, eps))


def rms_norm_quant_fp8(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None, q: Tensor, s: Tensor, y: Tensor,
                       residual_out: Tensor | None) -> None:  # fmt: skip
    _write((q, s, y, residual_out), norm.rms_norm_quant_fp8(x, weight, eps, residual))


def fp8_gemm_nt(a: Tensor, sa: Tensor, b: Tensor, sb: Tensor, split_k: int, out: Tensor) -> None:
    gemm.fp8_gemm_nt((a, sa), (b, sb), out)


def m_grouped_fp8_gemm_nt_offset(a: Tensor, sa: Tensor, b: Tensor, sb: Tensor, offsets: Tensor,
                                 max_m_hint: int | None, counts_ready: bool, split_k: int,
                                 out: Tensor) -> None:  # fmt: skip
    gemm.m_grouped_fp8_gemm_nt_offset((a, sa), (b, sb), out, offsets)


def m_grouped_fp8_gemm_nt_masked(a: Tensor, sa: Tensor, b: Tensor, sb: Tensor, masked_m: Tensor, expected_m: int,
                                 out: Tensor) -> None:  # fmt: skip
    gemm.m_grouped_fp8_gemm_nt_masked((a, sa), (b, sb), out, masked_m, expected_m)


def m_grouped_fp8_gemm_nt_contiguous(a: Tensor, sa: Tensor, b: Tensor, sb: Tensor, m_indices: Tensor,
                                     out: Tensor) -> None:  # fmt: skip
    gemm.m_grouped_fp8_gemm_nt_contiguous((a, sa), (b, sb), out, m_indices)


def interleave_gate_up(w: Tensor, s: Tensor, w_out: Tensor, s_out: Tensor) -> None:
    _write((w_out, s_out), gemm.interleave_gate_up(w, s))


def m_grouped_fp8_swiglu_gemm_nt_offset(a: Tensor, sa: Tensor, gate_up: Tensor, s_gate_up: Tensor, offsets: Tensor,
                                        max_m_hint: int | None, counts_ready: bool, h: Tensor,
                                        sh: Tensor) -> None:  # fmt: skip
    gemm.m_grouped_fp8_swiglu_gemm_nt_offset((a, sa), (gate_up, s_gate_up), offsets, out=(h, sh))


def moe_route(logits: Tensor, bias: Tensor, num_valid: Tensor | None, top_k: int, num_experts: int,
              num_zero_experts: int, scale: float, ids: Tensor, weights: Tensor, zero_weight: Tensor, num_real: Tensor,
              counts: Tensor, errors: Tensor) -> None:  # fmt: skip
    routing = moe.moe_route(
        logits, bias, top_k=top_k, num_experts=num_experts, num_zero_experts=num_zero_experts, scale=scale,
        num_valid=num_valid, errors=errors,
    )  # fmt: skip
    _write((ids, weights, zero_weight, num_real, counts), routing[:5])


def moe_plan(ids: Tensor, num_local: int, weights: Tensor | None, offsets: Tensor, row_of: Tensor,
             src_of: Tensor) -> None:  # fmt: skip
    _write((offsets, row_of, src_of), moe.moe_plan(ids, num_local, weights))


def moe_permute_quant(x: Tensor, row_of: Tensor, src_of: Tensor, q: Tensor, s: Tensor) -> None:
    moe.moe_permute_quant(x, Plan(row_of, row_of, src_of), out=(q, s))  # offsets are not read


def moe_combine(y: Tensor, row_of: Tensor, weights: Tensor, zero_weight: Tensor, x: Tensor, add: Tensor | None,
                out: Tensor) -> None:  # fmt: skip
    out.copy_(moe.moe_combine(y, Plan(row_of, row_of, row_of), _routing(row_of, weights, zero_weight), x, add))


def fused_moe(x: Tensor, ids: Tensor, weights: Tensor, zero_weight: Tensor, w_gate_up: Tensor,
              gate_up_scales: Tensor | None, w_down: Tensor, down_scales: Tensor | None, offsets: Tensor | None,
              row_of: Tensor | None, src_of: Tensor | None, out: Tensor) -> None:  # fmt: skip
    gate_up = w_gate_up if gate_up_scales is None else (w_gate_up, gate_up_scales)
    down = w_down if down_scales is None else (w_down, down_scales)
    plan = None if offsets is None else Plan(offsets, row_of, src_of)
    out.copy_(experts.fused_moe(x, _routing(ids, weights, zero_weight), gate_up, down, plan=plan))


def _routing(ids: Tensor, weights: Tensor, zero_weight: Tensor) -> Routing:
    return Routing(ids, weights, zero_weight, zero_weight, zero_weight, zero_weight)  # the rest is not read


def _write(outputs: tuple[Tensor | None, ...], results: tuple[Tensor | None, ...]) -> None:
    for output, result in zip(outputs, results, strict=True):
        if output is not None:
            output.copy_(result)

"""Expert chain of one rank: the other ops in a row. `expert_rows` runs the references here, and the kernels' ops from
`ops.expert_chain`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import LongcatShapeError, message
from ..types import Fp8Pair, Plan, Routing
from . import bf16_gemm, gemm, moe

__all__ = ["fused_moe"]


def fused_moe(x: Tensor, routing: Routing, w_gate_up: Tensor | Fp8Pair, w_down: Tensor | Fp8Pair, *,
              plan: Plan | None = None) -> Tensor:  # fmt: skip
    """sum over k of weights[:,k] * expert_{ids[:,k]}(x), in k order, plus zero_weight * x; one rounding to x's dtype.

    x [T,H]; w_gate_up [G,2I,H], interleaved, and w_down [G,H,I], each dense or an FP8 pair, whose activations are
    quantised 1x128; SwiGLU runs on the fp32 product; by `plan`, if there is one. A choice of weight 0 counts as one of
    id -1.
    """
    if plan is None:
        if not routing.ids.is_cuda:  # there moe_plan gives an id that no weight has no row
            check_ids(routing.ids, count_of(w_down))
        plan = moe.moe_plan(routing.ids, count_of(w_down), routing.weights)
    return moe.moe_combine(expert_rows((moe, gemm, bf16_gemm), x, plan, w_gate_up, w_down), plan, routing, x)


def count_of(weight: Tensor | Fp8Pair) -> int:
    """Experts of a stacked weight."""
    return len(weight[0]) if isinstance(weight, tuple) else len(weight)


def expert_rows(families: tuple[Any, Any, Any], x: Tensor, plan: Plan, w_gate_up: Tensor | Fp8Pair,
                w_down: Tensor | Fp8Pair, **hints: Any) -> Tensor:  # fmt: skip
    """y [R,H] in x's dtype: the experts' outputs in the order of the plan.

    families: the modules moe, gemm and bf16_gemm, of references or of ops. hints: of the products.
    """
    moe = families[0]
    quantised = isinstance(w_gate_up, tuple)
    rows = moe.moe_permute_quant(x, plan) if quantised else moe.moe_permute(x.to(w_gate_up.dtype), plan)
    y = x.new_empty((len(plan.src_of), x.shape[1]))
    return products(families, rows, plan.offsets, w_gate_up, w_down, y, **hints)


def products(families: tuple[Any, Any, Any], rows: Tensor | Fp8Pair, offsets: Tensor, w_gate_up: Tensor | Fp8Pair,
             w_down: Tensor | Fp8Pair, y: Tensor, **hints: Any) -> Tensor:  # fmt: skip
    """y [R,H], which is written: the experts' outputs of rows that lie by expert, quantised if gate_up is.

    Between FP8 gate_up and a dense down, h is bf16.
    """
    _, gemm, bf16_gemm = families
    quantise = isinstance(w_down, tuple)
    swiglu = (
        gemm.m_grouped_fp8_swiglu_gemm_nt_offset
        if isinstance(w_gate_up, tuple)
        else bf16_gemm.m_grouped_bf16_swiglu_gemm_nt_offset
    )
    h = swiglu(rows, w_gate_up, offsets, quantise=quantise, **hints)
    if quantise:
        return gemm.m_grouped_fp8_gemm_nt_offset(h, w_down, y, offsets, **hints)
    return bf16_gemm.m_grouped_bf16_gemm_nt_offset(h.to(w_down.dtype), w_down, y, offsets, **hints)


def check_ids(ids: Tensor, experts: int) -> None:
    """Raises LongcatShapeError for an id that is neither -1 nor one of `experts`; reads ids on the host."""
    if not ids.numel():
        return
    lowest, highest = (int(bound) for bound in torch.aminmax(ids))
    if lowest < -1 or highest >= experts:
        got = f"from {lowest}" if lowest < -1 else f"up to {highest}"
        raise LongcatShapeError(message("fused_moe", "routing.ids", got, f"-1 .. {experts - 1}"))

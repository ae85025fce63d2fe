"""What `fused_moe` runs on every backend: the other ops in a row. Its products of dense weights are plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..reference.experts import check_ids, expert_rows
from ..types import Fp8Pair, Plan, Routing
from .gemm import m_grouped_fp8_gemm_nt_offset, m_grouped_fp8_swiglu_gemm_nt_offset
from .moe import moe_permute_quant, moe_plan
from .quant import dequant_fp8, per_token_group_quant_fp8


def fused_moe(x: Tensor, routing: Routing, w_gate_up: Tensor | Fp8Pair, w_down: Tensor | Fp8Pair, *, plan: Plan | None,
              out: Tensor) -> None:  # fmt: skip
    """See `longcat_ops.fused_moe`; `out` [T,H] is written. FP8 weights are pairs."""
    ids, weights = routing.ids, routing.weights
    if isinstance(w_gate_up, tuple) and isinstance(w_down, tuple):
        plan = _plan(ids, weights, len(w_down[0])) if plan is None else plan
        y = _fp8_rows(x, w_gate_up, w_down, plan)
    else:
        y, plan = expert_rows(x, ids, weights, w_gate_up, w_down, _round_trip_fp8)
    torch.ops.longcat_ops.moe_combine(y, plan.row_of, weights, routing.zero_weight, x, None, out)


def _plan(ids: Tensor, weights: Tensor, experts: int) -> Plan:
    if not ids.is_cuda:  # there it would wait for the GPU, and moe_plan gives such an id no row
        check_ids(ids, experts)
    return moe_plan(ids, experts, weights)


def _fp8_rows(x: Tensor, w_gate_up: Fp8Pair, w_down: Fp8Pair, plan: Plan) -> Tensor:
    """y [R,H], the experts' outputs in the order of the plan. With the combine these are four launches, whose sizes
    depend on shapes alone.

    counts_ready holds for both products, whoever made the plan. `moe_plan` is before `moe_permute_quant` on the stream,
    and each block of the latter waits for what is ahead of it before it lets the next kernel start. The second product
    starts after the first has started (docs/fused_moe.md).
    """
    hint = _most_rows(x.shape[0], plan.row_of.shape[1], len(w_down[0]))
    permuted = moe_permute_quant(x, plan)
    hidden = m_grouped_fp8_swiglu_gemm_nt_offset(permuted, w_gate_up, plan.offsets, max_m_hint=hint, counts_ready=True)
    y = x.new_empty((len(plan.src_of), x.shape[1]))
    return m_grouped_fp8_gemm_nt_offset(hidden, w_down, y, plan.offsets, max_m_hint=hint, counts_ready=True)


def _round_trip_fp8(x: Tensor) -> Tensor:
    return dequant_fp8(*per_token_group_quant_fp8(x), torch.float32)


def _most_rows(tokens: int, choices: int, experts: int) -> int:
    """Rows that the largest expert is expected to have, from shapes alone: the mean m of an even spread, and six times
    its deviation in a Poisson process. Choices of zero experts are counted, too, which makes m up to 1.5 times too
    large. No expert has more rows than there are tokens.
    """
    mean = tokens * choices / experts
    return max(1, min(tokens, math.ceil(mean + 6 * math.sqrt(mean))))

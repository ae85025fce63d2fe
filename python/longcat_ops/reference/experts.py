"""Expert chain of one rank: the other ops' references in a row for FP8 weights, matrix products for dense ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import LongcatShapeError, message
from ..types import Fp8Pair, Plan, Routing
from .gemm import m_grouped_fp8_gemm_nt_offset, m_grouped_fp8_swiglu_gemm_nt_offset, widen_weight
from .invariance import linear
from .moe import moe_combine, moe_permute_quant, moe_plan
from .quant import dequant_fp8, per_token_group_quant_fp8
from .rows import SMALL_T, padded, silu

__all__ = ["fused_moe"]


def fused_moe(x: Tensor, routing: Routing, w_gate_up: Tensor | Fp8Pair, w_down: Tensor | Fp8Pair, *,
              plan: Plan | None = None) -> Tensor:  # fmt: skip
    """sum over k of weights[:,k] * expert_{ids[:,k]}(x), in k order, plus zero_weight * x; one rounding to x's dtype.

    x [T,H]; w_gate_up [G,2I,H] and w_down [G,H,I], dense (gate rows, then up rows) or FP8 pairs (gate_up interleaved).
    FP8: x and the SwiGLU output are quantised 1x128, SwiGLU runs on the fp32 product; by `plan`, if there is one.
    A choice of weight 0 counts as one of id -1.
    """
    if isinstance(w_gate_up, tuple) and isinstance(w_down, tuple):
        if plan is None:
            if not routing.ids.is_cuda:  # there moe_plan gives an id that no weight has no row
                check_ids(routing.ids, len(w_down[0]))
            plan = moe_plan(routing.ids, len(w_down[0]), routing.weights)
        hidden = m_grouped_fp8_swiglu_gemm_nt_offset(moe_permute_quant(x, plan), w_gate_up, plan.offsets)
        y = x.new_empty((len(plan.src_of), x.shape[1]))
        m_grouped_fp8_gemm_nt_offset(hidden, w_down, y, plan.offsets)
    else:
        y, plan = expert_rows(x, routing.ids, routing.weights, w_gate_up, w_down)
    return moe_combine(y, plan, routing, x)


def round_trip_fp8(x: Tensor) -> Tensor:
    """x [T,W] as the FP8 GEMM sees it: quantised 1x128 and widened to fp32."""
    return dequant_fp8(*per_token_group_quant_fp8(x), torch.float32)


def expert_rows(x: Tensor, ids: Tensor, weights: Tensor, w_gate_up: Tensor | Fp8Pair, w_down: Tensor | Fp8Pair,
                round_trip: Callable[[Tensor], Tensor] = round_trip_fp8) -> tuple[Tensor, Plan]:  # fmt: skip
    """The experts' outputs [R,H] where a weight is dense, and a plan whose row_of i32[T,K] gives the row of each
    choice; its other fields mean nothing. weights [T,K]: of the choices; those of weight 0 have no row. round_trip: an
    implementation of `round_trip_fp8`.
    """
    check_ids(ids, len(w_down[0] if isinstance(w_down, tuple) else w_down))
    ids = ids.masked_fill(weights == 0, -1)
    run = _run_on_all_rows if x.shape[0] <= SMALL_T else _run_by_expert
    rows, row_of = run(_Experts(x, w_gate_up, w_down, round_trip), ids)
    return rows, Plan(ids, row_of.masked_fill_(ids < 0, -1).to(torch.int32), ids)


def check_ids(ids: Tensor, experts: int) -> None:
    """Raises LongcatShapeError for an id that is neither -1 nor one of `experts`; reads ids on the host."""
    if not ids.numel():
        return
    lowest, highest = (int(bound) for bound in torch.aminmax(ids))
    if lowest < -1 or highest >= experts:
        got = f"from {lowest}" if lowest < -1 else f"up to {highest}"
        raise LongcatShapeError(message("fused_moe", "routing.ids", got, f"-1 .. {experts - 1}"))


class _Experts:
    """`expert(e, rows)`: the SwiGLU FFN of expert e on some rows of x (None: all of them)."""

    def __init__(self, x: Tensor, w_gate_up: Tensor | Fp8Pair, w_down: Tensor | Fp8Pair,
                 round_trip: Callable[[Tensor], Tensor]) -> None:  # fmt: skip
        self.dtype, self.round_trip = x.dtype, round_trip
        self.fp8_down = isinstance(w_down, tuple)
        self.down = widen_weight(*w_down) if self.fp8_down else w_down
        if isinstance(w_gate_up, tuple):
            self.x, self.gate_up = round_trip(x), widen_weight(*w_gate_up, interleaved=True)
        else:
            self.x, self.gate_up = x.to(w_gate_up.dtype), w_gate_up

    def __call__(self, expert: int, rows: Tensor | None) -> Tensor:
        x = self.x if rows is None else self.x[rows]
        product = linear if rows is None else F.linear  # all rows: a decode pass
        gate, up = product(x, self.gate_up[expert]).chunk(2, -1)
        h = silu(gate) * up
        h = self.round_trip(h) if self.fp8_down else h.to(self.down.dtype)
        return product(h, self.down[expert]).to(self.dtype)


def _run_on_all_rows(experts: _Experts, ids: Tensor) -> tuple[Tensor, Tensor]:
    """rows [n*T,H]: every chosen expert on all T tokens; row_of [T,K]: where token t's k-th product lies.

    One shape of product serves the whole pass, so a token's bits do not depend on what its neighbours chose.
    """
    tokens = ids.shape[0]
    chosen = sorted({e for row in ids.tolist() for e in row if e >= 0})
    if not chosen or not tokens:
        return experts.x.new_zeros((1, experts.x.shape[1])), torch.zeros_like(ids)
    rows = torch.cat([experts(e, None) for e in chosen])
    place = torch.searchsorted(torch.tensor(chosen, device=ids.device), ids.clamp(min=chosen[0]).long())
    return rows, place * tokens + torch.arange(tokens, device=ids.device)[:, None]


def _run_by_expert(experts: _Experts, ids: Tensor) -> tuple[Tensor, Tensor]:
    """rows [R,H] sorted by expert (stable in token order); row_of [T,K]."""
    flat = ids.reshape(-1).long()
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat + 1).tolist()
    start, parts = counts[0], []  # ids of -1 sort first
    for expert, count in enumerate(counts[1:]):
        if count:
            token = order[start : start + count] // ids.shape[1]
            parts.append(experts(expert, F.pad(token, (0, padded(count) - count)))[:count])
            start += count
    row_of = torch.empty_like(order)
    row_of[order] = torch.arange(order.numel(), device=ids.device) - counts[0]
    rows = torch.cat(parts) if parts else experts.x.new_zeros((1, experts.x.shape[1]))
    return rows, row_of.view(ids.shape)

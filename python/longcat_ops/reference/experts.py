"""Expert chain of one rank: the ops in a row for FP8 weights, plain-torch matrix products for dense ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops
from ..errors import LongcatShapeError, message
from .gemm import Fp8Pair, widen_weight
from .invariance import linear
from .moe import Plan, Routing, moe_combine
from .rows import SMALL_T, padded, silu


def fused_moe(x: Tensor, routing: Routing, w_gate_up: Tensor | Fp8Pair, w_down: Tensor | Fp8Pair, *,
              plan: Plan | None = None, out: Tensor | None = None) -> Tensor:  # fmt: skip
    """sum over k of weights[:,k] * expert_{ids[:,k]}(x), in k order, plus zero_weight * x; one rounding to x's dtype.

    x [T,H]; w_gate_up [G,2I,H] and w_down [G,H,I], dense (gate rows, then up rows) or FP8 pairs (gate_up interleaved).
    FP8: x and the SwiGLU output are quantised 1x128, SwiGLU runs on the fp32 product; by `plan`, if there is one.
    """
    out = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    if isinstance(w_gate_up, tuple) and isinstance(w_down, tuple):
        if plan is None:
            if not routing.ids.is_cuda:  # there it would wait for the GPU, and moe_plan gives such an id no row
                _check_ids(routing.ids, len(w_down[0]))
            plan = ops.moe_plan(routing.ids, len(w_down[0]))
        return _fp8_chain(x, routing, w_gate_up, w_down, plan, out)
    _check_ids(routing.ids, len(w_down[0] if isinstance(w_down, tuple) else w_down))
    chain = _Experts(x, w_gate_up, w_down)
    run = _run_on_all_rows if x.shape[0] <= SMALL_T else _run_by_expert
    rows, row_of = run(chain, routing.ids)
    plan = Plan(routing.ids, row_of.masked_fill_(routing.ids < 0, -1).to(torch.int32), routing.ids)  # row_of is read
    combine = moe_combine if x.dtype == torch.float64 else ops.moe_combine
    return out.copy_(combine(rows, plan, routing, x))


def _check_ids(ids: Tensor, experts: int) -> None:
    if not ids.numel():
        return
    lowest, highest = (int(bound) for bound in torch.aminmax(ids))
    if lowest < -1 or highest >= experts:
        got = f"from {lowest}" if lowest < -1 else f"up to {highest}"
        raise LongcatShapeError(message("fused_moe", "routing.ids", got, f"-1 .. {experts - 1}"))


def _fp8_chain(x: Tensor, routing: Routing, w_gate_up: Fp8Pair, w_down: Fp8Pair, plan: Plan, out: Tensor) -> Tensor:
    """Four launches, whose sizes depend on shapes alone.

    counts_ready is true of both products, whoever made the plan: `moe_plan` lies before `moe_permute_quant` on the
    stream, every block of which lets the next kernel start only behind its own wait for what is ahead of it. The second
    product starts behind the start of the first (docs/fused_moe.md).
    """
    hint = _most_rows(x.shape[0], len(plan.src_of), len(w_down[0]))
    permuted = ops.moe_permute_quant(x, plan)
    hidden = ops.m_grouped_fp8_swiglu_gemm_nt_offset(
        permuted, w_gate_up, plan.offsets, max_m_hint=hint, counts_ready=True
    )
    y = x.new_empty((len(plan.src_of), x.shape[1]))
    ops.m_grouped_fp8_gemm_nt_offset(hidden, w_down, y, plan.offsets, max_m_hint=hint, counts_ready=True)
    torch.ops.longcat_ops.moe_combine(y, plan.row_of, routing.weights, routing.zero_weight, x, None, out)
    return out


def _most_rows(tokens: int, rows: int, experts: int) -> int | None:
    """No expert has more rows than there are tokens. None where the kernels' own estimate, four times the mean, is
    below that: with more than four experts for each choice.
    """
    return tokens if 4 * rows >= tokens * experts else None


class _Experts:
    """`expert(e, rows)`: the SwiGLU FFN of expert e on some rows of x (None: all of them)."""

    def __init__(self, x: Tensor, w_gate_up: Tensor | Fp8Pair, w_down: Tensor | Fp8Pair) -> None:
        self.dtype = x.dtype
        self.fp8_down = isinstance(w_down, tuple)
        self.down = widen_weight(*w_down) if self.fp8_down else w_down
        if isinstance(w_gate_up, tuple):
            self.x, self.gate_up = _round_trip_fp8(x), widen_weight(*w_gate_up, interleaved=True)
        else:
            self.x, self.gate_up = x.to(w_gate_up.dtype), w_gate_up

    def __call__(self, expert: int, rows: Tensor | None) -> Tensor:
        x = self.x if rows is None else self.x[rows]
        gate, up = linear(x, self.gate_up[expert]).chunk(2, -1)
        h = silu(gate) * up
        h = _round_trip_fp8(h) if self.fp8_down else h.to(self.down.dtype)
        return linear(h, self.down[expert]).to(self.dtype)


def _round_trip_fp8(x: Tensor) -> Tensor:
    """x as the FP8 GEMM sees it: quantised 1x128 and widened to fp32."""
    return ops.dequant_fp8(*ops.per_token_group_quant_fp8(x), torch.float32)


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

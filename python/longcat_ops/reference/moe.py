"""Plain-torch routing and the EP=1 expert chain: the oracle, and the CPU path."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import LongcatShapeError, message
from ..ops.quant import dequant_fp8, per_token_group_quant_fp8
from .gemm import Fp8Pair, widen_weight

# Up to this many tokens every expert runs on all T rows, so that one GEMM shape serves the whole step: the bits of a
# token do not depend on which experts its neighbours chose, and the CPU library does not prepare a new primitive for
# each count.
SMALL_T = 8
_PREFILL_MULTIPLE = 32


class Routing(NamedTuple):
    """What the router decided for T tokens over E = N FFN + Z zero experts, K choices each.

    ids i32[T,K]: FFN expert, or -1 for a zero expert or a row that is not routed; order: score descending, lower id
    first. weights f32[T,K]: scaled score, 0 where ids is -1. zero_weight f32[T]: summed scaled score of the zero
    experts chosen. num_real u8[T]: FFN experts of each token. counts i32[E]: tokens per logical expert. errors i32[1]:
    rows with NaN or +inf.
    """

    ids: Tensor
    weights: Tensor
    zero_weight: Tensor
    num_real: Tensor
    counts: Tensor
    errors: Tensor


def moe_route(logits: Tensor, bias: Tensor, *, top_k: int, num_experts: int, num_zero_experts: int, scale: float,
              num_valid: int | None = None) -> Routing:  # fmt: skip
    """Softmax over all E, choose by score + bias, weigh by score * scale; zero experts leave the list and sum into
    zero_weight.

    fp32 throughout (the dtype of logits when that is wider). Equal scores go to the lower id: the sort is stable.
    """
    acc = torch.promote_types(logits.dtype, torch.float32)
    tokens, experts = logits.shape
    scores = logits.softmax(-1, dtype=acc)
    chosen = torch.sort(scores + bias.to(acc), dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = scores.gather(1, chosen) * scale
    bad = weights.isnan().any(-1)  # softmax makes NaN of a row with NaN or +inf, and of one that is -inf throughout
    if bad.any():
        chosen = chosen.masked_fill(bad[:, None], experts)
    zero = chosen >= num_experts - num_zero_experts
    zero_weight = (weights * zero).sum(-1)
    ids = chosen.to(torch.int32).masked_fill_(zero, -1)
    num_real = (~zero).sum(-1, dtype=torch.uint8)
    weights = weights.masked_fill_(zero, 0)
    if num_valid is not None and num_valid < tokens:  # rows that are not routed
        chosen, bad = chosen[:num_valid], bad[:num_valid]
        ids[num_valid:] = -1
        for part in (weights, zero_weight, num_real):
            part[num_valid:] = 0
    counts = torch.bincount(chosen.reshape(-1), minlength=experts + 1)[:experts].to(torch.int32)
    return Routing(ids, weights, zero_weight, num_real, counts, bad.sum(dtype=torch.int32).reshape(1))


def fused_moe(x: Tensor, routing: Routing, w_gate_up: Tensor | Fp8Pair, w_down: Tensor | Fp8Pair) -> Tensor:
    """sum over k of weights[:,k] * expert_{ids[:,k]}(x), in k order, plus zero_weight * x; one rounding to x's dtype.

    x [T,H]; w_gate_up [G,2I,H] (gate rows, then up rows) and w_down [G,H,I], dense or FP8 pairs whose scale blocks
    restart at the first up row. FP8: x and the SwiGLU output are quantised 1x128, SwiGLU runs on the fp32 product.
    """
    acc = torch.promote_types(x.dtype, torch.float32)
    experts = _Experts(x, w_gate_up, w_down)
    if x.shape[0] <= SMALL_T:
        rows, row_of = _run_on_all_rows(experts, routing.ids)
    else:
        rows, row_of = _run_by_expert(experts, routing.ids)
    # [T,K,H], products of no expert zeroed whatever they hold; k order fixes the sum, whatever the batch.
    products = (rows[row_of].to(acc) * routing.weights[..., None]).masked_fill_(routing.ids[..., None] < 0, 0)
    out, *others = products.unbind(1)
    for product in others:
        out = out + product
    return (out + x.to(acc) * routing.zero_weight[:, None]).to(x.dtype)


class _Experts:
    """`expert(e, rows)`: the SwiGLU FFN of expert e on some rows of x (None: all of them)."""

    def __init__(self, x: Tensor, w_gate_up: Tensor | Fp8Pair, w_down: Tensor | Fp8Pair) -> None:
        self.dtype = x.dtype
        self.fp8_down = isinstance(w_down, tuple)
        self.down = widen_weight(*w_down) if self.fp8_down else w_down
        if isinstance(w_gate_up, tuple):
            self.x, self.gate_up = _round_trip_fp8(x), widen_weight(*w_gate_up, halves=2)
        else:
            self.x, self.gate_up = x, w_gate_up

    def require(self, highest: int) -> None:
        """Refuse ids of experts that are not here."""
        if highest >= len(self.gate_up):
            raise LongcatShapeError(
                message("fused_moe", "routing.ids", f"up to {highest}", f"-1 .. {len(self.gate_up) - 1}")
            )

    def __call__(self, expert: int, rows: Tensor | None) -> Tensor:
        x = self.x if rows is None else self.x[rows]
        gate, up = F.linear(x, self.gate_up[expert]).chunk(2, -1)
        h = F.silu(gate) * up
        h = _round_trip_fp8(h) if self.fp8_down else h.to(self.down.dtype)
        return F.linear(h, self.down[expert]).to(self.dtype)


def _round_trip_fp8(x: Tensor) -> Tensor:
    """x as the FP8 GEMM sees it: quantised 1x128 and widened to fp32."""
    return dequant_fp8(*per_token_group_quant_fp8(x), torch.float32)


def _run_on_all_rows(experts: _Experts, ids: Tensor) -> tuple[Tensor, Tensor]:
    """rows [n*T,H]: every chosen expert on all T tokens; row_of [T,K]: where token t's k-th product lies."""
    tokens = ids.shape[0]
    chosen = sorted({e for row in ids.tolist() for e in row if e >= 0})
    experts.require(chosen[-1] if chosen else -1)
    if not chosen or not tokens:
        return experts.x.new_zeros((1, experts.x.shape[1])), torch.zeros_like(ids, dtype=torch.int64)
    rows = torch.cat([experts(e, None) for e in chosen])
    place = torch.searchsorted(torch.tensor(chosen, device=ids.device), ids.clamp(min=chosen[0]).long())
    return rows, place * tokens + torch.arange(tokens, device=ids.device)[:, None]


def _run_by_expert(experts: _Experts, ids: Tensor) -> tuple[Tensor, Tensor]:
    """rows [R,H] sorted by expert (stable in token order); row_of [T,K]."""
    flat = ids.reshape(-1).long()
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat + 1).tolist()
    experts.require(len(counts) - 2)
    start, parts = counts[0], []  # ids of -1 sort first
    for expert, count in enumerate(counts[1:]):
        if count == 0:
            continue
        token = order[start : start + count] // ids.shape[1]
        start += count
        padding = -count % _PREFILL_MULTIPLE
        parts.append(experts(expert, F.pad(token, (0, padding)))[:count])
    row_of = torch.empty_like(order)
    row_of[order] = torch.arange(order.numel(), device=ids.device) - counts[0]
    rows = torch.cat(parts) if parts else experts.x.new_zeros((1, experts.x.shape[1]))
    return rows, row_of.clamp_(min=0).view(ids.shape)

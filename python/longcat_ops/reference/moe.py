"""Plain-torch routing, dispatch and combine: the oracle, and the path where there is no kernel. Nothing here
reads a tensor on the host, so on a GPU the same code can be captured in a graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Fp8Pair, Placement, Plan, Routing
from .quant import per_token_group_quant_fp8
from .sums import acc_dtype

__all__ = ["moe_combine", "moe_permute", "moe_permute_quant", "moe_place", "moe_plan", "moe_route"]

_COMBINE_TOKENS = 256  # at once, because the products of all choices are held in fp32


def moe_route(logits: Tensor, bias: Tensor, *, top_k: int, num_experts: int, num_zero_experts: int, scale: float,
              num_valid: Tensor | int | None = None, errors: Tensor | None = None) -> Routing:  # fmt: skip
    """Softmax over all E, choose by score + bias, weigh by score * scale; zero experts leave the list and sum into
    zero_weight.

    fp32 throughout (the dtype of logits when that is wider). Equal scores go to the lower id: the sort is stable.
    """
    acc = acc_dtype(logits.dtype)
    tokens, experts = logits.shape
    scores = logits.softmax(-1, dtype=acc)
    biased = scores + bias.to(acc)
    chosen = torch.sort(biased, dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = scores.gather(1, chosen) * scale
    dropped = bad = biased.isnan().any(-1)  # softmax gives NaN for a row with NaN or +inf, and for one all of -inf
    if num_valid is not None:
        padding = torch.arange(tokens, device=logits.device) >= num_valid
        weights = weights.masked_fill(padding[:, None], 0)
        dropped, bad = bad | padding, bad & ~padding
    chosen = chosen.masked_fill(dropped[:, None], experts)
    zero = chosen >= num_experts - num_zero_experts
    counts = torch.zeros(experts + 1, dtype=torch.int32, device=logits.device)
    flat = chosen.reshape(-1)
    counts.index_add_(0, flat, torch.ones_like(flat, dtype=torch.int32))
    num_bad = bad.sum(dtype=torch.int32).reshape(1)
    return Routing(
        ids=chosen.to(torch.int32).masked_fill_(zero, -1),
        weights=weights.masked_fill(zero, 0),
        zero_weight=(weights * zero).sum(-1).masked_fill(bad, torch.nan),
        num_real=(~zero).sum(-1, dtype=torch.uint8),
        counts=counts[:experts],
        errors=num_bad if errors is None else errors.add_(num_bad),
    )


def moe_place(ids: Tensor, placement: Placement, layer: int) -> Tensor:
    """slots[id, hash(t, layer) % replicas[id]]; -1 where there is no such expert, or none of 1 .. M replicas."""
    experts, most = placement.slots.shape
    token = torch.arange(len(ids), dtype=torch.int64, device=ids.device)
    expert = ids.long().clamp(0, experts - 1)
    replicas = placement.replicas.long()[expert]
    placed = (ids == expert) & (replicas >= 1) & (replicas <= most)
    chosen = _hash(token + layer * 0x9E3779B9)[:, None] % replicas.clamp(1, most)
    return placement.slots[expert, chosen].masked_fill(~placed, -1)


def _hash(h: Tensor) -> Tensor:
    """The 32-bit finaliser of MurmurHash3 of i64 numbers, modulo 2^32."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = h & 0xFFFFFFFF
        h = h ^ (h >> shift)
        # In halves: a product of two 32-bit numbers does not fit into i64.
        h = h * (factor & 0xFFFF) + ((h * (factor >> 16) & 0xFFFF) << 16)
    h = h & 0xFFFFFFFF
    return h ^ (h >> 16)


def moe_plan(ids: Tensor, num_local: int, weights: Tensor | None = None) -> Plan:
    """Stable counting sort of the choices by expert; ids outside 0 .. num_local-1 have no row, nor has weight 0."""
    tokens, k = ids.shape
    rows = tokens * min(k, num_local)
    flat = ids.reshape(-1).long()
    here = (flat >= 0) & (flat < num_local)
    if weights is not None:
        here &= weights.reshape(-1) != 0  # true of NaN
    key = torch.where(here, flat, num_local)
    order = torch.argsort(key, stable=True)
    counts = torch.zeros(num_local + 1, dtype=torch.int32, device=ids.device)
    counts.index_add_(0, key, torch.ones_like(key, dtype=torch.int32))
    ends = counts[:num_local].cumsum(0, dtype=torch.int32)
    offsets = torch.cat([ends.new_zeros(1), ends.clamp(max=rows)])
    place = torch.arange(tokens * k, dtype=torch.int32, device=ids.device)
    used = place < offsets[-1]
    row_of = torch.empty_like(place)
    row_of[order] = torch.where(used, place, -1)
    src_of = torch.where(used, order.to(torch.int32), -1)[:rows]
    return Plan(offsets, row_of.view(ids.shape), src_of)


def moe_permute(x: Tensor, plan: Plan, *, out: Tensor | None = None) -> Tensor:
    """Each row of x copied to the places of its choices; rows without a source are not written."""
    out = x.new_empty((len(plan.src_of), x.shape[1])) if out is None else out
    tokens, k = plan.row_of.shape
    if tokens:
        token = plan.src_of.long() // k
        used = ((plan.src_of >= 0) & (token < tokens))[:, None]
        out.copy_(torch.where(used, x[token.clamp(0, tokens - 1)], out))
    return out


def moe_permute_quant(x: Tensor, plan: Plan, *, column_major_scales: bool = False,
                      out: Fp8Pair | None = None) -> Fp8Pair:  # fmt: skip
    """x quantised 1x128, each row copied to the places of its choices; rows without a source are not written."""
    q, s = per_token_group_quant_fp8(x)
    if out is None:
        rows, width, blocks = len(plan.src_of), x.shape[1], s.shape[1]
        scales = x.new_empty((blocks, rows + -rows % 4), dtype=torch.float32).t()[:rows]
        out = (
            torch.empty((rows, width), dtype=q.dtype, device=x.device),
            scales if column_major_scales else torch.empty((rows, blocks), dtype=torch.float32, device=x.device),
        )
    moe_permute(q.view(torch.uint8), plan, out=out[0].view(torch.uint8))
    moe_permute(s, plan, out=out[1])
    return out


def moe_combine(y: Tensor, plan: Plan, routing: Routing, x: Tensor, add: Tensor | None = None) -> Tensor:
    """sum over k, in order, of weights[:,k] * y[row_of[:,k]], plus zero_weight * x, plus add; one rounding."""
    per_token = plan.row_of, routing.weights, routing.zero_weight, x, add
    if len(x) <= _COMBINE_TOKENS:
        return _combine(y, *per_token)
    parts = ([None] * -(-len(x) // _COMBINE_TOKENS) if t is None else t.split(_COMBINE_TOKENS) for t in per_token)
    return torch.cat([_combine(y, *part) for part in zip(*parts, strict=True)])


def _combine(y: Tensor, row_of: Tensor, weights: Tensor, zero_weight: Tensor, x: Tensor, add: Tensor | None) -> Tensor:
    acc = acc_dtype(x.dtype)
    absent = (row_of < 0) | (row_of >= len(y))
    if len(y) == 0:
        y = y.new_zeros((1, y.shape[1]))
    # [T,K,H]; the product with no row is 0, whatever lies there. k order fixes the sum, whatever the batch.
    products = y[row_of.masked_fill(absent, 0)].to(acc) * weights[..., None]
    total, *others = products.masked_fill_(absent[..., None], 0).unbind(1)
    for product in others:
        total = total + product
    total = total + x.to(acc) * zero_weight[:, None]
    return (total if add is None else total + add.to(acc)).to(x.dtype)

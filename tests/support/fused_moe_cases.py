"""Problems of fused_moe, and their weights in FP8."""

from __future__ import annotations

import torch
from torch import Tensor

import longcat_ops
from longcat_ops import (
    Routing,
    moe_route,
    per_block_quant_fp8,
    reference,
)

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


Pair = tuple[Tensor, Tensor]


def make(tokens: int, hidden: int = 64, width: int = 48, experts: int = 6, zero: int = 3, top_k: int = 4,
         dtype: torch.dtype = F32, weight_dtype: torch.dtype | None = None,
         seed: int = 0) -> tuple[Tensor, Routing, Tensor, Tensor]:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    weight_dtype = weight_dtype or dtype
    x = torch.randn(tokens, hidden, generator=g, dtype=F64).to(dtype)
    gate_up = (torch.randn(experts, 2 * width, hidden, generator=g, dtype=F64) * 0.1).to(weight_dtype)
    down = (torch.randn(experts, hidden, width, generator=g, dtype=F64) * 0.1).to(weight_dtype)
    logits = torch.randn(tokens, experts + zero, generator=g)
    bias = torch.randn(experts + zero, generator=g) * 0.05
    e = experts + zero
    return x, moe_route(logits, bias, top_k=top_k, num_experts=e, num_zero_experts=zero, scale=6.0), gate_up, down


def quantised(gate_up: Tensor, down: Tensor) -> tuple[Pair, Pair]:
    """FP8 pairs of gate_up and down; gate_up holds gate rows, then up rows, which start a new block of scales."""
    width = gate_up.shape[1] // 2
    pairs = [[per_block_quant_fp8(half) for half in w.split(width)] for w in gate_up]
    q = torch.stack([torch.cat([a[0], b[0]]) for a, b in pairs])
    s = torch.stack([torch.cat([a[1], b[1]]) for a, b in pairs])
    d = [per_block_quant_fp8(w) for w in down]
    return (q, s), (torch.stack([w for w, _ in d]), torch.stack([s for _, s in d]))


def dense_weights(gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The weights in the layout that fused_moe takes."""
    return reference.interleave_gate_up(gate_up), down


def fp8_weights(gate_up: Tensor, down: Tensor) -> tuple[Pair, Pair]:
    """FP8 pairs in the layout that fused_moe takes."""
    pair, down_pair = quantised(gate_up.float(), down.float())
    return longcat_ops.interleave_gate_up(*pair), down_pair

"""Plain-torch FP8 GEMM: the oracle, and the CPU path. Quantising and widening go through the ops: same bits, native
speed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from ..ops.quant import dequant_fp8

Fp8Pair = tuple[Tensor, Tensor]

# Dequantised weights by FP8 tensor: torch has no CPU FP8 matmul, and widening a weight costs more than one decode
# step's product with it. Entries die with their weight and are renewed when it was written to.
_widened: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def widen_weight(q: Tensor, s: Tensor, halves: int = 1) -> Tensor:
    """fp32 form of an FP8 weight q [..., N, K] with block scales s [..., ceil(N/128), ceil(K/128)], kept while q lives.

    halves: 2 where N holds two weights on top of each other (gate, up), each with scale blocks of its own.
    """
    # A tensor made in inference mode does not count its writes, so nothing tells when a kept copy is stale.
    counted = not (q.is_inference() or s.is_inference())
    stamp = (q._version, s._version, s.data_ptr()) if counted else None
    kept = _widened.get(q) if counted else None
    if kept is None or kept[0] != stamp:
        matrices = q.view(-1, q.shape[-2] // halves, q.shape[-1]), s.view(-1, s.shape[-2] // halves, s.shape[-1])
        wide = torch.stack([dequant_fp8(*pair, torch.float32) for pair in zip(*matrices, strict=True)])
        kept = (stamp, wide.view(q.shape))
        if counted:
            _widened[q] = kept
    return kept[1]


def fp8_gemm_nt(lhs: Fp8Pair, rhs: Fp8Pair, out: Tensor | None = None) -> Tensor:
    """D[M,N] = dequant(lhs[M,K]) @ dequant(rhs[N,K]).T, accumulated in fp32, rounded once to `out`'s dtype (bf16)."""
    a = dequant_fp8(*lhs, torch.float32)
    d = F.linear(a, widen_weight(*rhs))
    if out is None:
        return d.to(torch.bfloat16)
    return out.copy_(d)

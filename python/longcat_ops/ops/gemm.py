"""Matrix products over FP8 weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import LongcatShapeError, message
from ..reference import gemm as reference

Fp8Pair = tuple[Tensor, Tensor]


def fp8_gemm_nt(lhs: Fp8Pair, rhs: Fp8Pair, out: Tensor | None = None) -> Tensor:
    """D = A @ B.T over block-scaled FP8 operands.

    Args:
        lhs: (a e4m3[M,K], sa f32[M,ceil(K/128)]): activations quantised 1x128 (`per_token_group_quant_fp8`).
        rhs: (b e4m3[N,K], sb f32[ceil(N/128),ceil(K/128)]): weights quantised 128x128 (`per_block_quant_fp8`).
        out: [M,N] of any floating dtype; bf16 is allocated if None.

    Returns: `out`; accumulation in fp32, one rounding. Scaling as in DeepSeek-V3 (arXiv 2412.19437, section 3.3).
    Raises: LongcatShapeError for operands that do not fit each other.
    """
    (a, sa), (b, sb) = lhs, rhs
    for name, q in (("lhs", a), ("rhs", b)):
        if q.dtype != torch.float8_e4m3fn:
            raise LongcatShapeError(message("fp8_gemm_nt", name, q.dtype, torch.float8_e4m3fn))
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise LongcatShapeError(
            message(
                "fp8_gemm_nt", "rhs", f"{list(b.shape)} against lhs {list(a.shape)}", "a [M,K] and b [N,K] with one K"
            )
        )
    blocks = -(-a.shape[1] // 128)
    for name, s, shape in (("lhs", sa, (a.shape[0], blocks)), ("rhs", sb, (-(-b.shape[0] // 128), blocks))):
        if s.shape != shape:
            raise LongcatShapeError(message("fp8_gemm_nt", f"{name} scales", list(s.shape), list(shape)))
    expected = (a.shape[0], b.shape[0])
    if out is not None and out.shape != expected:
        raise LongcatShapeError(message("fp8_gemm_nt", "out", list(out.shape), list(expected)))
    return reference.fp8_gemm_nt(lhs, rhs, out)

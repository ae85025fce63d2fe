"""Plain-torch bf16 GEMMs: the oracle, and the path where there is no kernel. Operands are widened to float32; float64
ones keep their dtype.
"""

from __future__ import annotations

from torch import Tensor

from ..types import Fp8Pair
from .gemm import Hidden, groups_of, halves_of, new_hidden, swiglu_into
from .sums import product

__all__ = [
    "bf16_gemm_nt",
    "m_grouped_bf16_gemm_nt_contiguous",
    "m_grouped_bf16_gemm_nt_masked",
    "m_grouped_bf16_gemm_nt_offset",
    "m_grouped_bf16_swiglu_gemm_nt_offset",
]


def bf16_gemm_nt(a: Tensor, b: Tensor, out: Tensor | None = None, *, split_k: int = 1) -> Tensor:
    """D[M,N] = a[M,K] @ b[N,K].T, accumulated in fp32, rounded once to `out`'s dtype (a's). split_k changes nothing
    here."""
    d = product(a, b)
    return d.to(a.dtype) if out is None else out.copy_(d)


def m_grouped_bf16_gemm_nt_offset(a: Tensor, b: Tensor, out: Tensor, offsets: Tensor, *,
                                  max_m_hint: int | None = None, counts_ready: bool = False,
                                  split_k: int = 1) -> Tensor:  # fmt: skip
    """out[offsets[g]:offsets[g+1]] = a[offsets[g]:offsets[g+1]] @ b[g].T; other rows are not written."""
    for g, rows in groups_of(offsets, len(a)):
        out[rows] = product(a[rows], b[g]).to(out.dtype)
    return out


def m_grouped_bf16_gemm_nt_masked(a: Tensor, b: Tensor, out: Tensor, masked_m: Tensor, expected_m: int) -> Tensor:
    """out[g,:masked_m[g]] = a[g,:masked_m[g]] @ b[g].T; other rows are not written."""
    for g, m in enumerate(masked_m.tolist()):
        if m > 0:
            out[g, :m] = product(a[g, :m], b[g]).to(out.dtype)
    return out


def m_grouped_bf16_gemm_nt_contiguous(a: Tensor, b: Tensor, out: Tensor, m_indices: Tensor) -> Tensor:
    """out[i] = a[i] @ b[m_indices[i]].T; rows whose index is no group of b are not written."""
    for g in m_indices.unique().tolist():
        if 0 <= g < len(b):
            rows = (m_indices == g).nonzero()[:, 0]
            out[rows] = product(a[rows], b[g]).to(out.dtype)
    return out


def m_grouped_bf16_swiglu_gemm_nt_offset(a: Tensor, gate_up: Tensor, offsets: Tensor, *, quantise: bool = False,
                                         max_m_hint: int | None = None, counts_ready: bool = False,
                                         out: Hidden | None = None) -> Tensor | Fp8Pair:  # fmt: skip
    """silu(a @ gate[g].T) * (a @ up[g].T) per group of rows on the fp32 products, rounded to a's dtype, or quantised
    1x128."""
    out = new_hidden(a, gate_up.shape[1] // 2, a.dtype, quantise) if out is None else out
    for g, rows in groups_of(offsets, len(a)):
        swiglu_into(out, rows, product(a[rows], halves_of(gate_up[g : g + 1])[0]))
    return out[0] if out[1] is None else out

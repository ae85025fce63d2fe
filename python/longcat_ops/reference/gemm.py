"""Plain-torch FP8 GEMMs: the oracle, and the path where there is no kernel."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from ..types import BLOCK, ROW_GROUP, Fp8Pair
from .quant import dequant_fp8, per_token_group_quant_fp8
from .sums import product, silu

__all__ = [
    "fp8_gemm_nt",
    "interleave_gate_up",
    "m_grouped_fp8_gemm_nt_contiguous",
    "m_grouped_fp8_gemm_nt_masked",
    "m_grouped_fp8_gemm_nt_offset",
    "m_grouped_fp8_swiglu_gemm_nt_offset",
]

Hidden = tuple[Tensor, Tensor | None]  # h and, if it is quantised, its scales


# Dequantised weights by FP8 tensor: torch has no CPU FP8 matmul, and widening a weight costs more than one decode
# step's product with it. An entry lives as long as its weight, and is renewed after a write to it.
_widened: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def widen_weight(q: Tensor, s: Tensor, *, interleaved: bool = False) -> Tensor:
    """fp32 form of an FP8 weight q [..., N, K] with block scales s [..., ceil(N/128), ceil(K/128)], kept while q lives.

    interleaved: q is gate_up [G, 2I, K] in the order of `interleave_gate_up`; the result is gate rows, then up rows.
    """
    # A tensor made in inference mode does not count its writes, so a stale copy could not be detected.
    counted = not (q.is_inference() or s.is_inference())
    stamp = (q._version, s._version, s.data_ptr(), interleaved) if counted else None
    kept = _widened.get(q) if counted else None
    if kept is None or kept[0] != stamp:
        if interleaved:
            w, scales = (t.unflatten(1, (2, -1)).flatten(0, 1) for t in _reorder(q, s, undo=True))
        else:
            w, scales = q.reshape(-1, *q.shape[-2:]), s.reshape(-1, *s.shape[-2:])
        wide = [dequant_fp8(*pair, torch.float32) for pair in zip(w, scales, strict=True)]
        kept = (stamp, torch.stack(wide).view(q.shape) if wide else q.float())
        if counted:
            _widened[q] = kept
    return kept[1]


def fp8_gemm_nt(lhs: Fp8Pair, rhs: Fp8Pair, out: Tensor | None = None, *, split_k: int = 1) -> Tensor:
    """D[M,N] = dequant(lhs[M,K]) @ dequant(rhs[N,K]).T, accumulated in fp32, rounded once to `out`'s dtype (bf16).
    split_k changes nothing here."""
    d = product(dequant_fp8(*lhs, torch.float32), widen_weight(*rhs))
    d = _rescued(d, lhs, rhs)
    return d.to(torch.bfloat16) if out is None else out.copy_(d)


def m_grouped_fp8_gemm_nt_offset(lhs: Fp8Pair, rhs: Fp8Pair, out: Tensor, offsets: Tensor, *,
                                 max_m_hint: int | None = None, counts_ready: bool = False,
                                 split_k: int = 1) -> Tensor:  # fmt: skip
    """out[offsets[g]:offsets[g+1]] = lhs[offsets[g]:offsets[g+1]] @ rhs[g].T; other rows are not written."""
    a, w = dequant_fp8(*lhs, torch.float32), widen_weight(*rhs)
    for g, rows in groups_of(offsets, len(a)):
        out[rows] = _rescued(product(a[rows], w[g]), _part(lhs, rows), _part(rhs, g)).to(out.dtype)
    return out


def m_grouped_fp8_gemm_nt_masked(lhs: Fp8Pair, rhs: Fp8Pair, out: Tensor, masked_m: Tensor,
                                 expected_m: int) -> Tensor:  # fmt: skip
    """out[g,:masked_m[g]] = lhs[g,:masked_m[g]] @ rhs[g].T; other rows are not written."""
    w = widen_weight(*rhs)
    for g, m in enumerate(masked_m.tolist()):
        if m > 0:
            rows = _part(lhs, (g, slice(m)))
            d = product(dequant_fp8(*rows, torch.float32), w[g])
            out[g, :m] = _rescued(d, rows, _part(rhs, g)).to(out.dtype)
    return out


def m_grouped_fp8_gemm_nt_contiguous(lhs: Fp8Pair, rhs: Fp8Pair, out: Tensor, m_indices: Tensor) -> Tensor:
    """out[i] = lhs[i] @ rhs[m_indices[i]].T; rows whose index is no group of rhs are not written."""
    a, w = dequant_fp8(*lhs, torch.float32), widen_weight(*rhs)
    for g in m_indices.unique().tolist():
        if 0 <= g < len(w):
            rows = (m_indices == g).nonzero()[:, 0]
            out[rows] = _rescued(product(a[rows], w[g]), _part(lhs, rows), _part(rhs, g)).to(out.dtype)
    return out


def interleave_gate_up(w: Tensor, s: Tensor | None = None) -> Tensor | Fp8Pair:
    """Rows of w [G,2I,K] in groups of 8, gate and up in turn; the scale rows of s in turn, one by one."""
    return _turns(w, ROW_GROUP, undo=False) if s is None else _reorder(w, s, undo=False)


def halves_of(w: Tensor) -> Tensor:
    """A weight [G,2I,K] in the order of `interleave_gate_up` as gate rows, then up rows."""
    return _turns(w, ROW_GROUP, undo=True)


def m_grouped_fp8_swiglu_gemm_nt_offset(lhs: Fp8Pair, gate_up: Fp8Pair, offsets: Tensor, *,
                                        max_m_hint: int | None = None, counts_ready: bool = False,
                                        quantise: bool = True,
                                        out: Hidden | None = None) -> Fp8Pair | Tensor:  # fmt: skip
    """quantise_1x128(silu(lhs @ gate[g].T) * (lhs @ up[g].T)) per group of rows; SwiGLU on the fp32 products. Without
    quantise it is rounded to bf16."""
    a, w = dequant_fp8(*lhs, torch.float32), widen_weight(*gate_up, interleaved=True)
    out = new_hidden(a, w.shape[1] // 2, torch.bfloat16, quantise) if out is None else out
    for g, rows in groups_of(offsets, len(a)):
        d = product(a[rows], w[g])
        d = _rescued(d, _part(lhs, rows), _part(gate_up, g), interleaved=True)
        swiglu_into(out, rows, d)
    return out[0] if out[1] is None else out


def new_hidden(a: Tensor, width: int, plain: torch.dtype, quantise: bool) -> Hidden:
    """h [M,width] and its scales; or h of the dtype `plain`, and None."""
    if not quantise:
        return a.new_empty((len(a), width), dtype=plain), None
    scales = a.new_empty((len(a), -(-width // BLOCK)), dtype=torch.float32)
    return a.new_empty((len(a), width), dtype=torch.float8_e4m3fn), scales


def swiglu_into(out: Hidden, rows: slice, products: Tensor) -> None:
    """Writes silu(gate) * up of products [m,2I], gate columns, then up columns, to `rows` of h: quantised if there are
    scales, else rounded."""
    gate, up = products.chunk(2, -1)
    h, scales = out
    if scales is None:
        h[rows] = (silu(gate) * up).to(h.dtype)
    else:
        h[rows], scales[rows] = per_token_group_quant_fp8(silu(gate) * up)


def _part(pair: Fp8Pair, index: Any) -> Fp8Pair:
    return pair[0][index], pair[1][index]


def _rescued(d: Tensor, lhs: Fp8Pair, rhs: Fp8Pair, *, interleaved: bool = False) -> Tensor:
    """d [M,N], with rows summed by blocks if their scales, times the weight's, leave the range of widened operands.

    A widened value times its scale may overflow or vanish where the product with the other side's scale does not.
    """
    extreme = _extreme(lhs[1], rhs[1])
    if extreme.any():
        weight = tuple(t[0] for t in _reorder(rhs[0][None], rhs[1][None], undo=True)) if interleaved else rhs
        d = d.index_put((extreme,), _by_blocks(*_part(lhs, extreme), *weight, halves=1 + interleaved))
    return d


def _extreme(sa: Tensor, sb: Tensor) -> Tensor:
    """bool [M]: not every product of scales is below 2^101 / blocks, or a scale is beyond 2^100 or below 2^-100.
    A block of products of e4m3 sums to less than 2^25, so other rows stay within float32 throughout."""

    def bounds(s: Tensor) -> tuple[Tensor, Tensor]:
        size = s.abs()
        return size.amax(-1), torch.where(size == 0, 1, size).amin(-1)

    (most, least), (weight_most, weight_least) = bounds(sa), bounds(sb.flatten())
    normal = (most < 2.0**100) & (least > 2.0**-100) & (weight_most < 2.0**100) & (weight_least > 2.0**-100)
    return ~(normal & (most * weight_most < 2.0**101 / sa.shape[1]))  # NaN is extreme


def _by_blocks(a: Tensor, sa: Tensor, w: Tensor, sw: Tensor, *, halves: int) -> Tensor:
    """f32 [M,N]: for each 128 columns, the exact sum of products of codes, then a fused multiply-add with sa * sw."""
    n = len(w)
    row_scales = sw.unflatten(0, (halves, -1)).repeat_interleave(BLOCK, 1)[:, : n // halves].reshape(n, -1)
    total = a.new_zeros((len(a), n), dtype=torch.float32)
    codes = zip(a.double().split(BLOCK, 1), w.double().split(BLOCK, 1), strict=True)
    for block, (left, right) in enumerate(codes):
        scale = sa[:, block, None] * row_scales[:, block]
        total = torch.addcmul(total.double(), F.linear(left, right).float().double(), scale.double()).float()
    return total


def groups_of(offsets: Tensor, rows: int) -> Iterator[tuple[int, slice]]:
    """(g, its rows) of each group that has rows; offsets outside 0 .. rows are cut off."""
    bounds = [min(max(at, 0), rows) for at in offsets.tolist()]
    for g, (start, end) in enumerate(pairwise(bounds)):
        if end > start:
            yield g, slice(start, end)


def _reorder(w: Tensor, s: Tensor, *, undo: bool) -> Fp8Pair:
    return _turns(w.view(torch.uint8), ROW_GROUP, undo=undo).view(w.dtype), _turns(s, 1, undo=undo)


def _turns(t: Tensor, size: int, *, undo: bool) -> Tensor:
    """t [G,R,C] with `size` rows of its first half and of its second in turn; undo: back to halves."""
    groups = t.shape[1] // (2 * size)
    turns = (groups, 2) if undo else (2, groups)
    return t.reshape(len(t), *turns, size, t.shape[2]).transpose(1, 2).reshape(t.shape)

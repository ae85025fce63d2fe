"""Matrix products over FP8 operands: e4m3 values with float32 scales, activations 1x128, weights 128x128, as in
DeepSeek-V3 (arXiv:2412.19437, section 3.3). Names and argument order follow DeepGEMM.

Sums run in float32 and are rounded once, to the dtype of `out` (bfloat16, float16 or float32). K and N are multiples of
8; scale blocks at the edge may be smaller. An output that shares memory with an input is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..types import Fp8Pair
from .calling import empty_hidden, kernel, maker, public
from .deepgemm import deepgemm_keywords
from .parameters import pair

_fp8_gemm_nt = kernel("fp8_gemm_nt")
_new_fp8_gemm_nt = maker(
    "fp8_gemm_nt",
    lambda a, _sa, b, *_: torch.empty((a.shape[0], b.shape[0]), dtype=torch.bfloat16, device=a.device),
    rows=(0, 0),
    columns=(2, 0),
    dtype=torch.bfloat16,
)
_offset = kernel("m_grouped_fp8_gemm_nt_offset")
_masked = kernel("m_grouped_fp8_gemm_nt_masked")
_contiguous = kernel("m_grouped_fp8_gemm_nt_contiguous")
_interleave_gate_up = kernel("interleave_gate_up")
_swiglu = kernel("m_grouped_fp8_swiglu_gemm_nt_offset")


@public
def fp8_gemm_nt(lhs: Fp8Pair, rhs: Fp8Pair, out: Tensor | None = None, *, split_k: int = 1,
                **deepgemm: Any) -> Tensor:  # fmt: skip
    """D = A @ B.T.

    Each 128 of K give a sum of products of codes, below 2^25, which is multiplied by sa * sb and added to the float32
    sum so far in one step. Where sa * sb or a sum leaves float32, an element is inf of its sign, or NaN where inf meets
    0 or inf of the other sign; a NaN in its row of A or B makes it NaN. It is finite only if every step was. This holds
    for all FP8 products and on all backends alike; only the pieces of split_k may end with NaN where one sum is inf.

    Args:
        lhs: (a e4m3 [M, K], sa f32 [M, ceil(K / 128)]), from `per_token_group_quant_fp8`; M may be 0.
        rhs: (b e4m3 [N, K], sb f32 [ceil(N / 128), ceil(K / 128)]), from `per_block_quant_fp8`.
        out: [M, N]; bfloat16 is allocated if None.
        split_k: 1, 2 or 4 pieces of K, whose float32 sums are added in order; piece i has the blocks of 128 columns
            from i * ceil(blocks / split_k) on, the last ones possibly none. On a GPU each piece has thread blocks of
            its own: for few tiles (docs/moe_gemm.md). Opt-in, for it changes bits: for a given split_k those of a row
            depend on nothing but the row, its weight and split_k. On a CPU it changes nothing.
        deepgemm: DeepGEMM's keywords (c, recipe, recipe_a, recipe_b, compiled_dims, disable_ue8m0_cast) at the values
            they have on SM90.

    Returns:
        out.

    Raises:
        LongcatShapeError: the operands do not fit each other, or split_k has another value.
        LongcatUnsupportedError: a DeepGEMM keyword has another value.
    """
    if deepgemm:
        deepgemm_keywords("fp8_gemm_nt", deepgemm)
    (a, sa), (b, sb) = pair("fp8_gemm_nt", "lhs", lhs), pair("fp8_gemm_nt", "rhs", rhs)
    if out is None:
        return _new_fp8_gemm_nt(a, sa, b, sb, split_k)
    _fp8_gemm_nt(a, sa, b, sb, split_k, out)
    return out


@public
def m_grouped_fp8_gemm_nt_offset(lhs: Fp8Pair, rhs: Fp8Pair, out: Tensor, offsets: Tensor, *,
                                 max_m_hint: int | None = None, counts_ready: bool = False,
                                 split_k: int = 1) -> Tensor:  # fmt: skip
    """D[i] = A[i] @ B[g].T for the rows i in offsets[g] .. offsets[g+1]-1 of each group g: the native layout, compact,
    any number of rows at any alignment.

    Args:
        lhs: (a e4m3 [M, K], sa f32 [M, ceil(K / 128)], row-major or column-major).
        rhs: (b e4m3 [G, N, K] contiguous, sb f32 [G, ceil(N / 128), ceil(K / 128)]).
        out: [M, N]. Rows of no group are neither read nor written.
        offsets: i32 [G + 1], rising, from `moe_plan`. Parts beyond 0 .. M are cut off.
        max_m_hint: upper estimate of the rows of a group; chooses among kernels, never changes the result.
        counts_ready: the caller's word that offsets and weights were written by kernels before the immediate
            predecessor on this stream, every block of which waits for them before it lets the next kernel start; then
            they may be read before that predecessor ends.
        split_k: as in `fp8_gemm_nt`; for one or two active groups.

    Returns:
        out.

    Raises:
        LongcatShapeError: the operands do not fit each other, or split_k has another value.
    """
    op = "m_grouped_fp8_gemm_nt_offset"
    _offset(*pair(op, "lhs", lhs), *pair(op, "rhs", rhs), offsets, max_m_hint, counts_ready, split_k, out)
    return out


@public
def m_grouped_fp8_gemm_nt_masked(lhs: Fp8Pair, rhs: Fp8Pair, out: Tensor, masked_m: Tensor, expected_m: int,
                                 **deepgemm: Any) -> Tensor:  # fmt: skip
    """D[g, i] = A[g, i] @ B[g].T for the first masked_m[g] rows of each group.

    Args:
        lhs: (a e4m3 [G, M, K], sa f32 [G, M, ceil(K / 128)]).
        rhs: (b e4m3 [G, N, K] contiguous, sb f32 [G, ceil(N / 128), ceil(K / 128)]).
        out: [G, M, N]. Rows from masked_m[g] on are neither read nor written.
        masked_m: i32 [G], 0 .. M.
        expected_m: typical rows of a group; chooses among kernels, never changes the result.
        deepgemm: DeepGEMM's keywords (recipe, recipe_a, recipe_b, compiled_dims, disable_ue8m0_cast) at the values
            they have on SM90.

    Returns:
        out.

    Raises:
        LongcatShapeError: the operands do not fit each other.
        LongcatUnsupportedError: a DeepGEMM keyword has another value.
    """
    op = "m_grouped_fp8_gemm_nt_masked"
    if deepgemm:
        deepgemm_keywords(op, deepgemm)
    _masked(*pair(op, "lhs", lhs), *pair(op, "rhs", rhs), masked_m, expected_m, out)
    return out


@public
def m_grouped_fp8_gemm_nt_contiguous(lhs: Fp8Pair, rhs: Fp8Pair, out: Tensor, m_indices: Tensor,
                                     **deepgemm: Any) -> Tensor:  # fmt: skip
    """D[i] = A[i] @ B[m_indices[i]].T.

    Args:
        lhs: (a e4m3 [M, K], sa f32 [M, ceil(K / 128)]).
        rhs: (b e4m3 [G, N, K] contiguous, sb f32 [G, ceil(N / 128), ceil(K / 128)]).
        out: [M, N]. Rows of index -1 are neither read nor written.
        m_indices: i32 [M], group of each row, rows of one group adjacent; no alignment is needed. -1 skips the row.
        deepgemm: DeepGEMM's keywords (recipe, recipe_a, recipe_b, compiled_dims, disable_ue8m0_cast, use_psum_layout,
            expected_m_for_psum_layout) at the values they have on SM90.

    Returns:
        out.

    Raises:
        LongcatShapeError: the operands do not fit each other.
        LongcatUnsupportedError: a DeepGEMM keyword has another value.
    """
    op = "m_grouped_fp8_gemm_nt_contiguous"
    if deepgemm:
        deepgemm_keywords(op, deepgemm)
    _contiguous(*pair(op, "lhs", lhs), *pair(op, "rhs", rhs), m_indices, out)
    return out


@public
def interleave_gate_up(w: Tensor, s: Tensor | None = None) -> Tensor | Fp8Pair:
    """The row order that the products with SwiGLU and `fused_moe` read: 8 gate rows, the 8 up rows that belong to them,
    and so on, so that one thread of the kernel holds both. Done once, when weights are loaded.

    Args:
        w: e4m3, bf16 or f32 [G, 2I, K] contiguous, gate rows, then up rows; I a multiple of 8.
        s: with e4m3, and only then, f32 [G, 2 * ceil(I / 128), ceil(K / 128)], the scales of gate, then of up: the
            blocks of up start anew.

    Returns:
        w with row 16j + i = gate row 8j + i and row 16j + 8 + i = up row 8j + i (i < 8); alone, or with s in a pair, of
            which row 2b = gate block b and row 2b + 1 = up block b. Contiguous, of the same shape as before.

    Raises:
        LongcatShapeError: w or s is not as above.
    """
    w_out, s_out = (None if t is None else torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (w, s))
    _interleave_gate_up(w, s, w_out, s_out)
    return w_out if s is None else (w_out, s_out)


@public
def m_grouped_fp8_swiglu_gemm_nt_offset(
    lhs: Fp8Pair, gate_up: Fp8Pair, offsets: Tensor, *, max_m_hint: int | None = None, counts_ready: bool = False,
    quantise: bool = True,
) -> Fp8Pair | Tensor:  # fmt: skip
    """gate_up GEMM, SwiGLU and 1x128 quantisation in one: h = silu(A @ gate[g].T) * (A @ up[g].T) on the float32 sums,
    then the rule of `per_token_group_quant_fp8`. Groups of rows as in `m_grouped_fp8_gemm_nt_offset`.

    Sums that leave float32 are inf or NaN as in `fp8_gemm_nt`; silu(-inf) is NaN. An inf or NaN in a quantised h makes
    the scale of its 128 channels inf or NaN, so that none of them is a number when it is multiplied out.

    Args:
        lhs: (a e4m3 [M, K], sa f32 [M, ceil(K / 128)], row-major or column-major).
        gate_up: (e4m3 [G, 2I, K], f32 [G, 2 * ceil(I / 128), ceil(K / 128)]) from `interleave_gate_up`.
        offsets: i32 [G + 1], rising. max_m_hint, counts_ready: as in `m_grouped_fp8_gemm_nt_offset`.
        quantise: False rounds h once to bfloat16 instead: for a down projection that is not FP8.

    Returns:
        h, e4m3 [M, I], and sh, f32 [M, ceil(I / 128)]; or h alone, bf16. Rows of no group are not set.

    Raises:
        LongcatShapeError: the operands do not fit each other.
    """
    op = "m_grouped_fp8_swiglu_gemm_nt_offset"
    (a, sa), (w, sw) = pair(op, "lhs", lhs), pair(op, "gate_up", gate_up)
    h, sh = empty_hidden(a.shape[0], w.shape[1] // 2, torch.bfloat16, a.device, quantise)
    _swiglu(a, sa, w, sw, offsets, max_m_hint, counts_ready, h, sh)
    return h if sh is None else (h, sh)

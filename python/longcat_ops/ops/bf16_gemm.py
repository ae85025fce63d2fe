"""Matrix products over bfloat16 operands, or over float32 ones on a CPU. Names and argument order follow DeepGEMM.

Sums run in float32 and are rounded once, to the dtype of `out` (bfloat16, float16 or float32). K and N are multiples of
8. Elements of a row are adjacent; rows and groups may be any distance apart, in a, in out and in b, so a weight may be
a view, as of one head. An output that shares memory with an input is refused, and so is float16, which no LongCat uses.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..types import Fp8Pair
from .calling import empty_hidden, kernel, maker, public
from .deepgemm import deepgemm_keywords

_bf16_gemm_nt = kernel("bf16_gemm_nt")
_new_bf16_gemm_nt = maker(
    "bf16_gemm_nt", lambda a, b, _: a.new_empty(a.shape[0], b.shape[0]), rows=(0, 0), columns=(1, 0)
)
_offset = kernel("m_grouped_bf16_gemm_nt_offset")
_masked = kernel("m_grouped_bf16_gemm_nt_masked")
_contiguous = kernel("m_grouped_bf16_gemm_nt_contiguous")
_swiglu = kernel("m_grouped_bf16_swiglu_gemm_nt_offset")


@public
def bf16_gemm_nt(a: Tensor, b: Tensor, out: Tensor | None = None, *, split_k: int = 1, **deepgemm: Any) -> Tensor:
    """D = A @ B.T.

    On a CPU, and on a GPU for a given split_k, the bits of a row of D depend on nothing but its row of A, B and their
    dtype. A NaN in its row of A or of B makes an element NaN, and so does inf times 0. An element is finite wherever
    the magnitudes of its products add up to less than 2^127; beyond that a partial sum may be inf, and the element inf
    or NaN, where the exact sum is finite.

    Args:
        a: bf16 [M, K], on a CPU also f32; M may be 0.
        b: [N, K], of the dtype of a.
        out: [M, N]; the dtype of a is allocated if None.
        split_k: 1, 2 or 4 pieces of K, whose float32 sums are added in order. On a GPU each piece has thread blocks of
            its own: for few tiles. Opt-in, for it changes bits. On a CPU it changes nothing.
        deepgemm: DeepGEMM's keywords (c, compiled_dims) at the values they have on SM90.

    Returns:
        out.

    Raises:
        LongcatShapeError: the operands do not fit each other, or split_k has another value.
        LongcatUnsupportedError: a DeepGEMM keyword has another value.
    """
    if deepgemm:
        deepgemm_keywords("bf16_gemm_nt", deepgemm)
    if out is None:
        return _new_bf16_gemm_nt(a, b, split_k)
    _bf16_gemm_nt(a, b, split_k, out)
    return out


@public
def m_grouped_bf16_gemm_nt_offset(a: Tensor, b: Tensor, out: Tensor, offsets: Tensor, *,
                                  max_m_hint: int | None = None, counts_ready: bool = False,
                                  split_k: int = 1) -> Tensor:  # fmt: skip
    """D[i] = A[i] @ B[g].T for the rows i in offsets[g] .. offsets[g+1]-1 of each group g: the native layout, compact,
    any number of rows at any alignment. Bits, NaN and inf as in `bf16_gemm_nt`.

    Args:
        a: bf16 [M, K], on a CPU also f32.
        b: [G, N, K], of the dtype of a.
        out: [M, N]. Rows of no group are neither read nor written.
        offsets: i32 [G + 1], rising, from `moe_plan`. Parts beyond 0 .. M are cut off.
        max_m_hint: upper estimate of the rows of a group; chooses among kernels, never changes the result.
        counts_ready: as in `m_grouped_fp8_gemm_nt_offset`.
        split_k: as in `bf16_gemm_nt`; for one or two active groups.

    Returns:
        out.

    Raises:
        LongcatShapeError: the operands do not fit each other, or split_k has another value.
    """
    _offset(a, b, offsets, max_m_hint, counts_ready, split_k, out)
    return out


@public
def m_grouped_bf16_gemm_nt_masked(a: Tensor, b: Tensor, out: Tensor, masked_m: Tensor, expected_m: int,
                                  **deepgemm: Any) -> Tensor:  # fmt: skip
    """D[g, i] = A[g, i] @ B[g].T for the first masked_m[g] rows of each group. Bits, NaN and inf as in `bf16_gemm_nt`.

    Args:
        a: bf16 [G, M, K], on a CPU also f32.
        b: [G, N, K], of the dtype of a.
        out: [G, M, N]. Rows from masked_m[g] on are neither read nor written.
        masked_m: i32 [G], 0 .. M.
        expected_m: typical rows of a group; chooses among kernels, never changes the result.
        deepgemm: DeepGEMM's keyword (compiled_dims) at the values it has on SM90.

    Returns:
        out.

    Raises:
        LongcatShapeError: the operands do not fit each other.
        LongcatUnsupportedError: a DeepGEMM keyword has another value.
    """
    if deepgemm:
        deepgemm_keywords("m_grouped_bf16_gemm_nt_masked", deepgemm)
    _masked(a, b, masked_m, expected_m, out)
    return out


@public
def m_grouped_bf16_gemm_nt_contiguous(a: Tensor, b: Tensor, out: Tensor, m_indices: Tensor,
                                      **deepgemm: Any) -> Tensor:  # fmt: skip
    """D[i] = A[i] @ B[m_indices[i]].T. Bits, NaN and inf as in `bf16_gemm_nt`.

    Args:
        a: bf16 [M, K], on a CPU also f32.
        b: [G, N, K], of the dtype of a.
        out: [M, N]. Rows of index -1 are neither read nor written.
        m_indices: i32 [M], group of each row, rows of one group adjacent; no alignment is needed. -1 skips the row.
        deepgemm: DeepGEMM's keywords (compiled_dims, use_psum_layout, expected_m_for_psum_layout) at the values they
            have on SM90.

    Returns:
        out.

    Raises:
        LongcatShapeError: the operands do not fit each other.
        LongcatUnsupportedError: a DeepGEMM keyword has another value.
    """
    if deepgemm:
        deepgemm_keywords("m_grouped_bf16_gemm_nt_contiguous", deepgemm)
    _contiguous(a, b, m_indices, out)
    return out


@public
def m_grouped_bf16_swiglu_gemm_nt_offset(a: Tensor, gate_up: Tensor, offsets: Tensor, *, quantise: bool = False,
                                         max_m_hint: int | None = None,
                                         counts_ready: bool = False) -> Tensor | Fp8Pair:  # fmt: skip
    """gate_up GEMM and SwiGLU in one: h = silu(A @ gate[g].T) * (A @ up[g].T) on the float32 sums, rounded once. Groups
    of rows as in `m_grouped_bf16_gemm_nt_offset`; bits, NaN and inf of the sums as in `bf16_gemm_nt`; silu(-inf) is
    NaN.

    Args:
        a: bf16 [M, K], on a CPU also f32.
        gate_up: [G, 2I, K] of the dtype of a, from `interleave_gate_up`; I a multiple of 8.
        offsets: i32 [G + 1], rising. max_m_hint, counts_ready: as in `m_grouped_bf16_gemm_nt_offset`.
        quantise: quantises h 1x128 by the rule of `per_token_group_quant_fp8`: for a down projection that is FP8.

    Returns:
        h [M, I] of the dtype of a; or h, e4m3, and sh, f32 [M, ceil(I / 128)]. Rows of no group are not set.

    Raises:
        LongcatShapeError: the operands do not fit each other.
    """
    h, sh = empty_hidden(a.shape[0], gate_up.shape[1] // 2, a.dtype, a.device, quantise)
    _swiglu(a, gate_up, offsets, max_m_hint, counts_ready, h, sh)
    return h if sh is None else (h, sh)

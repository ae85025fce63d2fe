"""DeepGEMM's FP8 products on SM90: D = A @ B.T over e4m3 values, a with float32 scales 1x128, b with 128x128.

K and N are multiples of 8. Scales of a may be row-major or column-major: none is copied or transposed. d may be
bfloat16, float16 or float32. All return None, as DeepGEMM's do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import LongcatShapeError, LongcatUnsupportedError, message
from ...ops import checking, gemm, tensors
from ...ops.arguments import schema_arguments
from ...ops.parameters import output
from ...types import Fp8Pair
from ._calling import NAMES, call, flag, integer, keywords, operands
from ._settings import get_mk_alignment_for_contiguous_layout

Recipe = Sequence[int] | None

_OFFSET = "m_grouped_fp8_gemm_nt_offset"
_CONTIGUOUS_NAMES = NAMES | {"m_indices": "grouped_layout"}
_PSUM_NAMES = NAMES | {_OFFSET: "m_grouped_fp8_gemm_nt_contiguous", "offsets": "grouped_layout"}


def fp8_gemm_nt(
    a: Fp8Pair,
    b: Fp8Pair,
    d: Tensor,
    c: None = None,
    recipe: Recipe = None,
    recipe_a: Recipe = None,
    recipe_b: Recipe = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,
) -> None:
    """d = a @ b.T.

    Args:
        a: (e4m3 [M, K], f32 [M, ceil(K / 128)]); M may be 0. b: (e4m3 [N, K], f32 [ceil(N / 128), ceil(K / 128)]).
        d: [M, N]. c: None.
        recipe: None or (1, 128, 128). recipe_a: None or (1, 128). recipe_b: None or (128, 128).
        compiled_dims: letters of m, n and k; without effect, because nothing is compiled at run time.
        disable_ue8m0_cast: a bool; without effect, for scales stay float32.

    Raises:
        LongcatShapeError: the operands do not fit each other, or a keyword means nothing.
        LongcatUnsupportedError: c is given, a recipe has another value, or a or b is FP4.
    """
    op = "fp8_gemm_nt"
    lhs, rhs = operands(op, a, b)
    keywords(op, recipe, recipe_a, recipe_b, compiled_dims, disable_ue8m0_cast)
    if c is not None:
        got = "a Tensor" if isinstance(c, Tensor) else repr(c)
        text = message(op, "c", got, "None: no product adds to a tensor", fix="write to a new d, then c.add_(d)")
        raise LongcatUnsupportedError(text)
    call(output, NAMES, op, d)  # the op itself would make one
    call(gemm.fp8_gemm_nt, NAMES, lhs, rhs, d)


def m_grouped_fp8_gemm_nt_contiguous(
    a: Fp8Pair,
    b: Fp8Pair,
    d: Tensor,
    grouped_layout: Tensor,
    recipe: Recipe = None,
    recipe_a: Recipe = None,
    recipe_b: Recipe = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,
    use_psum_layout: bool = False,
    ensure_zero_padding: bool = True,
    expected_m_for_psum_layout: int | None = None,
) -> None:
    """d[i] = a[i] @ b[g].T for each row i of group g.

    Without use_psum_layout, grouped_layout names the group of each row; rows of index -1 become 0 in d, which takes one
    pass over d after the product. With it, group g ends before row grouped_layout[g] and starts at the end of the group
    before, rounded up to `get_mk_alignment_for_contiguous_layout()`; the rows between two groups are computed with the
    weight of the first, as on DeepGEMM's SM90: they become 0 where they are 0 in a. Rows behind the last group's
    padding are neither read nor written. The starts are computed on the device, in a few small launches.

    Args:
        a: (e4m3 [M, K], f32 [M, ceil(K / 128)]).
        b: (e4m3 [G, N, K] contiguous, f32 [G, ceil(N / 128), ceil(K / 128)]).
        d: [M, N].
        grouped_layout: i32 [M], rows of one group adjacent, at any alignment; with use_psum_layout i32 [G], rising.
        recipe, recipe_a, recipe_b, compiled_dims, disable_ue8m0_cast: as in `fp8_gemm_nt`.
        ensure_zero_padding: a bool; without effect, as on DeepGEMM's SM90: padding is as described above either way.
        expected_m_for_psum_layout: with use_psum_layout, typical rows of a group; chooses among kernels.

    Raises:
        LongcatShapeError: the operands do not fit each other, or a keyword means nothing.
        LongcatUnsupportedError: a recipe has another value, or a or b is FP4.
    """
    op = "m_grouped_fp8_gemm_nt_contiguous"
    lhs, rhs = operands(op, a, b)
    keywords(op, recipe, recipe_a, recipe_b, compiled_dims, disable_ue8m0_cast)
    flag(op, "use_psum_layout", use_psum_layout)
    flag(op, "ensure_zero_padding", ensure_zero_padding)
    if use_psum_layout:
        _psum_product(op, lhs, rhs, d, grouped_layout, expected_m_for_psum_layout)
        return
    if expected_m_for_psum_layout is not None:
        got = repr(expected_m_for_psum_layout)
        raise LongcatShapeError(message(op, "expected_m_for_psum_layout", got, "None without use_psum_layout"))
    call(gemm.m_grouped_fp8_gemm_nt_contiguous, _CONTIGUOUS_NAMES, lhs, rhs, d, grouped_layout)
    d.masked_fill_((grouped_layout < 0).unsqueeze(1), 0)


def _psum_product(op: str, lhs: Fp8Pair, rhs: Fp8Pair, d: Tensor, ends: Tensor, expected_m: int | None) -> None:
    alignment = get_mk_alignment_for_contiguous_layout()
    hint = None
    if expected_m is not None:
        hint = -(-integer(op, "expected_m_for_psum_layout", expected_m, 1) // alignment) * alignment
    _check_ends(op, ends, rhs[0])
    if not torch.compiler.is_compiling():  # then the op's fake checks
        call(_check, _PSUM_NAMES, lhs, rhs, d, ends.new_empty(len(ends) + 1), max_m_hint=hint)
    padded = torch.div(ends + (alignment - 1), alignment, rounding_mode="floor").mul_(alignment)
    starts = torch.nn.functional.pad(padded, (1, 0))
    call(gemm.m_grouped_fp8_gemm_nt_offset, _PSUM_NAMES, lhs, rhs, d, starts, max_m_hint=hint)


def _check(*args: Any, **kwargs: Any) -> None:
    """The op's own check, before anything is launched for it."""
    checking.check(_OFFSET, *schema_arguments(_OFFSET, args, kwargs))


def _check_ends(op: str, ends: Any, weights: Any) -> None:
    name = "grouped_layout"
    if not isinstance(ends, Tensor):
        got = "None" if ends is None else f"of type {type(ends).__name__}"
        raise LongcatShapeError(message(op, name, got, "a torch.Tensor"))
    if not torch.compiler.is_compiling() and (problem := tensors.layout_problem(op, name, ends)):
        raise problem
    groups = weights.shape[0] if isinstance(weights, Tensor) and weights.ndim == 3 else None
    if ends.dtype != torch.int32:
        raise LongcatShapeError(message(op, name, ends.dtype, "torch.int32"))
    if ends.ndim != 1 or (groups is not None and len(ends) != groups):
        expected = f"[{'G' if groups is None else groups}], one end per group of `b`"
        raise LongcatShapeError(message(op, name, f"of shape {list(ends.shape)}", expected))
    if not ends.is_contiguous():
        raise LongcatShapeError(message(op, name, f"of strides ({ends.stride(0)})", "contiguous"))


def m_grouped_fp8_gemm_nt_masked(
    a: Fp8Pair,
    b: Fp8Pair,
    d: Tensor,
    masked_m: Tensor,
    expected_m: int,
    recipe: Recipe = None,
    recipe_a: Recipe = None,
    recipe_b: Recipe = None,
    compiled_dims: str = "nk",
    disable_ue8m0_cast: bool = False,
) -> None:
    """d[g, i] = a[g, i] @ b[g].T for the first masked_m[g] rows of each group. Other rows are neither read nor written.

    Args:
        a: (e4m3 [G, M, K], f32 [G, M, ceil(K / 128)]).
        b: (e4m3 [G, N, K] contiguous, f32 [G, ceil(N / 128), ceil(K / 128)]).
        d: [G, M, N]. masked_m: i32 [G], 0 .. M.
        expected_m: typical rows of a group; chooses among kernels, never changes the result.
        recipe, recipe_a, recipe_b, compiled_dims, disable_ue8m0_cast: as in `fp8_gemm_nt`.

    Raises:
        LongcatShapeError: the operands do not fit each other, or a keyword means nothing.
        LongcatUnsupportedError: a recipe has another value, or a or b is FP4.
    """
    op = "m_grouped_fp8_gemm_nt_masked"
    lhs, rhs = operands(op, a, b)
    keywords(op, recipe, recipe_a, recipe_b, compiled_dims, disable_ue8m0_cast)
    call(gemm.m_grouped_fp8_gemm_nt_masked, NAMES, lhs, rhs, d, masked_m, expected_m)


# The same functions, as in DeepGEMM: FP4 is refused by dtype, not by name.
fp8_fp4_gemm_nt = fp8_gemm_nt
m_grouped_fp8_fp4_gemm_nt_contiguous = m_grouped_fp8_gemm_nt_contiguous
m_grouped_fp8_fp4_gemm_nt_masked = m_grouped_fp8_gemm_nt_masked
fp8_m_grouped_gemm_nt_masked = m_grouped_fp8_gemm_nt_masked

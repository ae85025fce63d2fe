"""Layouts of scales that DeepGEMM hands out. The products here take scales of any strides, so none of this is needed
before them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import LongcatShapeError, LongcatUnsupportedError, message
from ...ops import tensors
from ...types import BLOCK
from ._calling import flag, integer

_TMA_BYTES = 16


def get_tma_aligned_size(mn: int, element_size: int) -> int:
    """mn rounded up to whole 16 bytes of elements, what a TMA stride must be a multiple of.

    Raises LongcatShapeError if mn is no int of 0 or more, or element_size does not divide 16.
    """
    op = "get_tma_aligned_size"
    integer(op, "mn", mn, 0)
    if integer(op, "element_size", element_size, 1) not in (1, 2, 4, 8, 16):
        raise LongcatShapeError(message(op, "element_size", element_size, "1, 2, 4, 8 or 16 bytes"))
    per_line = _TMA_BYTES // element_size
    return -(-mn // per_line) * per_line


def get_mn_major_tma_aligned_tensor(sf: Tensor) -> Tensor:
    """The scales with strides (1, rows rounded up to 4): column by column, as TMA loads them.

    Args:
        sf: f32 [MN, K'] or [G, MN, K'], any strides.

    Returns:
        The same values in the same shape; sf itself where it has these strides. The padding is not set.

    Raises:
        LongcatShapeError: sf is not such a tensor.
    """
    op = "get_mn_major_tma_aligned_tensor"
    _check_scales(op, sf)
    rows, columns = sf.shape[-2:]
    line = get_tma_aligned_size(rows, sf.element_size())
    strides = (line * columns, 1, line)[-sf.ndim :]
    if sf.stride() == strides:
        return sf
    return torch.empty_strided(sf.shape, strides, dtype=sf.dtype, device=sf.device).copy_(sf)


def transform_sf_into_required_layout(
    sf: Tensor,
    mn: int,
    k: int,
    recipe: Sequence[int],
    num_groups: int | None = None,
    is_sfa: bool | None = None,
    disable_ue8m0_cast: bool = False,
    psum_layout: Tensor | None = None,
) -> Tensor:
    """The scales as DeepGEMM's SM90 kernels read them.

    Args:
        sf: f32 [ceil(mn / rows), ceil(k / 128)], with num_groups [G, ..]; rows is what the recipe says.
        recipe: (1, 128, 128) with is_sfa True (rows 1) or False (rows 128); or (1, 128) or (128, 128) without is_sfa.
        disable_ue8m0_cast: a bool; without effect, for scales stay float32.
        psum_layout: None or i32 [G]; without effect: rows between groups are copied too, as on DeepGEMM's SM90.

    Returns:
        For rows 1 `get_mn_major_tma_aligned_tensor(sf)`, for rows 128 sf itself.

    Raises:
        LongcatShapeError: sf does not fit mn, k, num_groups and recipe, or is_sfa does not fit the recipe.
        LongcatUnsupportedError: another recipe, or packed UE8M0 scales (int32).
    """
    op = "transform_sf_into_required_layout"
    rows = _rows_of_recipe(op, recipe, is_sfa)
    flag(op, "disable_ue8m0_cast", disable_ue8m0_cast)
    if psum_layout is not None and not (isinstance(psum_layout, Tensor) and psum_layout.dtype == torch.int32):
        got = getattr(psum_layout, "dtype", f"of type {type(psum_layout).__name__}")
        raise LongcatShapeError(message(op, "psum_layout", got, "None or a torch.int32 Tensor"))
    groups = [] if num_groups is None else [integer(op, "num_groups", num_groups, 1)]
    shape = [*groups, -(-integer(op, "mn", mn, 0) // rows), -(-integer(op, "k", k, 1) // BLOCK)]
    if isinstance(sf, Tensor) and sf.dtype == torch.int32:
        got = "torch.int32, packed UE8M0 as on SM100"
        raise LongcatUnsupportedError(message(op, "sf", got, "torch.float32, as on SM90"))
    _check_scales(op, sf)
    if list(sf.shape) != shape:
        raise LongcatShapeError(message(op, "sf", f"of shape {list(sf.shape)}", shape))
    return get_mn_major_tma_aligned_tensor(sf) if rows == 1 else sf


def _rows_of_recipe(op: str, recipe: Any, is_sfa: Any) -> int:
    """Rows that share a scale: 1 or 128."""
    value = tuple(recipe) if isinstance(recipe, tuple | list) else recipe
    whole = isinstance(value, tuple) and len(value) == 3
    expected = "True or False with a recipe of three" if whole else "None with a recipe of two"
    if (whole and not isinstance(is_sfa, bool)) or (not whole and is_sfa is not None):
        raise LongcatShapeError(message(op, "is_sfa", repr(is_sfa), expected))
    if value not in (((1, BLOCK, BLOCK),) if whole else ((1, BLOCK), (BLOCK, BLOCK))):
        expected = "(1, 128, 128), (1, 128) or (128, 128) (on SM90)"
        raise LongcatUnsupportedError(message(op, "recipe", repr(recipe), expected))
    return (1 if is_sfa else BLOCK) if whole else value[0]


def _check_scales(op: str, sf: Any) -> None:
    if not isinstance(sf, Tensor):
        got = "None" if sf is None else f"of type {type(sf).__name__}"
        raise LongcatShapeError(message(op, "sf", got, "a torch.Tensor"))
    if problem := tensors.layout_problem(op, "sf", sf) or tensors.gradient_problem(op, "sf", sf):
        raise problem
    if sf.dtype != torch.float32:
        raise LongcatShapeError(message(op, "sf", sf.dtype, "torch.float32"))
    if sf.ndim not in (2, 3):
        raise LongcatShapeError(message(op, "sf", f"of shape {list(sf.shape)}", "[MN, K'] or [G, MN, K']"))

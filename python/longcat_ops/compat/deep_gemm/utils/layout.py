"""Layouts of scales, and the alignment of groups of rows."""

from __future__ import annotations

from .._refusals import LAYOUTS, refusals
from .._scales import get_mn_major_tma_aligned_tensor, get_tma_aligned_size
from .._settings import (
    get_k_alignment_for_contiguous_layout,
    get_m_alignment_for_contiguous_layout,
    get_mk_alignment_for_contiguous_layout,
    get_theoretical_mk_alignment_for_contiguous_layout,
    set_mk_alignment_for_contiguous_layout,
)

_refused = refusals(LAYOUTS)
__all__ = [
    "get_k_alignment_for_contiguous_layout",
    "get_m_alignment_for_contiguous_layout",
    "get_mk_alignment_for_contiguous_layout",
    "get_mn_major_tma_aligned_tensor",
    "get_theoretical_mk_alignment_for_contiguous_layout",
    "get_tma_aligned_size",
    "set_mk_alignment_for_contiguous_layout",
    *_refused,
]
globals().update(_refused)

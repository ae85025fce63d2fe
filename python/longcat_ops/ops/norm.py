"""Normalisation."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _library

_library.load()
_rms_norm = torch.ops.longcat_ops.rms_norm.default


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension, in float32, rounded once.

    Args:
        x: [T, H], bfloat16, float16 or float32; last stride 1, rows any distance apart. T may be 0.
        weight: float32 [H]. eps: 0 or a small positive number.

    Returns:
        y, [T, H] of x's dtype, contiguous. A row's bits depend on nothing but that row (and the build, not the ISA).

    Raises:
        LongcatShapeError: x or weight is not such a tensor. Source: Zhang and Sennrich, arXiv:1910.07467.
    """
    if x.dim() != 2:
        _library.check("rms_norm", x, weight, float(eps))
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    try:
        _rms_norm(x, weight, eps, y)
    except RuntimeError as error:
        _library.reraise(error)
    return y

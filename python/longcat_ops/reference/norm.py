"""Plain-torch RMSNorm: the oracle, and the path of fp64 models."""

from __future__ import annotations

import torch
from torch import Tensor

from .quant import per_token_group_quant_fp8

__all__ = ["rms_norm", "rms_norm_quant_fp8"]


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, *,
             y: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """x / sqrt(mean(x^2) + eps) * weight by row, in the dtype of weight (f32, f64), rounded once to the dtype of x; of
    x + residual if there is one, which is returned, too. y is written if given."""
    if residual is not None:
        return rms_norm(x + residual, weight, eps, y=y), x + residual
    wide = x.to(weight.dtype)
    normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)
    return normed if y is None else y.copy_(normed)


def rms_norm_quant_fp8(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, *,
                       column_major_scales: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """(q, s, y, residual_out): y = rms_norm of x, or of residual_out = x + residual; q, s = y quantised 1x128."""
    residual_out = None if residual is None else x + residual
    y = rms_norm(x if residual_out is None else residual_out, weight, eps)
    return *per_token_group_quant_fp8(y, column_major_scales=column_major_scales), y, residual_out

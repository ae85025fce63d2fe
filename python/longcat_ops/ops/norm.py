"""Normalisation. Source: Zhang and Sennrich, arXiv:1910.07467."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import BLOCK
from .calling import empty_scales, kernel, maker, public

_rms_norm = kernel("rms_norm")
_new_rms_norm = maker(
    "rms_norm", lambda x, *_: torch.empty(x.shape, dtype=x.dtype, device=x.device), rows=(0, 0), columns=(0, 1)
)
_rms_norm_quant_fp8 = kernel("rms_norm_quant_fp8")


@public
def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, *,
             y: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension, in float32, rounded once; optionally of
    x + residual.

    Args:
        x: [T, H], bfloat16, float16 or float32; last stride 1, rows any distance apart. T may be 0.
        weight: float32 [H]. eps: 0 or a small positive number.
        residual: [T, H] of x's dtype, last stride 1; if given, the norm is of x + residual rounded to x's dtype.
        y: written if given, [T, H] of x's dtype, last stride 1.

    Returns:
        y, [T, H] of x's dtype, contiguous if made here; with a residual, y and x + residual in x's dtype. A row's bits
            depend on nothing but that row (and the build, not the ISA).
        Where the sum of a row's squares leaves float32, its finite elements become 0 and its infs NaN, as in torch; a
            NaN makes its row NaN.

    Raises:
        LongcatShapeError: x, weight, eps or residual is not as above.
    """
    if residual is None and y is None:
        return _new_rms_norm(x, weight, eps, None)
    if y is None:
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    residual_out = None if residual is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _rms_norm(x, weight, eps, residual, y, residual_out)
    return y if residual is None else (y, residual_out)


@public
def rms_norm_quant_fp8(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, *,
                       column_major_scales: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """`rms_norm` and the 1x128 quantisation of its result in one pass, optionally of x + residual.

    y is what the router and the zero experts read; q and s are what `per_token_group_quant_fp8(y)` returns.

    Args:
        x: [T, H], bfloat16, float16 or float32; H a multiple of 8; last stride 1, rows any distance apart. T may be 0.
        weight: float32 [H]. eps: 0 or a small positive number.
        residual: [T, H] of x's dtype, last stride 1; if given, the norm is of x + residual rounded to x's dtype.
        column_major_scales: store s with strides (1, T rounded up to 4); the padding is not set.

    Returns:
        q, float8_e4m3fn [T, H]; s, float32 [T, ceil(H / 128)]; y, [T, H] of x's dtype; residual_out, x + residual in
        x's dtype, None without a residual.

    Raises:
        LongcatShapeError: x, weight, eps or residual is not as above.
    """
    rows, columns = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    q = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    s = empty_scales(rows, -(-columns // BLOCK), x.device, column_major_scales)
    residual_out = None if residual is None else torch.empty_like(y)
    _rms_norm_quant_fp8(x, weight, eps, residual, q, s, y, residual_out)
    return q, s, y, residual_out

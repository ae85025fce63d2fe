"""What block FP8 costs a weight: the errors of each 128 x 128 block."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.quant import dequant_fp8, per_block_quant_fp8
from ..types import BLOCK

_ELEMENTS = 1 << 20  # of a strip: its copies in float32 stay small


def block_errors(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of the e4m3 form w' of a weight w [N,K], by block.

    Args:
        weight: [N, K], bfloat16, float16, float32 or float64; K a multiple of 8.

    Returns:
        relative: float32 [ceil(N / 128), ceil(K / 128)], the mean of |w - w'| / |w| over the nonzero elements of each
            block, 0 for a block of zeros. Of a value in e4m3's normal range it is expected to be at most 2^-5, half of
            the half step of 3 mantissa bits, and 0.0225 where mantissas are spread evenly on a logarithmic scale. Only
            values below that range, which the largest one of their block has pushed there, have larger ones.
        absolute: float32 of this shape, the root of the mean of (w - w')^2.
    """
    rows, cols = weight.shape
    step = max(1, _ELEMENTS // (BLOCK * cols)) * BLOCK
    found = [_strip(weight[begin : begin + step]) for begin in range(0, rows, step)]
    return torch.cat([relative for relative, _ in found]), torch.cat([absolute for _, absolute in found])


def _strip(weight: Tensor) -> tuple[Tensor, Tensor]:
    weight = weight.float() if weight.dtype == torch.float64 else weight
    wide = weight.float()
    error = (wide - dequant_fp8(*per_block_quant_fp8(weight), torch.float32)).abs()
    size = wide.abs()
    ones = torch.ones_like(wide)
    relative = _sums(torch.where(size > 0, error / size, 0.0)) / _sums((size > 0).float()).clamp(min=1)
    return relative, (_sums(error.square()) / _sums(ones)).sqrt()


def _sums(x: Tensor) -> Tensor:
    """Of the blocks of x [N,K]."""
    rows, cols = x.shape
    x = F.pad(x, (0, -cols % BLOCK, 0, -rows % BLOCK))
    return x.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).sum((1, 3))

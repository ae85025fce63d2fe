"""Rotary position embedding (RoFormer, arXiv:2104.09864): the table of angles, and a prompt's turn by it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference.sums import acc_dtype
from .config import LongcatFlashConfig


class RotaryTable:
    """e^(i * position * theta^(-2j/d)) for pairs j (RoFormer, arXiv:2104.09864), grown on demand; angles in fp32, as
    transformers computes them.
    """

    def __init__(self, config: LongcatFlashConfig) -> None:
        exponent = torch.arange(0, config.qk_rope_head_dim, 2, dtype=torch.float32) / config.qk_rope_head_dim
        self.inv_freq = 1.0 / config.rope_theta**exponent
        self._table = torch.empty((0, config.qk_rope_head_dim))

    def upto(self, length: int, device: torch.device) -> Tensor:
        """fp32 [length or more, d], (cos, sin) of each pair at each position."""
        if length > len(self._table) or self._table.device != device:
            positions = max(1024, length, 2 * len(self._table) if length > len(self._table) else 0)
            angles = torch.arange(positions, dtype=torch.float32)[:, None] * self.inv_freq
            self._table = torch.stack([angles.cos(), angles.sin()], -1).flatten(1).to(device)
        return self._table


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the interleaved pairs (2j, 2j+1) of x [T,h,d] by rows [T,d] of a RotaryTable; they stay interleaved.

    In real numbers: torch ends a product of complex tensors in a scalar loop that rounds unlike the vector one, so the
    last row would have bits of its own.
    """
    even, odd = x.to(acc_dtype(x.dtype)).unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles[:, None].unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)

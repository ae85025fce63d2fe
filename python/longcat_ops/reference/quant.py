"""FP8 quantisation in plain torch: the oracle of the kernels, bit for bit, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..types import BLOCK
from .sums import silu

__all__ = ["dequant_fp8", "per_block_quant_fp8", "per_token_group_quant_fp8", "silu_and_mul_quant_fp8"]

E4M3_MAX = 448.0
MIN_AMAX = 1e-4


def per_token_group_quant_fp8(
    x: torch.Tensor, group_size: int = BLOCK, *, column_major_scales: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `longcat_ops.per_token_group_quant_fp8`."""
    rows, columns = x.shape
    groups = -(-columns // group_size)
    padded = F.pad(x.float(), (0, groups * group_size - columns)).view(rows, groups, group_size)
    scales = _scales(padded.abs().amax(-1))
    q = _to_e4m3(padded / scales.unsqueeze(-1)).view(rows, groups * group_size)[:, :columns].contiguous()
    if column_major_scales:
        padded_rows = -(-rows // 4) * 4
        column_major = scales.new_empty((groups, padded_rows)).t()[:rows]
        scales = column_major.copy_(scales)
    return q, scales


def per_block_quant_fp8(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `longcat_ops.per_block_quant_fp8`."""
    rows, columns = w.shape
    row_blocks, column_blocks = -(-rows // BLOCK), -(-columns // BLOCK)
    padded = F.pad(w.float(), (0, column_blocks * BLOCK - columns, 0, row_blocks * BLOCK - rows))
    blocks = padded.view(row_blocks, BLOCK, column_blocks, BLOCK)
    scales = _scales(blocks.abs().amax((1, 3)))
    q = _to_e4m3(blocks / scales[:, None, :, None]).view(padded.shape)
    return q[:rows, :columns].contiguous(), scales


def silu_and_mul_quant_fp8(
    gate_up: torch.Tensor, *, column_major_scales: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `longcat_ops.silu_and_mul_quant_fp8`."""
    gate, up = gate_up.float().chunk(2, -1)
    return per_token_group_quant_fp8(silu(gate) * up, column_major_scales=column_major_scales)


def dequant_fp8(
    q: torch.Tensor, s: torch.Tensor, dtype: torch.dtype = torch.bfloat16, *, group_size: int = BLOCK
) -> torch.Tensor:
    """See `longcat_ops.dequant_fp8`."""
    rows, columns = q.shape
    per_row = s.shape == (rows, -(-columns // group_size))
    scales = s.repeat_interleave(group_size if per_row else BLOCK, 1)[:, :columns]
    wide = q.float()
    if per_row:
        return wide.mul_(scales).to(dtype)
    for block, scale in zip(wide.split(BLOCK), scales, strict=True):  # in place: a weight is large
        block.mul_(scale)
    return wide.to(dtype)


def _scales(amax: torch.Tensor) -> torch.Tensor:
    # amax and clamp both let a NaN through, so a block that holds one gets a NaN scale.
    return amax.clamp(min=MIN_AMAX) / E4M3_MAX


def _to_e4m3(ratio: torch.Tensor) -> torch.Tensor:
    # One NaN pattern (0x7f), whatever sign the division gave it.
    ratio = torch.where(ratio.isnan(), torch.nan, ratio.clamp(-E4M3_MAX, E4M3_MAX))
    return ratio.to(torch.float8_e4m3fn)

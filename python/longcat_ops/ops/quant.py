"""FP8 quantisation ops. One e4m3 value per element and one float32 scale per group or block, as DeepSeek-V3 stores
them (arXiv:2412.19437, section 3.3.2) and as the published LongCat-Flash-Chat-FP8 weights use them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import BLOCK
from .calling import empty_scales, kernel, public
from .registry import require_dtype

_per_token_group_quant_fp8 = kernel("per_token_group_quant_fp8")
_per_block_quant_fp8 = kernel("per_block_quant_fp8")
_silu_and_mul_quant_fp8 = kernel("silu_and_mul_quant_fp8")
_dequant_fp8 = kernel("dequant_fp8")

_E4M3 = torch.float8_e4m3fn


@public
def per_token_group_quant_fp8(
    x: Tensor, group_size: int = BLOCK, *, column_major_scales: bool = False
) -> tuple[Tensor, Tensor]:
    """Quantises each run of `group_size` elements of a row to e4m3 with its own scale.

    `s = max(amax, 1e-4) / 448` in float32 and `q = e4m3(x / s)`: IEEE division, round to nearest even, saturating.
    A group that holds a NaN gets a NaN scale and all its q are NaN (0x7f). A group that holds an inf gets an inf scale:
    its finite elements become 0 and its infs NaN.

    Args:
        x: [T, H], bfloat16, float16 or float32; H a multiple of 8; last stride 1, rows any distance apart. T may be 0.
        group_size: a positive multiple of 8. The last group of a row may be shorter.
        column_major_scales: store s with strides (1, T rounded up to 4), the layout TMA loads; the padding is not set.

    Returns:
        q, float8_e4m3fn [T, H], contiguous; s, float32 [T, ceil(H / group_size)].

    Raises:
        LongcatShapeError: x is not such a tensor, or group_size is not legal.
    """
    rows, columns = x.shape
    q = torch.empty_like(x, dtype=_E4M3, memory_format=torch.contiguous_format)
    s = empty_scales(rows, -(-columns // group_size), x.device, column_major_scales)
    _per_token_group_quant_fp8(x, group_size, q, s)
    return q, s


@public
def per_block_quant_fp8(w: Tensor) -> tuple[Tensor, Tensor]:
    """Quantises each 128 x 128 block of a weight to e4m3, one scale each, by the rule of `per_token_group_quant_fp8`.

    Args:
        w: [N, K], bfloat16, float16 or float32; K a multiple of 8; last stride 1, rows any distance apart.

    Returns:
        q, float8_e4m3fn [N, K], contiguous; s, float32 [ceil(N / 128), ceil(K / 128)]. Edge blocks may be smaller.

    Raises:
        LongcatShapeError: w is not such a tensor.
    """
    rows, columns = w.shape
    q = torch.empty_like(w, dtype=_E4M3, memory_format=torch.contiguous_format)
    s = empty_scales(-(-rows // BLOCK), -(-columns // BLOCK), w.device, False)
    _per_block_quant_fp8(w, q, s)
    return q, s


@public
def silu_and_mul_quant_fp8(gate_up: Tensor, *, column_major_scales: bool = False) -> tuple[Tensor, Tensor]:
    """SwiGLU, then 1x128 quantisation: h = silu(gate) * up in float32, quantised without a rounding in between.

    silu(v) = v / (1 + exp(-v)) (Shazeer, arXiv:2002.05202); the rule of quantisation is `per_token_group_quant_fp8`'s.
    silu(-inf) is NaN, and a product beyond float32 inf: their group's scale is then NaN or inf, and no element of it a
    number when it is multiplied out.

    Args:
        gate_up: [T, 2I], bfloat16, float16 or float32, gate in the first I columns; I a multiple of 8; last stride 1,
            rows any distance apart. T may be 0.
        column_major_scales: store s with strides (1, T rounded up to 4); the padding is not set.

    Returns:
        q, float8_e4m3fn [T, I], contiguous; s, float32 [T, ceil(I / 128)].

    Raises:
        LongcatShapeError: gate_up is not such a tensor.
    """
    rows, columns = gate_up.shape
    width = columns // 2
    q = torch.empty((rows, width), dtype=_E4M3, device=gate_up.device)
    s = empty_scales(rows, -(-width // BLOCK), gate_up.device, column_major_scales)
    _silu_and_mul_quant_fp8(gate_up, q, s)
    return q, s


@public
def dequant_fp8(q: Tensor, s: Tensor, dtype: torch.dtype = torch.bfloat16, *, group_size: int = BLOCK) -> Tensor:
    """`q * s` in float32, rounded once to `dtype`.

    The shape of s says how q was quantised: [N, ceil(K / group_size)] is one scale per row and group, otherwise s must
    be [ceil(N / 128), ceil(K / 128)], one scale per block. No N above 1 fits both, and for N = 1 both mean the same.

    Args:
        q: float8_e4m3fn [N, K]; last stride 1, rows any distance apart.
        s: float32, any strides.
        dtype: bfloat16, float16 or float32.
        group_size: columns per scale in the first layout.

    Returns:
        [N, K] of `dtype`, contiguous.

    Raises:
        LongcatShapeError: q, s or dtype is not as above.
    """
    require_dtype("dequant_fp8", dtype)
    out = torch.empty(q.shape, dtype=dtype, device=q.device)
    _dequant_fp8(q, s, group_size, out)
    return out

"""FP8 quantisation ops. One e4m3 value per element and one float32 scale per group or block, as DeepSeek-V3 stores
them (arXiv:2412.19437, section 3.3.2) and as the published LongCat-Flash-Chat-FP8 weights use them."""

from __future__ import annotations

import torch

from .. import _library

_library.load()
_ops = torch.ops.longcat_ops
_per_token_group_quant_fp8 = _ops.per_token_group_quant_fp8.default
_per_block_quant_fp8 = _ops.per_block_quant_fp8.default
_dequant_fp8 = _ops.dequant_fp8.default

_BLOCK = 128


def per_token_group_quant_fp8(
    x: torch.Tensor, group_size: int = _BLOCK, *, column_major_scales: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
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
    if x.dim() != 2 or group_size <= 0:
        _library.check("per_token_group_quant_fp8", x, group_size)
    rows, columns = x.shape
    groups = -(-columns // group_size)
    q = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    if column_major_scales:
        s = torch.empty((groups, -(-rows // 4) * 4), dtype=torch.float32, device=x.device).t()[:rows]
    else:
        s = torch.empty(rows, groups, dtype=torch.float32, device=x.device)
    try:
        _per_token_group_quant_fp8(x, group_size, q, s)
    except RuntimeError as error:
        _library.reraise(error)
    return q, s


def per_block_quant_fp8(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantises each 128 x 128 block of a weight to e4m3, one scale each, by the rule of `per_token_group_quant_fp8`.

    Args:
        w: [N, K], bfloat16, float16 or float32; K a multiple of 8; last stride 1, rows any distance apart.

    Returns:
        q, float8_e4m3fn [N, K], contiguous; s, float32 [ceil(N / 128), ceil(K / 128)]. Edge blocks may be smaller.

    Raises:
        LongcatShapeError: w is not such a tensor.
    """
    if w.dim() != 2:
        _library.check("per_block_quant_fp8", w)
    rows, columns = w.shape
    q = torch.empty_like(w, dtype=torch.float8_e4m3fn)
    s = torch.empty((-(-rows // _BLOCK), -(-columns // _BLOCK)), dtype=torch.float32, device=w.device)
    try:
        _per_block_quant_fp8(w, q, s)
    except RuntimeError as error:
        _library.reraise(error)
    return q, s


def dequant_fp8(
    q: torch.Tensor, s: torch.Tensor, dtype: torch.dtype = torch.bfloat16, *, group_size: int = _BLOCK
) -> torch.Tensor:
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
    if q.dim() != 2:
        _library.check("dequant_fp8", q, s, group_size)
    out = torch.empty(q.shape, dtype=dtype, device=q.device)
    try:
        _dequant_fp8(q, s, group_size, out)
    except RuntimeError as error:
        _library.reraise(error)
    return out

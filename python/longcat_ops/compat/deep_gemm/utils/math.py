"""Sizes, and casts to FP8 by the quantisation ops of longcat_ops."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ....errors import LongcatUnsupportedError, message
from ....ops import quant
from ....types import BLOCK, Fp8Pair
from .._calling import call, flag
from .._refusals import CASTS, refusals

_refused = refusals(CASTS)
__all__ = ["align", "ceil_div", "per_block_cast_to_fp8", "per_token_cast_to_fp8", *_refused]
globals().update(_refused)

_TOKEN, _BLOCK = "per_token_cast_to_fp8", "per_block_cast_to_fp8"
_TOKEN_NAMES = {"per_token_group_quant_fp8": _TOKEN, "group_size": "gran_k"}
_BLOCK_NAMES = {"per_block_quant_fp8": _BLOCK, "w": "x"}


def ceil_div(x: int, y: int) -> int:
    """x / y, rounded up."""
    return -(-x // y)


def align(x: int, y: int) -> int:
    """x, rounded up to a multiple of y."""
    return ceil_div(x, y) * y


def per_token_cast_to_fp8(x: Tensor, use_ue8m0: bool, gran_k: int = BLOCK, use_packed_ue8m0: bool = False) -> Fp8Pair:
    """`longcat_ops.per_token_group_quant_fp8(x, gran_k)`: it divides by the scale where DeepGEMM multiplies by the
    scale's reciprocal, so single codes may differ by one step. The products take gran_k 128.

    Args:
        x: [M, K], bfloat16, float16 or float32; K and gran_k multiples of 8.
        use_ue8m0, use_packed_ue8m0: False.

    Returns:
        e4m3 [M, K] and f32 [M, ceil(K / gran_k)].

    Raises:
        LongcatShapeError: x or gran_k is not as above.
        LongcatUnsupportedError: a scale that is a power of two is asked for.
    """
    _require_float_scales(_TOKEN, use_ue8m0=use_ue8m0, use_packed_ue8m0=use_packed_ue8m0)
    return call(quant.per_token_group_quant_fp8, _TOKEN_NAMES, x, gran_k)


def per_block_cast_to_fp8(x: Tensor, use_ue8m0: bool, gran_k: int = BLOCK) -> Fp8Pair:
    """`longcat_ops.per_block_quant_fp8(x)`, which differs from DeepGEMM's as `per_token_cast_to_fp8` does.

    Args:
        x: [N, K], bfloat16, float16 or float32; K a multiple of 8. use_ue8m0: False. gran_k: 128.

    Returns:
        e4m3 [N, K] and f32 [ceil(N / 128), ceil(K / 128)].

    Raises:
        LongcatShapeError: x is not as above.
        LongcatUnsupportedError: a scale that is a power of two, or blocks of another size are asked for.
    """
    _require_float_scales(_BLOCK, use_ue8m0=use_ue8m0)
    if gran_k != BLOCK:
        raise LongcatUnsupportedError(message(_BLOCK, "gran_k", gran_k, "128, the block of FP8 weights"))
    return call(quant.per_block_quant_fp8, _BLOCK_NAMES, x)


def _require_float_scales(op: str, **flags: Any) -> None:
    for name, value in flags.items():
        flag(op, name, value)
        if value:
            raise LongcatUnsupportedError(message(op, name, True, "False: scales here are any float32, as on SM90"))

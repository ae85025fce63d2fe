"""The argument list of each op as its C++ check takes it, for `longcat_ops.supports`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import _library
from ..errors import LongcatUnsupportedError


def _per_token_group_quant_fp8(
    x: torch.Tensor, group_size: int = 128, *, column_major_scales: bool = False
) -> tuple[Any, ...]:
    return x, group_size


def _per_block_quant_fp8(w: torch.Tensor) -> tuple[Any, ...]:
    return (w,)


def _dequant_fp8(
    q: torch.Tensor, s: torch.Tensor, dtype: torch.dtype = torch.bfloat16, *, group_size: int = 128
) -> tuple[Any, ...]:
    out = torch.empty(q.shape, dtype=dtype, device="meta")
    _, sizes, strides, _, _, alignment = _library.describe(out)
    return q, s, group_size, (str(dtype), sizes, strides, q.device.type, q.device.index or 0, alignment)


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[Any, ...]:
    return x, weight, float(eps)


# Same signatures as the public functions, so a wrong call fails here as it would there.
_ARGUMENTS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "per_token_group_quant_fp8": _per_token_group_quant_fp8,
    "per_block_quant_fp8": _per_block_quant_fp8,
    "dequant_fp8": _dequant_fp8,
    "rms_norm": _rms_norm,
}


def supports(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, str, str]:
    if op not in _ARGUMENTS:
        raise LongcatUnsupportedError(f"supports: op {op!r} has no check; these have: {', '.join(sorted(_ARGUMENTS))}.")
    code, reason, fix = _library.find_problem(op, *_ARGUMENTS[op](*args, **kwargs))
    return not code, reason, fix

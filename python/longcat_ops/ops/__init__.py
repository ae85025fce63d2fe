"""The ops: docstring, output allocation and one `torch.ops.longcat_ops` call each. Names load on first use."""

from __future__ import annotations

import importlib
from typing import Any

_MODULE_OF = {
    "Routing": "moe",
    "dequant_fp8": "quant",
    "fp8_gemm_nt": "gemm",
    "fused_moe": "moe",
    "moe_route": "moe",
    "per_block_quant_fp8": "quant",
    "per_token_group_quant_fp8": "quant",
    "rms_norm": "norm",
}

__all__ = ["supports", *_MODULE_OF]


def supports(op: str, *args: Any, **kwargs: Any) -> tuple[bool, str, str]:
    """Would `longcat_ops.<op>(*args, **kwargs)` be accepted? The same check as the call itself, without running it.

    Tensors may be real or on the meta device: only dtype, shape, strides and device are read.

    Returns:
        (True, "", "") or (False, reason, fix); fix may be empty.
    """
    from . import support

    return support.supports(op, args, kwargs)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

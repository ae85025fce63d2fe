"""Helpers for arguments and results of ops: as bytes, on another device, or without rows that an op leaves unset."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def blank(tensor: Tensor) -> Tensor:
    """A tensor of the same layout with all bytes 0."""
    storage = torch.zeros(tensor.untyped_storage().nbytes(), dtype=torch.uint8)
    whole = storage.view(tensor.dtype) if len(storage) else torch.empty(0, dtype=tensor.dtype)
    return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def bits(value: Any) -> list[bytes]:
    """The bytes of every tensor in a result."""
    if isinstance(value, Tensor):
        if not value.numel():
            return [b""]
        # NOTE: one element counts as contiguous whatever its stride is, so contiguous() would not do.
        flat = value.clone(memory_format=torch.contiguous_format).view(-1)
        return [flat.view(torch.uint8).numpy().tobytes()]
    return [part for item in value if item is not None for part in bits(item)]


def settled(op: str, made: Any, result: Any) -> Any:
    """The result without the rows that the op leaves unset."""
    offsets = {
        "m_grouped_fp8_swiglu_gemm_nt_offset": lambda: made.args[2],
        "m_grouped_bf16_swiglu_gemm_nt_offset": lambda: made.args[2],
        "moe_permute": lambda: made.args[1].offsets,
        "moe_permute_quant": lambda: made.args[1].offsets,
    }
    return [t[: int(offsets[op]()[-1])] for t in tensors(result)] if op in offsets else result


def tensors(value: Any) -> list[Tensor]:
    """Every tensor of a result, or of arguments."""
    if isinstance(value, Tensor):
        return [value]
    items = value if isinstance(value, tuple | list) else ()
    return [part for item in items for part in tensors(item)]


def to_device(value: Any, device: str) -> Any:
    """Arguments or results with every tensor moved, its strides kept."""
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device).copy_(value)
    if isinstance(value, tuple | list):
        parts = [to_device(part, device) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value

"""What a communicator takes of a rank's memory, before there is one."""

from __future__ import annotations

from typing import Any

from .expert_kernels import Shape
from .providers.base import symmetric_bytes

PROVIDERS = ("auto", "torch", "vmm")  # who allocates symmetric memory
MAX_BYTES, CHANNELS = 96 << 20, 2  # what a Communicator takes by default
LINE_BYTES = 16 << 10  # the largest message in lines of data and flag: kLlBytes of cuda/comm/config.h


def parts(ranks: int, max_bytes: int = MAX_BYTES, num_channels: int = CHANNELS) -> dict[str, int]:
    """What lies in its symmetric memory, name -> bytes a rank: lines and a copy of one tensor for each channel, and
    what `empty` hands out."""
    channels = range(num_channels)
    lines = {f"lines {i}": 4 * ranks * LINE_BYTES for i in channels}  # two calls, as much flag as data
    return {**lines, **{f"copy {i}": max_bytes for i in channels}, "empty": max_bytes}


def communicator_bytes(ranks: int, max_bytes: int = MAX_BYTES, num_channels: int = CHANNELS) -> int:
    """Bytes of device memory a rank for `Communicator(max_bytes=, num_channels=)` on a device rung; 0 for one rank."""
    return symmetric_bytes(parts(ranks, max_bytes, num_channels)) if ranks > 1 else 0


def expert_parts(ranks: int, num_ffn_experts: int, top_k: int, hidden: int, *, max_tokens: int = 512,
                 payload: str = "fp8", buffers: int = 2, backend: str = "torch") -> dict[str, int]:  # fmt: skip
    """What an ExpertParallel keeps on each of several ranks, name -> bytes: for each buffer the rows that may arrive,
    their scales, and the rows that may come back; lines and flags of `nvl`."""
    if ranks == 1:
        return {}
    shape = Shape(ranks, num_ffn_experts, top_k, max_tokens, hidden, payload)
    common = shape.parts() if backend == "nvl" else {}
    one = shape.buffer_parts()
    return common | {f"{name} {b}": size for b in range(buffers) for name, size in one.items() if size}


def expert_bytes(ranks: int, num_ffn_experts: int, top_k: int, hidden: int, *, backend: str = "torch",
                 **options: Any) -> int:  # fmt: skip
    """Bytes of a rank for `ExpertParallel` with these arguments; 0 for one rank. The products' own rows, h and y, come
    on top while a layer runs."""
    parts = expert_parts(ranks, num_ffn_experts, top_k, hidden, backend=backend, **options)
    return symmetric_bytes(parts) if parts and backend == "nvl" else sum(parts.values())

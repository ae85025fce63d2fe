"""What a communicator takes of a rank's memory, before there is one."""

from __future__ import annotations

from typing import Any

from ..types import BLOCK
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


def expert_parts(ranks: int, config: Any) -> dict[str, int]:
    """What an ExpertParallel of more than one rank keeps on each, name -> bytes: for each buffer the rows that may
    arrive, their scales, and the rows that may come back. config: an `ExpertConfig`, or what has its sizes."""
    c = config
    if ranks == 1:
        return {}
    rows = ranks * c.max_tokens * min(c.top_k, c.num_ffn_experts // ranks)
    back = c.max_tokens * min(c.top_k, c.num_ffn_experts)
    one = {
        "rows": rows * c.hidden * (1 if c.payload == "fp8" else 2),
        "scales": rows * 4 * -(-c.hidden // BLOCK) * (c.payload == "fp8"),
        "returned": back * 2 * c.hidden,
    }
    return {f"{name} {b}": size for b in range(c.buffers) for name, size in one.items()}

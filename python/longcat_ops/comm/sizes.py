"""What a communicator takes of a rank's memory, before there is one."""

from __future__ import annotations

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

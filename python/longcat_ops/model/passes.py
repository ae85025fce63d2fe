"""The passes of the network: where a prompt is cut into them, and what they yield."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from .rows import by_row

CHUNK = 512  # prefill chunk boundaries are multiples of this, from position 0


class Kind(IntEnum):
    """Passes that ranks make together, the more urgent first."""

    TARGET = 1
    MTP = 2
    HEAD = 3


@dataclass(frozen=True)
class Step:
    """What one pass yields for its n rows: logits f32[n,V] (or of the last row only), hidden [n,H] after the final
    norm, and of each layer u8[n], the FFN experts of each row."""

    logits: Tensor
    hidden: Tensor
    by_layer: list[Tensor]

    @property
    def num_real(self) -> Tensor:
        """u8[n,layers]: FFN experts of each row."""
        return by_row(self.by_layer, self.hidden)


def chunks(start: int, end: int) -> Iterator[tuple[int, int]]:
    """[start, end) cut at the multiples of CHUNK."""
    while start < end:
        stop = min(end, (start // CHUNK + 1) * CHUNK)
        yield start, stop
        start = stop


def join(steps: list[Step]) -> Step:
    """The passes of one prompt, or of single rows, as one."""
    if len(steps) == 1:
        return steps[0]
    logits, hidden = (torch.cat([getattr(s, name) for s in steps]) for name in ("logits", "hidden"))
    return Step(logits, hidden, [torch.cat(parts) for parts in zip(*(s.by_layer for s in steps), strict=True)])

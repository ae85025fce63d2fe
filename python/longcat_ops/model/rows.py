"""The rows that one pass of the network runs on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .cache import LatentCache

# A pass over at most this many new tokens a sequence, on a cache that holds some, is a decode (or verify) pass.
DECODE_TOKENS = 8


@dataclass
class Rows:
    """The tokens of one pass, as rows of x [T,H]: row i is token `positions[i]` of sequence `sequences[i]`.

    `decode` picks products whose rows do not depend on each other, and the absorbed attention over the plain one.
    """

    cache: LatentCache
    sequences: list[int]
    positions: list[int]
    decode: bool
    rope: Tensor  # f32 [positions, qk_rope_head_dim], see RotaryTable
    sequence: Tensor = field(init=False)  # i32[T], as sequences
    position: Tensor = field(init=False)  # i32[T], as positions
    num_real: list[Tensor] = field(default_factory=list)  # per layer u8[T]: FFN experts of each row

    _counts: dict[int, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        device = self.cache.page_table.device
        self.sequence = torch.tensor(self.sequences, dtype=torch.int32, device=device)
        self.position = torch.tensor(self.positions, dtype=torch.int32, device=device)

    def counts(self, groups: int) -> Tensor:
        """i32 [groups], T each: the rows that products with a group per head have."""
        if groups not in self._counts:
            count = torch.full((groups,), len(self.positions), dtype=torch.int32, device=self.position.device)
            self._counts[groups] = count
        return self._counts[groups]

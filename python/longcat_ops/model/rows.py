"""The rows that one pass of the network runs on."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from .cache import LatentCache

# A pass over at most this many new tokens a sequence, on a cache that holds some, is a decode (or verify) pass.
DECODE_TOKENS = 8


@dataclass
class Rows:
    """The tokens of one pass, as rows of x [T,H]: row i is token `positions[i]` of sequence `sequences[i]`.

    `decode` picks products whose rows do not depend on each other, and the absorbed attention (one query row at a time)
    over the plain one.
    """

    cache: LatentCache
    sequences: list[int]
    positions: list[int]
    decode: bool
    rope: Tensor  # complex[T, qk_rope_head_dim / 2]
    index: Tensor = field(init=False)  # i64[T]: cache row of each
    num_real: list[Tensor] = field(default_factory=list)  # per layer u8[T]: FFN experts of each row

    def __post_init__(self) -> None:
        self.index = self.cache.row_index(self.sequences, self.positions)

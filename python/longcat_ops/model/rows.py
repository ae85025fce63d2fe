"""The rows that one pass of the network runs on, and how many a decode pass may have."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..reference.rows import SMALL_T
from .cache import LatentCache

# A pass over at most this many new tokens a sequence, on a cache that holds some, is a decode (or verify) pass. Up to
# the same number, the ops and blocks keep a row's bits independent of its neighbours.
DECODE_ROWS = SMALL_T


@dataclass
class Rows:
    """The tokens of one pass, as rows of x [T,H]: row i is token `positions[i]` of sequence `sequences[i]`.

    Rows beyond len(positions) are padding. `decode` picks the absorbed attention (one query row at a time) over the
    plain one.
    """

    cache: LatentCache
    sequences: list[int]
    positions: list[int]
    decode: bool
    rope: Tensor  # complex[T, qk_rope_head_dim / 2]
    index: Tensor = field(init=False)  # i64[n]: cache row of each valid row
    num_real: list[Tensor] = field(default_factory=list)  # per layer u8[T]: FFN experts of each row
    _valid_rows: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.index = self.cache.row_index(self.sequences, self.positions)

    @property
    def num_valid(self) -> int:
        return len(self.positions)

    def valid_rows(self, rows: int) -> Tensor | None:
        """num_valid as `moe_route` takes it for `rows` rows: i32[1], made once a pass; None if no row is padding."""
        if self.num_valid < rows and self._valid_rows is None:
            self._valid_rows = torch.full((1,), self.num_valid, dtype=torch.int32, device=self.rope.device)
        return self._valid_rows

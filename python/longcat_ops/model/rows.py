"""The rows that one pass of the network runs on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from .cache import LatentCache
from .tensor_parallel import Company

AnyRows: TypeAlias = "Rows | PromptRows"

# A pass over at most this many new tokens a sequence, on a cache that holds some, is a decode (or verify) pass.
DECODE_TOKENS = 8


def by_row(by_layer: list[Tensor], hidden: Tensor) -> Tensor:
    """u8[n,layers] of a tensor u8[n] for each layer; hidden has a row for each, for networks without layers."""
    return torch.stack(by_layer, 1) if by_layer else hidden.new_zeros((len(hidden), 0), dtype=torch.uint8)


@dataclass
class Rows:
    """The tokens of a decode pass, as rows of x [T,H]: row i is token position[i] of sequence[i]. Rows of position -1
    are padding, at the end. Nothing here is read on the host.
    """

    cache: LatentCache
    sequence: Tensor  # i32[T]
    position: Tensor  # i32[T]
    num_rows: Tensor  # i32[h]: rows ahead of the padding, once for each head
    rope: Tensor  # f32 [positions, qk_rope_head_dim], see RotaryTable
    errors: Tensor  # i32[1], counted up by the rows of a layer whose router logits are not finite
    num_real: list[Tensor] = field(default_factory=list)  # per layer u8[T]: FFN experts of each row
    tokens: list[int] | None = None  # rows of each rank of this one's tensor-parallel group, where they are agreed
    company: Company | None = None
    count: Tensor = field(init=False)  # i32[1]: rows ahead of the padding

    def __post_init__(self) -> None:
        self.count = self.num_rows[:1]

    @classmethod
    def at(cls, cache: LatentCache, sequences: list[int], positions: list[int], rope: Tensor, heads: int) -> Rows:
        """Rows without padding, from the host."""
        device = cache.page_table.device
        sequence, position = (torch.tensor(v, dtype=torch.int32, device=device) for v in (sequences, positions))
        num_rows = torch.full((heads,), len(positions), dtype=torch.int32, device=device)
        return cls(cache, sequence, position, num_rows, rope, torch.zeros(1, dtype=torch.int32, device=device))


@dataclass
class PromptRows:
    """The tokens start .. end-1 of one sequence, a chunk of its prompt, as rows of x [end-start,H]."""

    cache: LatentCache
    owner: int  # the sequence
    start: int
    end: int
    rope: Tensor  # as in Rows
    sequence: Tensor = field(init=False)  # i32[T], owner
    position: Tensor = field(init=False)  # i32[T]
    errors: Tensor = field(init=False)
    num_real: list[Tensor] = field(default_factory=list)
    company: Company | None = None

    count = tokens = None  # no padding, nothing agreed

    def __post_init__(self) -> None:
        device = self.cache.page_table.device
        self.position = torch.arange(self.start, self.end, dtype=torch.int32, device=device)
        self.sequence = torch.full_like(self.position, self.owner)
        self.errors = torch.zeros(1, dtype=torch.int32, device=device)

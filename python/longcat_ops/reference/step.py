"""Plain-torch bookkeeping of a decode step: the oracle, and the path where there is no kernel. Reads no value on the
host."""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import PackedRows

__all__ = ["advance_lengths", "pack_rows"]

_MOST = torch.iinfo(torch.int32).max


def pack_rows(tokens: Tensor, num_drafts: Tensor, lengths: Tensor, *, copies: int = 1) -> PackedRows:
    """Rows tokens[b, 0 .. num_drafts[b]] at lengths[b] + j, packed to the front; -1 behind them."""
    sequences, width = tokens.shape
    place = torch.arange(width, device=tokens.device)
    count = (num_drafts.long().clamp(max=width - 1) + 1).clamp(min=0)
    first = count.cumsum(0) - count
    to = (first[:, None] + place).where(place < count[:, None], sequences * width).flatten()

    def packed(values: Tensor) -> Tensor:
        """values [B, q] at their rows; those without one go to a row behind all, which is dropped."""
        out = values.new_full((sequences * width + 1,), -1)
        out[to] = values.flatten()
        return out[:-1]

    position = (lengths.long()[:, None] + place).clamp(max=_MOST).int()
    sequence = torch.arange(sequences, dtype=torch.int32, device=tokens.device)[:, None].expand(sequences, width)
    return PackedRows(
        ids=packed(tokens),
        sequence=packed(sequence),
        position=packed(position),
        first_row=first.where(count > 0, -1).int(),
        num_rows=count.sum().int().repeat(copies),
    )


def advance_lengths(tokens: Tensor, num_tokens: Tensor, first_row: Tensor, limits: Tensor, stop_ids: Tensor,
                    lengths: Tensor, num_drafts: Tensor, newest: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(kept, last_row); lengths, num_drafts and newest are advanced in place."""
    width, place = tokens.shape[1], torch.arange(tokens.shape[1], device=tokens.device)
    is_active, length, limit = num_drafts >= 0, lengths.long(), limits.long()
    most = torch.minimum(num_tokens.long().clamp(0, width), limit - length - 1)
    ends = (tokens < 0) | (tokens[..., None] == stop_ids).any(-1)
    ended_before = ends.cumsum(1) - ends.long()
    stays = (place < most[:, None]) & (ended_before == 0) & is_active[:, None]
    kept = stays.sum(1)
    last = (kept - 1).clamp(min=0)[:, None]
    length = length + kept
    is_finished = (kept == 0) | ends.gather(1, last)[:, 0] | (length + 1 >= limit)
    drafts = (limit - length - 2).clamp(max=width - 1).masked_fill(is_finished, -1)
    newest.copy_(tokens.gather(1, last)[:, 0].where(kept > 0, newest))
    lengths.copy_(length)
    num_drafts.copy_(drafts.where(is_active, num_drafts))
    last_row = (first_row.long() + kept - 1).masked_fill((kept == 0) | (first_row < 0), -1)
    return kept.int(), last_row

"""The bookkeeping of a decode step, so that no host code reads a value of it: which rows the step computes, and how far
each sequence gets.

B sequences have q = 1 + d tokens each: the newest one and up to d drafts. lengths[b] rows of its cache are valid. Its
newest token is number lengths[b] of its text, counted from 0, and has no row yet. num_drafts[b] says how many drafts
follow; -1 stands for a sequence that is idle, which has no row and stays as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import PackedRows
from .calling import kernel, public
from .registry import check_copies

__all__ = ["PackedRows", "advance_lengths", "pack_rows"]

_pack_rows = kernel("pack_rows")
_advance_lengths = kernel("advance_lengths")


@public
def pack_rows(tokens: Tensor, num_drafts: Tensor, lengths: Tensor, *, copies: int = 1) -> PackedRows:
    """The rows of a decode step, those of each sequence in order, packed to the front: tokens[b, 0 .. num_drafts[b]] at
    positions lengths[b], lengths[b] + 1, and so on.

    Args:
        tokens: i64 [B, q], q at least 1: the newest token, then drafts; last stride 1, rows any distance apart. B may
            be 0, and B * q is below 2^31.
        num_drafts: i32 [B] contiguous; more than q - 1 count as q - 1, and a negative one is an idle sequence.
        lengths: i32 [B] contiguous. A position past 2^31 - 1 becomes 2^31 - 1.
        copies: at least 1; how often num_rows says the number of rows, for grouped products with a group per head,
            which read one number each.

    Returns:
        PackedRows of T = B * q rows, all of them written: behind the last row ids, sequence and position are -1.

    Raises:
        LongcatShapeError: the arguments do not fit each other, or copies is another value.
    """
    check_copies(copies)
    (sequences, width), device = tokens.shape, tokens.device
    rows = sequences * width
    packed = PackedRows(
        ids=torch.empty(rows, dtype=torch.int64, device=device),
        sequence=torch.empty(rows, dtype=torch.int32, device=device),
        position=torch.empty(rows, dtype=torch.int32, device=device),
        first_row=torch.empty(sequences, dtype=torch.int32, device=device),
        num_rows=torch.empty(copies, dtype=torch.int32, device=device),
    )
    _pack_rows(tokens, num_drafts, lengths, *packed)
    return packed


@public
def advance_lengths(tokens: Tensor, num_tokens: Tensor, first_row: Tensor, limits: Tensor, stop_ids: Tensor,
                    lengths: Tensor, num_drafts: Tensor, newest: Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Appends the new tokens of a step to the sequences that are not idle, and says what each does next.

    A sequence keeps its new tokens up to its limit and up to the first one that ends it: one of stop_ids, or a negative
    one, which marks logits that were not finite. That one is kept. With none kept, with such a last one, or at its
    limit, it is finished, and idle from now on. Rows of a cache behind lengths[b] are what later steps overwrite.

    Args:
        tokens: i64 [B, q], q at least 1: the new tokens of each sequence; last stride 1, rows any distance apart. B may
            be 0, and B * q is below 2^31.
        num_tokens: i32 [B] contiguous: how many of them count; clipped to 0 .. q.
        first_row: i32 [B] contiguous, from `pack_rows`.
        limits: i32 [B] contiguous: the most tokens that the text may have; it has lengths[b] + 1 before this step.
        stop_ids: i64 [S] contiguous. S may be 0.
        lengths: i32 [B] contiguous; written: the number of kept tokens is added.
        num_drafts: i32 [B] contiguous; written: -1 if the sequence is finished. If not, as many as there is room for,
            up to q - 1: limits[b] - 2 - lengths[b], by the new length, for a token follows the last draft.
        newest: i64 [B], any stride; written: the last kept token. It stays if none is kept.

    Returns:
        kept, i32 [B]: how many new tokens each sequence keeps; 0 if it is idle.
        last_row, i64 [B]: first_row[b] + kept[b] - 1, the row that gave the last kept token; -1 if none is kept or
            first_row[b] is negative.

    Raises:
        LongcatShapeError: the arguments do not fit each other.
    """
    sequences, device = tokens.shape[0], tokens.device
    kept = torch.empty(sequences, dtype=torch.int32, device=device)
    last_row = torch.empty(sequences, dtype=torch.int64, device=device)
    _advance_lengths(tokens, num_tokens, first_row, limits, stop_ids, lengths, num_drafts, newest, kept, last_row)
    return kept, last_row

"""Calls of the kernels of a decode step's bookkeeping in the emulator, whose results are checked."""

from __future__ import annotations

import random

import torch

from support.emulated_kernels import assert_gaps_untouched, copied, run
from support.step_oracle import State, advanced, drawn, i32, i64, packed


def state(sequences: int, width: int, seed: int = 0) -> State:
    return drawn(random.Random(seed + 10 * sequences + width), sequences, width)


def idle(s: State) -> State:
    return s._replace(num_drafts=[-1] * len(s.num_drafts))


def pack(s: State, width: int, copies: int = 1, gap: int = 0, offset: int = 0) -> None:
    sequences = len(s.lengths)
    tokens = copied(i64(s.tokens, sequences, width), gap, offset)
    sizes = {"ids": sequences * width, "sequence": sequences * width, "position": sequences * width,
             "first_row": sequences, "num_rows": copies}  # fmt: skip
    out = {name: torch.zeros(n, dtype=torch.int64 if name == "ids" else torch.int32) for name, n in sizes.items()}
    run("pack_rows", tokens, i32(s.num_drafts), i32(s.lengths), *out.values())
    want = packed(s.tokens, s.num_drafts, s.lengths, width)
    want["num_rows"] *= copies
    assert {name: values.tolist() for name, values in out.items()} == want


def advance(s: State, width: int, gap: int = 0, offset: int = 0) -> None:
    """newest is a column, whose neighbours stay."""
    sequences = len(s.lengths)
    tokens, newest = copied(i64(s.tokens, sequences, width), gap, offset), copied(i64(s.newest, sequences, 1), gap, 1)
    lengths, num_drafts = i32(s.lengths), i32(s.num_drafts)
    kept, last_row = torch.zeros(sequences, dtype=torch.int32), torch.zeros(sequences, dtype=torch.int64)
    read = [i32(s.num_tokens), i32(s.first_row), i32(s.limits), i64(s.stop_ids)]
    run("advance_lengths", tokens, *read, lengths, num_drafts, newest[:, 0], kept, last_row)
    after = s._replace(lengths=lengths.tolist(), num_drafts=num_drafts.tolist(), newest=newest[:, 0].tolist())
    assert (after, kept.tolist(), last_row.tolist()) == advanced(s, width)
    assert_gaps_untouched(tokens, newest)


def long_text(width: int, ends_at: int, stop_ids: list[int]) -> State:
    """One sequence with more tokens than a warp has lanes; that at `ends_at` is the first stop id."""
    tokens = [5 + i % 3 for i in range(width)]
    tokens[ends_at:] = [stop_ids[0]] * (width - ends_at)
    return State([tokens], [width], [4], [10**6], stop_ids, [7], [0], [1])

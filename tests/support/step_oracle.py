"""The bookkeeping of a decode step in plain Python, sequence by sequence; and states to try it on."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from torch import Tensor

MOST = 2**31 - 1


class State(NamedTuple):
    """B sequences, as lists; drafts < 0: idle."""

    tokens: list[list[int]]
    num_tokens: list[int]
    first_row: list[int]
    limits: list[int]
    stop_ids: list[int]
    lengths: list[int]
    num_drafts: list[int]
    newest: list[int]


def i32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def i64(values: list, *shape: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64).view(shape or (-1,))


def packed(tokens: list[list[int]], num_drafts: list[int], lengths: list[int], width: int) -> dict[str, list[int]]:
    """ids, sequence, position, first_row and the one number of rows."""
    rows, first_row = [], []
    for b, drafts in enumerate(num_drafts):
        first_row.append(len(rows) if drafts >= 0 else -1)
        rows += [(tokens[b][j], b, min(lengths[b] + j, MOST)) for j in range(min(drafts + 1, width))]
    padding = [(-1, -1, -1)] * (len(num_drafts) * width - len(rows))
    columns = [list(column) for column in zip(*rows, *padding, strict=True)] or [[], [], []]
    return {"ids": columns[0], "sequence": columns[1], "position": columns[2], "first_row": first_row,
            "num_rows": [len(rows)]}  # fmt: skip


def advanced(s: State, width: int) -> tuple[State, list[int], list[int]]:
    """(state, kept, last_row) after the step. Tokens are appended one by one to a text, of which the size counts."""
    lengths, num_drafts, newest = list(s.lengths), list(s.num_drafts), list(s.newest)
    kept, last_row = [0] * len(lengths), [-1] * len(lengths)
    for b in range(len(lengths)):
        if s.num_drafts[b] < 0:
            continue
        size, stopped = s.lengths[b] + 1, False  # of the text
        for token in s.tokens[b][: max(s.num_tokens[b], 0)]:
            if size >= s.limits[b]:
                break
            size += 1
            kept[b] += 1
            newest[b] = token
            if token < 0 or token in s.stop_ids:
                stopped = True
                break
        lengths[b] = size - 1
        if kept[b] and s.first_row[b] >= 0:
            last_row[b] = s.first_row[b] + kept[b] - 1
        if stopped or not kept[b] or size >= s.limits[b]:
            num_drafts[b] = -1
        else:
            # The token behind the drafts is the last that fits.
            num_drafts[b] = max(d for d in range(width) if d == 0 or size + d + 1 <= s.limits[b])
    return s._replace(lengths=lengths, num_drafts=num_drafts, newest=newest), kept, last_row


def drawn(rng: random.Random, sequences: int, width: int) -> State:
    """A state of every kind: idle, past its limit, at it, below it; stop ids and negative tokens anywhere; numbers of
    tokens and drafts out of their range."""

    def each(*choices) -> list[int]:
        return [rng.choice(choices)() for _ in range(sequences)]

    lengths = each(lambda: rng.randrange(9), lambda: MOST - rng.randrange(6))
    return State(
        tokens=[[rng.choice((rng.randrange(12), 2**40 + 3, -1)) if rng.random() < 0.5 else 5 for _ in range(width)]
                for _ in range(sequences)],
        num_tokens=each(lambda: rng.randint(-2, width + 2), lambda: width, lambda: MOST),
        first_row=each(lambda: rng.randrange(sequences * width), lambda: -1, lambda: MOST),
        limits=[min(n + rng.randint(-1, 2 * width + 2), MOST) for n in lengths],
        stop_ids=rng.sample((3, 7, 11, 2**40 + 3, 10**15), rng.randrange(4)),
        lengths=lengths,
        num_drafts=each(lambda: rng.randint(-2, width + 1), lambda: width - 1, lambda: MOST, lambda: -MOST - 1),
        newest=each(lambda: rng.randrange(100)),
    )  # fmt: skip

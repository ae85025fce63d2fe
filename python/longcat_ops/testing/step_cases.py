"""The calls of the bookkeeping of a decode step, for `op_cases`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .calls import Call, call, seeded


def _i32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@seeded
def _pack(num_drafts: list[int], width: int, **kwargs: Any) -> Call:
    tokens = torch.randint(1, 50, (len(num_drafts), width))
    return call(tokens, _i32(num_drafts), torch.arange(3, 3 + len(num_drafts), dtype=torch.int32), **kwargs)


@seeded
def _advance(num_tokens: list[int], num_drafts: list[int], width: int, limit: int, stop_ids: list[int]) -> Call:
    """One of the rows' tokens is negative; newest lies in a wider tensor."""
    sequences = len(num_tokens)
    tokens = torch.randint(1, 50, (sequences, width))
    tokens[1:2, -1] = -1
    return call(
        tokens,
        _i32(num_tokens),
        torch.arange(0, width * sequences, width, dtype=torch.int32),
        torch.full((sequences,), limit, dtype=torch.int32),
        torch.tensor(stop_ids, dtype=torch.int64),
        torch.arange(sequences, dtype=torch.int32),
        _i32(num_drafts),
        torch.full((sequences, 3), 7)[:, 1],
    )


CASES: dict[str, dict[str, Callable[[], Call]]] = {
    "pack_rows": {
        "ragged": lambda: _pack([2, -1, 0, 5, 1], 3),
        "copies": lambda: _pack([0, 0, 0], 1, copies=4),
        "empty": lambda: _pack([], 2),
    },
    "advance_lengths": {
        "ragged": lambda: _advance([3, 3, 0, 2, 9], [2, 0, 1, -1, 2], 3, 8, [11, 12]),
        "no_stop_ids": lambda: _advance([1, 1], [0, 0], 1, 2, []),
        "empty": lambda: _advance([], [], 2, 5, [3]),
    },
}

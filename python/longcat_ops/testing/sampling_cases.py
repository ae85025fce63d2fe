"""The calls of the ops that choose tokens, for `op_cases`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .calls import Call, call, seeded


def _draws(sequences: int) -> tuple[Tensor, ...]:
    """Seeds, lengths, temperatures, top_k and top_p: a greedy sequence, and each cut."""
    each = torch.arange(sequences)
    temperature = torch.tensor([0.7, 0.0, 1.5]).repeat(sequences)[:sequences]
    top_k = torch.tensor([0, 3, 7, 1000]).repeat(sequences)[:sequences]
    top_p = torch.tensor([0.9, 1.0]).repeat(sequences)[:sequences]
    return each * 2**33 - 5, each.int() * 40, temperature, top_k.int(), top_p


def _tokens(sequences: int, rows: int, width: int, first_row: list[int] | None) -> tuple[Tensor | None, ...]:
    """Logits, drafts that are the argmax of every row but each third, how many (idle, none, some, too many), and
    first_row."""
    logits = 3 * torch.randn(sequences, rows, width)
    first = None if first_row is None else torch.tensor(first_row, dtype=torch.int32)
    at = torch.arange(sequences) * rows if first is None else first
    at = (at[:, None] + torch.arange(rows - 1)).clamp(0, max(sequences * rows - 1, 0))
    drafts = logits.flatten(0, 1).argmax(-1)[at]
    drafts = (drafts + (torch.arange(rows - 1) % 3 == 2)) % width
    return logits, drafts, torch.tensor([rows, 1, -1, 0]).repeat(sequences)[:sequences].int(), first


@seeded
def _greedy(sequences: int, rows: int, width: int, first_row: list[int] | None = None) -> Call:
    return call(*_tokens(sequences, rows, width, first_row))


@seeded
def _sampled(sequences: int, rows: int, width: int, drawn: bool = False, first_row: list[int] | None = None) -> Call:
    logits, drafts, num_drafts, first = _tokens(sequences, rows, width, first_row)
    probs = (logits[:, :-1] + torch.randn(sequences, rows - 1, width)).softmax(-1) if drawn else None
    return call(logits, drafts, num_drafts, *_draws(sequences), probs, first)


@seeded
def _sample(sequences: int, width: int) -> Call:
    return call(torch.randn(sequences, width), *_draws(sequences))


@seeded
def _filter(sequences: int, width: int, **kwargs: Any) -> Call:
    """Every third sequence has no draft of this depth. The classifier keeps some drafts and drops others."""
    num_drafts = torch.tensor([3, 4, 1]).repeat(sequences)[:sequences].int()
    return call(
        2 * torch.randn(sequences, width), num_drafts, torch.randn(9, 4), torch.randn(10),
        torch.rand(sequences) if kwargs["depth"] > 1 else None, **kwargs,
    )  # fmt: skip


CASES: dict[str, dict[str, Callable[[], Call]]] = {
    "verify_greedy": {
        "packed": lambda: _greedy(5, 4, 37, first_row=[3, 0, 2, 19, -1]),
        "plain": lambda: _greedy(3, 2, 2000),
        "one": lambda: _greedy(2, 1, 8),
        "empty": lambda: _greedy(0, 3, 8),
    },
    "verify_sampled": {
        "drawn": lambda: _sampled(5, 4, 37, drawn=True, first_row=[3, 0, 2, 19, 7]),
        "argmax": lambda: _sampled(7, 3, 2000),
        "one": lambda: _sampled(2, 1, 8),
        "empty": lambda: _sampled(0, 3, 8, drawn=True),
    },
    "sample_tokens": {
        "odd": lambda: _sample(7, 37),
        "wide": lambda: _sample(2, 5000),
        "empty": lambda: _sample(0, 8),
    },
    "filter_drafts": {
        "odd": lambda: _filter(7, 37, depth=2, beta=0.5, top=9),
        "wide": lambda: _filter(2, 5000, depth=1, beta=0.99),
        "empty": lambda: _filter(0, 8, depth=1, beta=0.5),
    },
}

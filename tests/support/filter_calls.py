"""Calls of filter_drafts that are checked."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from support import filter_oracle

KINDS = ("flat", "peaked", "ties", "bad")


def rows(b: int, v: int, kind: str, seed: int = 0) -> Tensor:
    """f32 [b, v]. ties: three levels and minus infinity, so that the edge of any cut lies within ties. bad: rows with
    a NaN, with infinity, of minus infinity alone, and with minus infinity among others."""
    g = torch.Generator().manual_seed(100 * seed + v)
    x = torch.randn(b, v, generator=g) * {"flat": 0.3, "peaked": 6.0, "ties": 1.0, "bad": 2.0}[kind]
    if kind == "ties":
        x = x.clamp(-1, 1).round()
        x[:, 1::5] = -math.inf
    if kind == "bad":
        at = torch.randint(v, (b,), generator=g)
        each = torch.arange(b)
        x[each[::4], at[::4]] = math.nan
        x[each[1::4], at[1::4]] = math.inf
        x[2::4] = -math.inf
        x[each[3::4], at[3::4]] = -math.inf
    return x


def classifier(units: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights of hidden units and of the output, of both signs, whose scores are neither all low nor all high."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(units, 4, generator=g) * torch.tensor([2.0, 0.3, 0.2, 0.5])
    return hidden, torch.cat([torch.randn(units, generator=g) * 2 / units**0.5, torch.tensor([0.25])])


def counts(b: int, depth: int) -> Tensor:
    """num_drafts: idle, fewer than depth, as many, more."""
    return torch.tensor([depth, depth + 2, depth - 1, depth, -1, depth + 1]).repeat(b)[:b].int()


def assert_judged(result: tuple[Tensor, ...], left: Tensor, logits: Tensor, num_drafts: Tensor, hidden: Tensor,
                  output: Tensor, joint_before: Tensor | None, depth: int, beta: float, top: int) -> None:  # fmt: skip
    """Values within their bounds, and drafts dropped exactly where the score that was returned says so."""
    beta32 = torch.tensor(beta, dtype=torch.float32).item()
    before = [1.0] * len(logits) if joint_before is None else joint_before.tolist()
    network = hidden.tolist(), output.tolist()
    for b, (row, drafts) in enumerate(zip(logits.tolist(), num_drafts.tolist(), strict=True)):
        found = [t[b].item() for t in result]
        if drafts < depth:
            assert (found, left[b].item()) == ([0.0] * 3, drafts), b
            continue
        want, bound = filter_oracle.judged(row, *network, before[b], depth, top)
        for name, ours, value, error in zip(want._fields, found, want, bound, strict=True):
            both_nan = math.isnan(ours) and math.isnan(value)
            assert both_nan or abs(ours - value) <= error, (b, name, ours, value, error)
        assert left[b].item() == (drafts if found[2] >= beta32 else depth - 1), b


def check(run: Callable[..., tuple[Tensor, ...]], b: int, v: int, kind: str, *, units: int = 9, depth: int = 1,
          beta: float = 0.5, top: int = 1000, seed: int = 0) -> Tensor:  # fmt: skip
    """Calls run(logits, num_drafts, hidden, output, joint_before, depth, beta, top); returns num_drafts after it."""
    logits, num_drafts = rows(b, v, kind, seed), counts(b, depth)
    hidden, output = classifier(units, seed)
    joint_before = None
    if depth > 1:
        joint_before = torch.rand(b, generator=torch.Generator().manual_seed(seed))
    left = num_drafts.clone()
    result = run(logits, left, hidden, output, joint_before, depth, beta, top)
    assert_judged(result, left, logits, num_drafts, hidden, output, joint_before, depth, beta, top)
    return left

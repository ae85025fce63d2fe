"""Tokens from logits in Python integers and floats: what test_verify_sampled.py and test_sample_tokens.py compare with.

Random numbers are exact. Sums are not those of the ops, so each choice comes with its margin, how far it is from
falling out otherwise; choices of a margin above MARGIN must be equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

TARGET, DRAFT, ACCEPT, RESIDUAL = 0, 1, 2, 3
MARGIN = 1e-9


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x32-10, written from the paper: each round multiplies two words and mixes the other two in."""
    words, low, high = list(counter), *key
    for _ in range(10):
        hi0, lo0 = divmod(0xD2511F53 * words[0], 2**32)
        hi1, lo1 = divmod(0xCD9E8D57 * words[2], 2**32)
        words = [hi1 ^ words[1] ^ low, lo1, hi0 ^ words[3] ^ high, lo0]
        low, high = (low + 0x9E3779B9) % 2**32, (high + 0xBB67AE85) % 2**32
    return words


def uniform(seed: int, number: int, purpose: int) -> float:
    high, low = divmod(seed % 2**64, 2**32)
    first, second, *_ = philox((number % 2**32, purpose, 0, 0), (low, high))
    return (first // 32 * 2**26 + second // 64) / 2**53


class Settings(NamedTuple):
    """How one sequence draws."""

    seed: int = 0
    length: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def tensors(settings: Sequence[Settings]) -> tuple[Tensor, ...]:
    """seeds, lengths, temperature, top_k and top_p of a call."""
    dtypes = torch.int64, torch.int32, torch.float32, torch.int32, torch.float32
    columns = zip(*settings, strict=True) if settings else ((),) * 5
    return tuple(torch.tensor(column, dtype=dtype) for column, dtype in zip(columns, dtypes, strict=True))


def rounded(value: float) -> float:
    """As a float32 tensor holds it."""
    return torch.tensor(value, dtype=torch.float32).item()


def distribution(row: Sequence[float], s: Settings) -> tuple[list[float], float]:
    """(probabilities of a finite row, margin of its cut)."""
    top, temperature, top_p = max(row), rounded(s.temperature), rounded(s.top_p)
    weights = [math.exp((v - top) / temperature) for v in row]
    order = sorted(range(len(row)), key=lambda i: (-weights[i], i))
    margin = 1.0
    if 0 < s.top_k < len(row):
        order = order[: s.top_k]
    if top_p < 1:
        total, before = math.fsum(weights[i] for i in order), 0.0
        for kept, i in enumerate(order):
            if kept:  # the first always is
                margin = min(margin, abs(before - top_p))
                if before >= top_p:
                    order = order[:kept]
                    break
            before += weights[i] / total
    total = math.fsum(weights[i] for i in order)
    p = [0.0] * len(row)
    for i in order:
        p[i] = weights[i] / total
    return p, margin


def drawn(weights: Sequence[float], number: float) -> tuple[int, float]:
    """(the first token at which the running sum exceeds number * total, margin)."""
    wanted, total, margin, token = number * math.fsum(weights), 0.0, 1.0, None
    for i, weight in enumerate(weights):
        total += weight
        if weight > 0:
            margin = min(margin, abs(total - wanted))
            if token is None and total > wanted:
                token = i
    return token, margin


def is_finite(row: Sequence[float]) -> bool:
    return not any(math.isnan(v) for v in row) and math.isfinite(max(row))


def is_greedy(s: Settings) -> bool:
    return not 0 < s.temperature < math.inf


def verified(rows: Sequence[Sequence[float] | None], drafts: Sequence[int], num_drafts: int, s: Settings,
             probs: Sequence[Sequence[float]] | None = None) -> tuple[list[int], float]:  # fmt: skip
    """(tokens of one sequence, smallest margin); rows: its logits, None for one that does not exist."""
    tokens, smallest = [], 1.0
    for j in range(min(num_drafts, len(rows) - 1) + 1):
        row, draft = rows[j], drafts[j] if j < min(num_drafts, len(rows) - 1) else None
        if row is None or not is_finite(row):
            return [*tokens, -1], smallest
        accepted, margins = False, []
        if is_greedy(s):
            token = row.index(max(row))
            accepted = token == draft
        else:
            p, margin = distribution(row, s)
            margins.append(margin)
            numbers = [uniform(s.seed, s.length + 1 + j, purpose) for purpose in range(4)]
            if draft is None or probs is None:
                token, margin = drawn(p, numbers[TARGET])
                accepted = token == draft
            else:
                q, token, margin = probs[j], draft, 1.0
                if 0 <= draft < len(p):
                    margins.append(abs(numbers[ACCEPT] * q[draft] - p[draft]))
                    accepted = numbers[ACCEPT] * q[draft] < p[draft]
                if not accepted:
                    rest = [max(a - b, 0.0) for a, b in zip(p, q, strict=True)]
                    token, margin = drawn(rest if any(rest) else p, numbers[RESIDUAL])
            margins.append(margin)
        tokens.append(token)
        smallest = min([smallest, *margins])
        if not accepted:
            break
    return tokens, smallest


def chi_square_p(tokens: Tensor, p: Sequence[float] | Tensor) -> float:
    """P(chi-square >= that of these tokens), if they were drawn from p. Rare tokens are pooled; drawing one of
    probability 0 gives 0."""
    counts = torch.bincount(tokens, minlength=len(p)).double()
    expected = torch.as_tensor(p, dtype=torch.float64) * len(tokens)
    if counts[expected == 0].any():
        return 0.0
    often = expected > 5
    observed = torch.cat([counts[often], counts[~often].sum()[None]])
    wanted = torch.cat([expected[often], expected[~often].sum()[None]])
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    half_freedom = torch.tensor((len(observed) - 1) / 2).double()
    return torch.special.gammaincc(half_freedom, ((observed - wanted) ** 2 / wanted).sum() / 2).item()

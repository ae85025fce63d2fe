"""Calls of verify_sampled for its tests: every setting, logits with ties and -inf, drafts that are often right."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from support.sampling_oracle import Settings

SETTINGS = [
    Settings(temperature=t, top_k=k, top_p=p)
    for t, k, p in [
        (1, 0, 1),
        (0.5, 0, 0.9),
        (2, 5, 1),
        (1, 7, 0.6),
        (0, 3, 0.5),
        (1e-3, 0, 1),
        (1, 99, 0.3),
        (1, 1, 1),
    ]
]


def settings_of(count: int) -> list[Settings]:
    """Every setting in turn, seeds of both signs, lengths from 0 on."""
    kinds = (SETTINGS[b % len(SETTINGS)] for b in range(count))
    return [s._replace(seed=(-1) ** b * b * 0x1234567_89ABCDE, length=b * b) for b, s in enumerate(kinds)]


def problem(b: int, q: int, v: int, drawn: bool, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Logits with ties and -inf, drafts of a head that resembles them, num_drafts, and what drafts were drawn from."""
    g = torch.Generator().manual_seed(seed)
    logits = (2 * torch.randn(b, q, v, generator=g)).mul(4).round().div(4)
    logits[torch.rand(b, q, v, generator=g) < 0.1] = -math.inf
    logits[..., v // 2] = 0.5
    head = (logits[:, :-1].nan_to_num(neginf=-9.0) + torch.randn(b, q - 1, v, generator=g)).softmax(-1)
    drafts = head.argmax(-1)
    if drawn and q > 1:
        drafts = torch.multinomial(head.flatten(0, 1), 1, generator=g).view(b, q - 1)
    return logits, drafts, torch.randint(-1, q + 1, (b,), generator=g).int(), head if drawn else None

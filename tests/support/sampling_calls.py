"""Calls of the kernels that choose tokens in the emulator, whose results are checked."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from support import filter_calls
from support import sampling_oracle as oracle
from support.emulated_kernels import apart, assert_gaps_untouched, copied, run
from support.sampling_oracle import MARGIN, Settings
from support.sampling_problems import settings_of

GREEDY = Settings(temperature=0.0)


def problem(b: int, q: int, v: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of few levels, whose maxima tie, also as zeros of two signs; rows of two equal maxima anywhere; rows with a
    NaN, an infinity, or nothing above minus infinity. Drafts are mostly right, also of rows that have no token. Any
    number of drafts; the last sequence has more than there are, all of them right."""
    g = torch.Generator().manual_seed(1000 * seed + 10 * v + q)

    def often(share: float) -> Tensor:
        return torch.rand(b, q, 1, generator=g) < share

    def put(value: float, share: float) -> None:
        at = torch.randint(0, v, (b, q, 1), generator=g)
        logits.scatter_(2, at, torch.where(often(share), value, logits.gather(2, at)))

    logits = torch.randint(-4, 4, (b, q, v), generator=g) / 2
    logits = torch.where(often(0.3), logits.clamp(max=0), logits)
    logits = torch.where(torch.rand(b, q, v, generator=g) < 0.3, -logits.abs(), logits)
    peaked = often(0.6)
    for _ in range(2):
        at = torch.randint(0, v, (b, q, 1), generator=g)
        logits.scatter_(2, at, torch.where(peaked, 7.0, logits.gather(2, at)))
    put(-math.inf, 0.2)
    bad = logits.clone()
    put(math.nan, 0.1)
    put(math.inf, 0.1)
    logits[often(0.05)[..., 0]] = -math.inf
    logits[b - 1 :] = bad[b - 1 :].nan_to_num(neginf=-9.0)
    top = logits.amax(-1)
    drafts = torch.where(top.isfinite(), logits.argmax(-1), -1)[:, :-1]
    wrong = torch.rand(drafts.shape, generator=g) < 0.15
    wrong[b - 1 :] = False
    drafts[wrong] = torch.randint(-1, v + 1, (int(wrong.sum()),), generator=g)
    drafts[1 : b - 1 : 7, :1] = 2**40
    num_drafts = torch.randint(-1, q + 2, (b,), generator=g).int()
    num_drafts[:2] = q - 1
    num_drafts[b - 1 :] = q + 1
    return logits, drafts, num_drafts


def rows_of(logits: Tensor, first_row: list[int] | None) -> list[list[list[float] | None]]:
    """The rows of each sequence; None where there is none."""
    b, q, v = logits.shape
    first = [q * i for i in range(b)] if first_row is None else first_row
    flat = logits.reshape(b * q, v).tolist()
    return [[flat[f + j] if 0 <= f + j < b * q else None for j in range(q)] for f in first]


def first_rows(b: int, q: int, seed: int) -> Tensor:
    """Anywhere, the first two before and behind all rows, and the last where it is without packing."""
    first = torch.randint(-1, b * q + 1, (b,), generator=torch.Generator().manual_seed(seed)).int()
    first[:2] = torch.tensor([-1, b * q])[:b]
    first[b - 1 :] = q * (b - 1)
    return first


def shifted(x: Tensor, offset: int) -> Tensor:
    """A contiguous copy that begins `offset` elements behind 64 bytes."""
    return copied(x.reshape(1, -1), 0, offset)[0].view(x.shape)


def assert_given(tokens: Tensor, num_tokens: Tensor, i: int, want: list[int]) -> None:
    q = tokens.shape[1]
    assert (tokens[i].tolist(), int(num_tokens[i])) == (want + [-1] * (q - len(want)), len(want)), i


def greedy(b: int, q: int, v: int, *, seed: int = 0, packed: bool = False, offset: int = 0, gap: int = 0) -> None:
    logits, drafts, num_drafts = problem(b, q, v, seed)
    first = first_rows(b, q, seed) if packed else None
    rows = rows_of(logits, None if first is None else first.tolist())
    tokens, num_tokens = apart(b, q, torch.int64, gap, offset), torch.zeros(b, dtype=torch.int32)
    run("verify_greedy", shifted(logits, offset), copied(drafts, gap, offset), num_drafts, first, tokens, num_tokens)
    for i in range(b):
        want, _ = oracle.verified(rows[i], drafts[i].tolist(), int(num_drafts[i]), GREEDY)
        assert_given(tokens, num_tokens, i, want)
    assert_gaps_untouched(tokens)


def sampled(b: int, q: int, v: int, *, seed: int = 0, drawn: bool = False, packed: bool = False,
            gap: int = 0) -> None:  # fmt: skip
    """verify_sampled over every setting. drawn: drafts have probabilities, in some rows so large that nothing
    is left."""
    logits, drafts, num_drafts = problem(b, q, v, seed)
    settings, probs = settings_of(b), None
    if drawn:
        g = torch.Generator().manual_seed(seed)
        spread = torch.randn(b, q - 1, v, generator=g)
        probs = (logits[:, :-1].nan_to_num(0.0, 2.0, -9.0) / 2 + spread).softmax(-1)
        probs[:, : (q > 1)][1::4] = 1.0
        probs = apart_stack(probs, gap)
    first = first_rows(b, q, seed) if packed else None
    rows = rows_of(logits, None if first is None else first.tolist())
    tokens, num_tokens = apart(b, q, torch.int64, gap), torch.zeros(b, dtype=torch.int32)
    run("verify_sampled", logits, copied(drafts, gap, 0), num_drafts, *oracle.tensors(settings), probs, first, tokens,
        num_tokens)  # fmt: skip
    compared = 0
    for i in range(b):
        head = None if probs is None else probs[i].tolist()
        want, margin = oracle.verified(rows[i], drafts[i].tolist(), int(num_drafts[i]), settings[i], head)
        if margin > MARGIN:
            assert_given(tokens, num_tokens, i, want)
            compared += 1
    assert compared >= 0.9 * b
    assert_gaps_untouched(tokens)


def apart_stack(x: Tensor, gap: int) -> Tensor:
    """A copy of [B, R, V] whose rows and matrices lie apart."""
    b, r, v = x.shape
    wide = torch.full((b, r + 1, v + gap), math.nan)
    wide[:, :r, gap:] = x
    return wide[:, :r, gap:]


def sample(b: int, v: int, *, seed: int = 0, gap: int = 0) -> None:
    """sample_tokens over every setting; tokens in a column, whose neighbours stay."""
    logits, settings = problem(b, 1, v, seed)[0][:, 0], settings_of(b)
    tokens, probs = apart(b, 1, torch.int64, gap), apart(b, v, torch.float32, gap, gap)
    run("sample_tokens", copied(logits, gap, gap), *oracle.tensors(settings), tokens[:, 0], probs)
    unsure = 0
    for row, s, token, p in zip(logits.tolist(), settings, tokens[:, 0].tolist(), probs.tolist(), strict=True):
        if not oracle.is_finite(row) or oracle.is_greedy(s):
            best = row.index(max(row)) if oracle.is_finite(row) else -1
            assert token == best and p == [float(i == best) for i in range(v)]
            continue
        want, margin = oracle.distribution(row, s)
        if margin > MARGIN:
            got, want = torch.tensor(p).double(), torch.tensor(want).double()
            assert torch.equal(got > 0, want.float() > 0)
            assert ((got - want).abs() <= (2.0**-24 + 2.0**-40) * want + 2.0**-150).all()
        else:
            unsure += 1
        drawn, margin = oracle.drawn(p, oracle.uniform(s.seed, s.length + 1, oracle.DRAFT))
        assert margin <= MARGIN or token == drawn
    assert unsure <= 0.1 * b + 1
    assert_gaps_untouched(tokens, probs)


def filtered(b: int, v: int, kind: str, *, gap: int = 0, **settings: float) -> None:
    """filter_drafts over rows `gap` apart and off their alignment; nothing but its outputs is written."""

    def judge(logits: Tensor, num_drafts: Tensor, hidden: Tensor, output: Tensor, joint_before: Tensor | None,
              depth: int, beta: float, top: int) -> tuple[Tensor, ...]:  # fmt: skip
        outputs = [apart(1, b, torch.float32, gap, gap) for _ in range(3)]
        run("filter_drafts", copied(logits, gap, gap), shifted(hidden, gap), output, joint_before, depth, beta, top,
            num_drafts, *(t[0] for t in outputs))  # fmt: skip
        assert_gaps_untouched(*outputs)
        return tuple(t[0] for t in outputs)

    filter_calls.check(judge, b, v, kind, **settings)

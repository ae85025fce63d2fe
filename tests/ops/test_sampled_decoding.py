"""What decoding with verify_sampled rests on: the target's distribution, and bits that no company changes."""

from __future__ import annotations

import math

import pytest
import torch

from longcat_ops import sample_tokens, verify_sampled
from longcat_ops.testing.op_results import bits
from support import sampling_oracle as oracle
from support.sampling_oracle import Settings
from support.sampling_problems import problem, settings_of

CHANCE = 1e-4  # of a right distribution to fail one check; there are 30


def i32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


CUTS = {
    "plain": Settings(),
    "hot": Settings(temperature=1.7),
    "top_k": Settings(top_k=9),
    "top_p": Settings(top_p=0.8),
    "all": Settings(temperature=0.8, top_k=12, top_p=0.9),
}


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("name", CUTS)
def test_tokens_follow_the_target(name: str, drawn: bool) -> None:
    """Of 12000 sequences with two drafts each, whether accepted, replaced or behind the last."""
    n, v = 12_000, 32
    g = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(1, 3, v, generator=g)
    head = logits[:, :2] + torch.randn(1, 2, v, generator=g)
    draws = oracle.tensors([CUTS[name]._replace(seed=7919 * b) for b in range(n)])
    seeds, lengths, *cuts = draws
    drafts, probs = head.argmax(-1).expand(n, -1), None
    if drawn:
        made = [sample_tokens(head[:, j].expand(n, -1), seeds, lengths + j, *cuts) for j in range(2)]
        drafts, probs = (torch.stack(parts, 1) for parts in zip(*made, strict=True))
    num_drafts = torch.full((n,), 2, dtype=torch.int32)
    tokens, num_tokens = verify_sampled(logits.expand(n, -1, -1).contiguous(), drafts, num_drafts, *draws, probs)
    for j in range(3):
        p, _ = oracle.distribution(logits[0, j].tolist(), CUTS[name])
        q, _ = oracle.distribution(head[0, j].tolist() if j < 2 else [0.0] * v, CUTS[name])
        given = tokens[num_tokens > j, j]
        assert len(given) > 300
        assert oracle.chi_square_p(given, p) > CHANCE
        assert oracle.chi_square_p(given, q) < CHANCE  # so many tokens tell the head from the target
        if j < 2:
            rate = sum(map(min, p, q)) if drawn else p[int(drafts[0, j])]
            error = math.sqrt(0.25 / len(given))
            assert (num_tokens > j + 1).sum().item() / len(given) == pytest.approx(rate, abs=4 * error)


@pytest.mark.parametrize("drawn", [False, True])
def test_a_sequence_has_its_bits_in_any_company(drawn: bool) -> None:
    """Alone, between rows that are not finite, packed, on several threads."""
    b, q, v = 9, 3, 20_011
    logits, drafts, num_drafts, probs = problem(b, q, v, drawn)
    num_drafts[:] = i32(*range(2, -1, -1)).repeat(3)
    draws = oracle.tensors(settings_of(b))
    want = verify_sampled(logits, drafts, num_drafts, *draws, probs)
    threads = torch.get_num_threads()
    for count in (1, 3):
        torch.set_num_threads(count)
        try:
            assert bits(verify_sampled(logits, drafts, num_drafts, *draws, probs)) == bits(want)
        finally:
            torch.set_num_threads(threads)
    for i in range(b):
        part = slice(i, i + 1)
        alone = verify_sampled(
            logits[part],
            drafts[part],
            num_drafts[part],
            *(t[part] for t in draws),
            None if probs is None else probs[part],
        )
        assert bits(alone) == bits([t[i] for t in want])
    counts = (num_drafts + 1).tolist()
    rows = torch.full((b, q, v), math.nan)
    flat = rows.flatten(0, 1)
    first, end = [], 0
    for i, count in enumerate(counts):
        first.append(end)
        flat[end : end + count] = logits[i, :count]
        end += count
    assert bits(verify_sampled(rows, drafts, num_drafts, *draws, probs, i32(*first))) == bits(want)


def test_without_draft_probs_the_text_is_that_of_plain_decoding() -> None:
    """Sequences step together, each with its own number of drafts; the next logits follow from the last token."""
    g, v, b, length = torch.Generator().manual_seed(11), 40, 8, 80
    table = 4 * torch.randn(v, v, generator=g)
    guess = (table + 0.5 * torch.randn(v, v, generator=g)).argmax(-1)
    settings = settings_of(b)

    def decode(q: int) -> tuple[list[list[int]], int]:
        texts, steps = [[i] for i in range(b)], 0
        while min(map(len, texts)) < length:
            newest = torch.tensor([text[-1] for text in texts])
            drafts = torch.zeros(b, q - 1, dtype=torch.int64)
            for j in range(q - 1):
                drafts[:, j] = guess[newest if j == 0 else drafts[:, j - 1]]
            logits = table[torch.cat([newest[:, None], drafts], 1)]
            num_drafts = i32(*((i + steps) % (q + 1) for i in range(b)))
            now = [s._replace(length=s.length + len(text) - 1) for s, text in zip(settings, texts, strict=True)]
            tokens, num_tokens = verify_sampled(logits, drafts, num_drafts, *oracle.tensors(now))
            for text, new, count in zip(texts, tokens.tolist(), num_tokens.tolist(), strict=True):
                text += new[:count]
            steps += 1
        return [text[:length] for text in texts], steps

    (plain, many), (speculative, few) = decode(1), decode(4)
    assert plain == speculative and few < 0.8 * many
    assert len({tuple(text[-20:]) for text in plain}) > b / 2  # not one chain of argmaxes

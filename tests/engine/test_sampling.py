"""Sampling: top-k and top-p agree with plain Python, and the rejection rule follows the target's distribution."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longcat_ops import generate, sample_tokens, verify_sampled
from longcat_ops.reference import sampling
from support import models
from support.sampling_oracle import chi_square_p

pytestmark = pytest.mark.long

DRAWS = 400_000
V = 48


def cut(logits, temperature, top_k, top_p):
    """probabilities() of one row, computed in Python floats."""
    top = max(logits)
    weights = [math.exp((v - top) / temperature) for v in logits]
    order = sorted(range(len(logits)), key=lambda i: (-weights[i], i))
    if top_k:
        order = order[:top_k]
    total = math.fsum(weights[i] for i in order)
    kept, mass = [], 0.0
    for i in order:
        if kept and mass >= top_p:
            break
        kept.append(i)
        mass += weights[i] / total
    total = math.fsum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(logits))]


@settings(max_examples=150, deadline=None)
@given(
    logits=st.lists(st.one_of(st.floats(-8, 8), st.sampled_from([0.0, 1.0, -math.inf])), min_size=1, max_size=20),
    temperature=st.floats(0.05, 20),
    top_k=st.integers(0, 25),
    top_p=st.one_of(st.just(1.0), st.floats(1e-6, 1)),
)
def test_cuts_against_python(logits, temperature, top_k, top_p):
    if max(logits) == -math.inf:
        logits[0] = 0.0
    got = sampling.probabilities(torch.tensor([logits], dtype=torch.float64), temperature, top_k, top_p)[0]
    # Where top_p equals a running sum exactly, one rounding decides whether a token is kept.
    runs = [cut(logits, temperature, top_k, p) for p in (top_p, top_p * (1 - 1e-12), top_p * (1 + 1e-12))]
    assert any(got.tolist() == pytest.approx(want, abs=1e-12) for want in runs)


def test_edges_of_the_cuts():
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0, -torch.inf]])
    p = sampling.probabilities
    full = logits.double().softmax(-1)
    assert p(logits, 1.0, top_k=1).tolist() == [[0, 1, 0, 0, 0]]  # a tie keeps the lower id
    assert p(logits, 1.0, top_p=1e-9).tolist() == [[0, 1, 0, 0, 0]]
    for top_k in (0, 5, 6, 99):
        assert torch.equal(p(logits, 1.0, top_k=top_k), full)
    assert torch.allclose(p(logits, 1.0, top_k=4), full)  # the fifth has probability 0 already
    half = [[0, 0.5, 0.5, 0, 0]]
    assert p(logits, 1.0, top_k=2).tolist() == half
    assert p(logits, 1.0, top_p=0.6).tolist() == half
    assert p(logits, 1e-300).tolist() == half
    assert p(logits, 5e-324).tolist() == half
    assert torch.allclose(p(logits, 1e300)[0, :4], torch.full((4,), 0.25).double())


def test_top_p_is_of_what_top_k_left():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    # Among the top_k = 2 tokens the first has 4/7 = 0.571, enough for 0.55; of the whole it has only 0.4.
    assert sampling.probabilities(logits, 1.0, 2, 0.55).tolist() == [[1, 0, 0, 0]]
    assert sampling.probabilities(logits, 1.0, 0, 0.55)[0].count_nonzero() == 2


def test_draw_is_the_inverse_of_the_running_sum():
    weights = torch.tensor([[0.0, 2.0, 0.0, 6.0, 0.0]]).double()
    uniform = torch.tensor([0.0, 0.2499, 0.2501, 0.999999, 1 - 2**-53]).double()
    assert sampling.draw(weights.expand(5, -1), uniform).tolist() == [1, 1, 3, 3, 3]


CUTS = {
    "plain": dict(temperature=1.0),
    "hot": dict(temperature=1.7),
    "top_k": dict(temperature=1.0, top_k=12),
    "top_p": dict(temperature=1.0, top_p=0.8),
    "all": dict(temperature=0.8, top_k=20, top_p=0.9),
}


def head_and_target():
    """Logits [V] of a target, and of a draft head that resembles it."""
    g = torch.Generator().manual_seed(0)
    target = torch.randn(V, generator=g) * 1.2
    return target, target + 0.4 * torch.randn(V, generator=g)


def verified(cuts, rule, *, fault=None):
    """(accepted, first token) of DRAWS sequences with one draft each. fault: 1 % too much temperature of the target, or
    probabilities of the head that are 3 % too small.
    """
    parts, (target, head) = [], head_and_target()
    for seeds in torch.arange(DRAWS).mul(7919).split(20_000):
        n = len(seeds)
        settings = [
            torch.full((n,), kind(cuts.get(name, default)))
            for name, kind, default in (("temperature", float, 1.0), ("top_k", int, 0), ("top_p", float, 1.0))
        ]
        draws = seeds, torch.zeros(n, dtype=torch.int32), settings[0], settings[1].int(), settings[2]
        drafts, probs = head.argmax().expand(n, 1), None
        if rule == "sampled":
            tokens, probs = sample_tokens(head.expand(n, -1), *draws)
            drafts, probs = tokens[:, None], probs[:, None]
            if fault == "head":
                probs = 0.97 * probs
        logits = (target / 1.01 if fault == "target" else target).expand(n, 2, -1).contiguous()
        num_drafts = torch.ones(n, dtype=torch.int32)
        tokens, num_tokens = verify_sampled(logits, drafts.contiguous(), num_drafts, *draws, probs)
        parts.append((num_tokens == 2, tokens[:, 0]))
    return tuple(map(torch.cat, zip(*parts, strict=True)))


def p_of(cuts, token):
    """Chance that the target gives counts like those of these tokens."""
    p = sampling.probabilities(head_and_target()[0][None], **cuts)[0]
    return chi_square_p(token, p)


@pytest.mark.parametrize("rule", ["argmax", "sampled"])
@pytest.mark.parametrize("name", CUTS)
def test_verified_tokens_follow_the_target(name, rule):
    taken, token = verified(CUTS[name], rule)
    assert 0.05 < taken.double().mean() < 0.95  # both branches are taken
    assert p_of(CUTS[name], token) > 1e-3
    p, q = (sampling.probabilities(logits[None], **CUTS[name])[0] for logits in head_and_target())
    rate = p[q.argmax()].item() if rule == "argmax" else torch.minimum(p, q).sum().item()
    assert taken.double().mean().item() == pytest.approx(rate, abs=5 * math.sqrt(0.25 / DRAWS))


@pytest.mark.parametrize(("rule", "fault"), [("argmax", "target"), ("sampled", "target"), ("sampled", "head")])
def test_small_faults_are_seen(rule, fault):
    assert p_of(CUTS["plain"], verified(CUTS["plain"], rule, fault=fault)[1]) < 1e-3


@pytest.mark.parametrize("draft", ["argmax", "sampled"])
def test_pairs_from_generate_follow_the_model(draft):
    """The first three tokens of many speculative continuations of one prompt follow the model's own probabilities."""
    v, copies = 6, 120
    model = models.build(num_layers=1, vocab_size=v, std=0.25)
    start = torch.tensor([0, 3, 1])
    drawn, taken = [], 0
    for seed in range(4):
        out = generate(model, start.expand(copies, -1), 3, temperature=0.9, draft=draft, seed=seed, eos_token_id=-1)
        taken += sum(out.accepted)
        drawn += [s[3:] for s in out.sequences]
    prefixes = [[*start.tolist(), a, b] for a in range(v) for b in range(v)]
    logits = model(torch.tensor(prefixes)) / 0.9
    p = logits.double().softmax(-1).view(v, v, 5, v)
    joint = torch.zeros(v, v, v).double()
    for a in range(v):
        for b in range(v):
            joint[a, b] = p[0, 0, 2, a] * p[a, 0, 3, b] * p[a, b, 4]
    n, (first, second, third) = len(drawn), torch.stack(drawn, 1)
    assert chi_square_p(v * first + second, joint.sum(2).flatten()) > 1e-3
    assert chi_square_p(v * (v * first + second) + third, joint.flatten()) > 1e-3
    assert 0.05 * n < taken < 0.95 * n  # both branches were taken

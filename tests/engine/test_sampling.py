"""Sampling: top-k and top-p agree with plain Python, and the rejection rule follows the target's distribution."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longcat_ops import generate
from longcat_ops.engine import sampling
from support import models

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


def chi_square_p(counts, probabilities, n):
    """P(chi-square >= the observed one). Rare tokens are pooled; drawing a token of probability 0 gives 0."""
    expected = probabilities * n
    if counts[expected == 0].any():
        return 0.0
    kept = expected > 5
    observed = torch.cat([counts[kept], counts[~kept].sum()[None]])
    wanted = torch.cat([expected[kept], expected[~kept].sum()[None]])
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    half_freedom = torch.tensor((len(observed) - 1) / 2).double()
    return torch.special.gammaincc(half_freedom, ((observed - wanted) ** 2 / wanted).sum() / 2).item()


CUTS = {
    "plain": dict(temperature=1.0),
    "hot": dict(temperature=1.7),
    "top_k": dict(temperature=1.0, top_k=12),
    "top_p": dict(temperature=1.0, top_p=0.8),
    "all": dict(temperature=0.8, top_k=20, top_p=0.9),
}


def distributions(cuts, seed=0):
    """(p, q): a target and a draft head that resembles it."""
    g = torch.Generator().manual_seed(seed)
    target = torch.randn(1, V, generator=g) * 1.2
    head = target + 0.4 * torch.randn(1, V, generator=g)
    return sampling.probabilities(target, **cuts), sampling.probabilities(head, **cuts)


def verified(p, q, rule, *, seed=1, bias=0.0, keep_q=False, n=DRAWS):
    """Drafts and verifies n tokens. bias: accepts that much too often; keep_q: the residual does not subtract q."""
    g = torch.Generator().manual_seed(seed)
    parts = []
    for uniform in torch.rand(n, 3, generator=g, dtype=torch.float64).split(20_000):
        p_rows, q_rows = p.expand(len(uniform), -1), q.expand(len(uniform), -1)
        draft = q_rows.argmax(-1) if rule == "argmax" else sampling.draw(q_rows, uniform[:, 0])
        uniform[:, 1] -= bias
        taken, token = sampling.verify(p_rows, draft, None if rule == "argmax" else q_rows, uniform[:, 1:])
        if keep_q:
            token = torch.where(taken, token, sampling.draw(p_rows, uniform[:, 2]))
        parts.append((taken, token))
    return tuple(map(torch.cat, zip(*parts, strict=True)))


@pytest.mark.parametrize("rule", ["argmax", "sampled"])
@pytest.mark.parametrize("name", CUTS)
def test_verified_tokens_follow_the_target(name, rule):
    p, q = distributions(CUTS[name])
    taken, token = verified(p, q, rule)
    assert 0.05 < taken.double().mean() < 0.95  # both branches are taken
    counts = torch.bincount(token, minlength=V).double()
    assert chi_square_p(counts, p[0], DRAWS) > 1e-3
    rate = p[0, q.argmax()].item() if rule == "argmax" else torch.minimum(p, q).sum().item()
    assert taken.double().mean().item() == pytest.approx(rate, abs=5 * math.sqrt(0.25 / DRAWS))


@pytest.mark.parametrize("rule", ["argmax", "sampled"])
@pytest.mark.parametrize("fault", [dict(bias=0.01), dict(bias=-0.01), dict(keep_q=True)])
def test_a_one_percent_fault_is_seen(rule, fault):
    p, q = distributions(CUTS["top_k"])
    clean = torch.bincount(verified(p, q, rule)[1], minlength=V).double()
    wrong = torch.bincount(verified(p, q, rule, **fault)[1], minlength=V).double()
    assert chi_square_p(clean, p[0], DRAWS) > 1e-3
    assert chi_square_p(wrong, p[0], DRAWS) < 1e-3


@pytest.mark.parametrize("rule", ["argmax", "sampled"])
def test_windows_of_two_tokens_follow_the_joint_target(rule):
    """A verified first token and a second one, drawn from the row that the first selects, follow the joint target."""
    g = torch.Generator().manual_seed(3)
    v = 8
    p1 = (torch.randn(1, v, generator=g)).double().softmax(-1)
    q1 = (p1.log() + 0.7 * torch.randn(1, v, generator=g)).softmax(-1)
    p2 = torch.randn(v, v, generator=g).double().softmax(-1)
    taken, first = verified(p1, q1, rule)
    second = sampling.draw(p2[first], torch.rand(DRAWS, generator=g, dtype=torch.float64))
    joint = (p1[0][:, None] * p2).flatten()
    assert chi_square_p(torch.bincount(first * v + second, minlength=v * v).double(), joint, DRAWS) > 1e-3
    assert 0.1 < taken.double().mean() < 0.9


def test_verify_at_the_edges():
    p = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]]).double()
    uniform = torch.tensor([[0.999999, 0.3], [0.0, 0.999999], [0.4999999, 0.5]]).double()
    taken, token = sampling.verify(p, torch.tensor([1, 0, 0]), None, uniform)
    assert taken.tolist() == [True, False, True]  # certain; impossible even at uniform 0; just below p
    assert token.tolist() == [1, 1, 0]
    taken, token = sampling.verify(p, torch.tensor([1, 1, 1]), p, uniform)  # q = p: nothing is left to draw from
    assert taken.all()
    assert token.tolist() == [1, 1, 1]


@pytest.mark.parametrize("draft", ["argmax", "sampled"])
def test_pairs_from_generate_follow_the_model(draft):
    """The first three tokens of many speculative continuations of one prompt follow the model's own probabilities."""
    v, copies = 6, 120
    model = models.build(num_layers=1, vocab_size=v, std=0.25)
    start = torch.tensor([0, 3, 1])
    counts = torch.zeros(v, v, v)
    taken = 0
    for seed in range(4):
        out = generate(model, start.expand(copies, -1), 3, temperature=0.9, draft=draft, seed=seed, eos_token_id=-1)
        taken += sum(out.accepted)
        for s in out.sequences:
            counts[tuple(s[3:].tolist())] += 1
    prefixes = [[*start.tolist(), a, b] for a in range(v) for b in range(v)]
    logits = model(torch.tensor(prefixes)) / 0.9
    p = logits.double().softmax(-1).view(v, v, 5, v)
    joint = torch.zeros(v, v, v).double()
    for a in range(v):
        for b in range(v):
            joint[a, b] = p[0, 0, 2, a] * p[a, 0, 3, b] * p[a, b, 4]
    n = 4 * copies
    assert chi_square_p(counts.sum(2).flatten().double(), joint.sum(2).flatten(), n) > 1e-3
    assert chi_square_p(counts.flatten().double(), joint.flatten(), n) > 1e-3
    assert 0.05 * n < taken < 0.95 * n  # both branches were taken

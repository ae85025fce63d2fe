"""sample_tokens: probabilities against Python floats, and draws from exactly those; Philox against known answers."""

from __future__ import annotations

import math

import pytest
import torch

from longcat_ops import reference, sample_tokens
from longcat_ops.reference import sampling
from longcat_ops.testing.op_results import bits
from support import sampling_oracle as oracle
from support.bf16_grouped import BACKEND
from support.sampling_oracle import MARGIN, Settings

INF, NAN = math.inf, math.nan
ONES = 2**32 - 1
# Random123, kat_vectors of philox4x32-10: counter, key, words.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers_of_philox(counter: tuple, key: tuple, words: tuple) -> None:
    assert tuple(oracle.philox(counter, key)) == words
    assert tuple(sampling.philox(torch.tensor(counter), torch.tensor(key)).tolist()) == words


def test_numbers_of_the_reference_are_those_of_the_oracle() -> None:
    seeds, numbers = [0, -1, 2**63 - 1, -(2**63), 12345678901234567], [0, 1, 131072, 2**31, -1]
    for purpose in range(4):
        got = sampling.uniform(torch.tensor(seeds), torch.tensor(numbers), purpose).tolist()
        assert got == [oracle.uniform(s, n, purpose) for s, n in zip(seeds, numbers, strict=True)]
    assert (sampling.TARGET, sampling.DRAFT, sampling.ACCEPT, sampling.RESIDUAL) == (0, 1, 2, 3)


@pytest.mark.parametrize("purpose", range(4))
def test_numbers_are_uniform(purpose: int) -> None:
    """And those of neighbouring tokens, seeds and purposes have nothing to do with each other."""
    n = 50_000
    seeds, numbers = torch.arange(n) % 250, torch.arange(n) // 250
    u = sampling.uniform(seeds, numbers, purpose)
    assert oracle.chi_square_p((u * 100).long(), [0.01] * 100) > 1e-3
    others = [sampling.uniform(seeds, numbers, (purpose + 1) % 4), u.view(-1, 250).roll(1, 0).flatten(), u.roll(1)]
    for other in others:
        assert oracle.chi_square_p((u * 8).long() * 8 + (other * 8).long(), [1 / 64] * 64) > 1e-3


WIDTHS = {1: (0,), 5: (0, 1, 2, 4, 5, 6, -3), 24: (0, 1, 7, 23, 24), 3000: (0, 3, 600, 2999, 3000)}
if BACKEND == "emu":  # which needs a second for each cut
    WIDTHS[3000] = (0, 600)
TOP_P = (1.0, 0.9, 0.5, 0.05, 0.0, -1.0, 2.0, 0.9999)


@pytest.mark.parametrize("kind", ["flat", "peaked", "ties"])
@pytest.mark.parametrize("v", WIDTHS)
def test_probabilities_against_python(v: int, kind: str) -> None:
    g = torch.Generator().manual_seed(v)
    settings = [
        Settings(b, 3 * b, t, k, p)
        for b, (k, p, t) in enumerate((k, p, t) for k in WIDTHS[v] for p in TOP_P for t in (0.7, 1e-4)[: 2 - (v > 99)])
    ]
    logits = torch.randn(len(settings), v, generator=g) * {"flat": 0.5, "peaked": 6, "ties": 2}[kind]
    if kind == "ties":
        logits = logits.round()
        logits[:, 1::5] = -INF
    tokens, probs = sample_tokens(logits, *oracle.tensors(settings))
    assert probs.dtype == torch.float32 and tokens.dtype == torch.int64 and probs.is_contiguous()
    compared = 0
    for row, s, token, p in zip(logits.tolist(), settings, tokens.tolist(), probs.tolist(), strict=True):
        want, margin = oracle.distribution(row, s)
        if margin > MARGIN:
            compared += 1
            want = torch.tensor(want, dtype=torch.float64)
            got = torch.tensor(p, dtype=torch.float64)
            assert torch.equal(got > 0, want.float() > 0)
            # Rounded once to float32, subnormal ones included; sums in float64 add a relative 2^-40 at most.
            assert ((got - want).abs() <= (2.0**-24 + 2.0**-40) * want + 2.0**-150).all()
        drawn, margin = oracle.drawn(p, oracle.uniform(s.seed, s.length + 1, oracle.DRAFT))
        if margin > MARGIN:
            assert token == drawn
    assert compared >= 0.95 * len(settings)


def test_draws_are_of_the_rounded_probabilities() -> None:
    """Over equal logits running sums are exact, so the token is the floor of number * tokens; else the oracle's."""
    settings = [Settings(seed * 0x9E3779B97F4A7C15 % 2**63, seed * 999) for seed in range(300)]
    numbers = [oracle.uniform(s.seed, s.length + 1, oracle.DRAFT) for s in settings]
    tokens, probs = sample_tokens(torch.zeros(300, 1024), *oracle.tensors(settings))
    assert (probs == 1 / 1024).all() and tokens.tolist() == [int(u * 1024) for u in numbers]
    logits = torch.randn(300, 200, generator=torch.Generator().manual_seed(1))
    tokens, probs = sample_tokens(logits, *oracle.tensors(settings))
    compared = 0
    for token, p, u in zip(tokens.tolist(), probs.tolist(), numbers, strict=True):
        want, margin = oracle.drawn(p, u)
        if margin > MARGIN:
            assert token == want
            compared += 1
    assert compared > 290


def test_where_rounding_moves_a_border_past_the_number() -> None:
    """Two tokens whose border in float64 is next to the number: the float32 weights decide."""
    moved = 0
    for seed in range(120):
        u = oracle.uniform(seed, 1, oracle.DRAFT)
        logits = torch.tensor([[0.0, math.log((1 - u) / u)]])
        tokens, probs = sample_tokens(logits, *oracle.tensors([Settings(seed)]))
        exact, _ = oracle.distribution(logits[0].tolist(), Settings(seed))
        (token, margin), (other, distance) = (oracle.drawn(p, u) for p in (probs[0].tolist(), exact))
        if min(margin, distance) > 1e-11:
            assert int(tokens) == token
            moved += token != other
    assert moved > 20


def test_edges_of_the_cuts() -> None:
    """A tie at the edge keeps the lower id; top_p is of what top_k left; one token always stays."""
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0, -INF], torch.tensor([0.4, 0.3, 0.2, 0.1, 1e-30]).log().tolist()])
    cases = [
        (0, 1, 1.0, [0, 1, 0, 0, 0]),
        (0, 2, 1.0, [0, 0.5, 0.5, 0, 0]),
        (0, 0, 0.6, [0, 0.5, 0.5, 0, 0]),
        (0, 0, 1e-9, [0, 1, 0, 0, 0]),
        (0, 0, -5.0, [0, 1, 0, 0, 0]),
        (1, 2, 0.55, [1, 0, 0, 0, 0]),  # of two tokens the first has 4 / 7, of all only 0.4
        (1, 0, 0.55, [4 / 7, 3 / 7, 0, 0, 0]),
        (1, 3, NAN, [4 / 9, 3 / 9, 2 / 9, 0, 0]),
    ]
    for row, top_k, top_p, want in cases:
        _, probs = sample_tokens(logits[row : row + 1], *oracle.tensors([Settings(top_k=top_k, top_p=top_p)]))
        assert probs[0].tolist() == pytest.approx(want, rel=1e-6), (top_k, top_p)
    for top_p, kept in ((0.25, 1), (0.5, 2), (0.75, 3)):  # a running sum that equals top_p is enough
        _, probs = sample_tokens(torch.zeros(1, 4), *oracle.tensors([Settings(top_p=top_p)]))
        assert probs[0].count_nonzero() == kept
    for temperature in (1e-38, 1e-45):
        _, probs = sample_tokens(logits[:1], *oracle.tensors([Settings(temperature=temperature)]))
        assert probs.tolist() == [[0, 0.5, 0.5, 0, 0]]
    _, probs = sample_tokens(logits[:1], *oracle.tensors([Settings(temperature=3e38)]))
    assert probs[0].tolist() == pytest.approx([0.25] * 4 + [0])


def test_greedy_rows_and_rows_that_are_not_finite() -> None:
    logits = torch.zeros(9, 20)
    logits[:, 4] = logits[:, 9] = 1
    logits[3, 19], logits[4, 0], logits[5], logits[6, 4], logits[7, 4] = NAN, INF, -INF, NAN, INF
    temperature = [0.0, -2.0, NAN, 1.0, 1.0, 1.0, 0.0, 0.0, INF]
    tokens, probs = sample_tokens(logits, *oracle.tensors([Settings(temperature=t) for t in temperature]))
    assert tokens.tolist() == [4, 4, 4, -1, -1, -1, -1, -1, 4]
    point = [[float(i == 4) for i in range(20)]]
    assert probs.tolist() == point * 3 + [[0.0] * 20] * 5 + point


def test_views() -> None:
    """Tokens in a column of a state, rows of logits and probabilities apart; nothing else is written."""
    settings = [Settings(seed, temperature=seed % 3) for seed in range(12)]
    draws = oracle.tensors(settings)
    logits = torch.randn(12, 50, generator=torch.Generator().manual_seed(2))
    want = sample_tokens(logits, *draws)
    wide, state, out = torch.full((12, 3, 60), NAN), torch.full((12, 4), 77), torch.full((12, 2, 70), 7.0)
    wide[:, 1, 5:55] = logits
    tokens, probs = sample_tokens(wide[:, 1, 5:55], *draws, tokens=state[:, 2], probs=out[:, 1, 10:60])
    assert tokens.data_ptr() == state[:, 2].data_ptr() and bits((tokens, probs)) == bits(want)
    assert bits((state[:, 2], out[:, 1, 10:60])) == bits(want)
    assert (state[:, [0, 1, 3]] == 77).all() and (out[:, 0] == 7).all()
    assert (out[:, 1, :10] == 7).all() and (out[:, 1, 60:] == 7).all()


def test_a_row_has_its_bits_in_any_company() -> None:
    settings = [Settings(b, b, (0.8, 1.3)[b % 2], (0, 700)[b % 4 // 2], (0.9, 1.0)[b % 3 // 2]) for b in range(12)]
    draws = oracle.tensors(settings)
    logits = 2 * torch.randn(12, 20_011, generator=torch.Generator().manual_seed(2))
    want, threads = sample_tokens(logits, *draws), torch.get_num_threads()
    for count in (1, 3) if BACKEND == "cpu" else ():
        torch.set_num_threads(count)
        try:
            assert bits(sample_tokens(logits, *draws)) == bits(want)
        finally:
            torch.set_num_threads(threads)
    for b in range(0, 12, 1 if BACKEND == "cpu" else 5):
        alone = sample_tokens(logits[b : b + 1], *(t[b : b + 1] for t in draws))
        assert bits(alone) == bits([t[b] for t in want])
    assert all(t.shape[0] == 0 for t in sample_tokens(logits[:0], *(t[:0] for t in draws)))


def test_the_reference_takes_float64() -> None:
    logits = torch.randn(30, 40, generator=torch.Generator().manual_seed(4))
    draws = oracle.tensors([Settings(b, top_k=b % 5, top_p=0.9) for b in range(30)])
    assert bits(reference.sample_tokens(logits.double(), *draws)) == bits(reference.sample_tokens(logits, *draws))

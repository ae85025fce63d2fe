"""verify_sampled: every choice against Python floats; greedy sequences, odd rows and drafts, packing, views."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from longcat_ops import reference, verify_greedy, verify_sampled
from longcat_ops.testing.op_results import bits
from support import sampling_oracle as oracle
from support.sampling_oracle import MARGIN, Settings
from support.sampling_problems import problem, settings_of


def padded(tokens: list[int], q: int) -> list[int]:
    return tokens + [-1] * (q - len(tokens))


def i32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize(("b", "q", "v"), [(0, 3, 8), (1, 1, 1), (400, 4, 24), (60, 2, 100)])
def test_against_python(b: int, q: int, v: int, drawn: bool, packed: bool) -> None:
    logits, drafts, num_drafts, probs = problem(b, q, v, drawn)
    settings, first = settings_of(b), None
    where = [[i * q + j for j in range(q)] for i in range(b)]
    if packed:  # in another order, some of it outside
        first = torch.randint(-1, b * q + 1, (b,), generator=torch.Generator().manual_seed(1)).int()
        where = [[f + j for j in range(q)] for f in first.tolist()]
    flat = logits.flatten(0, 1).tolist()
    rows = [[flat[i] if 0 <= i < b * q else None for i in row] for row in where]
    tokens, num_tokens = verify_sampled(logits, drafts, num_drafts, *oracle.tensors(settings), probs, first)
    head = [None] * b if probs is None else probs.tolist()
    compared = 0
    for i, row in enumerate(tokens.tolist()):
        want, margin = oracle.verified(rows[i], drafts[i].tolist(), int(num_drafts[i]), settings[i], head[i])
        if margin > MARGIN:
            assert (row, int(num_tokens[i])) == (padded(want, q), len(want)), (i, settings[i])
            compared += 1
    assert compared >= 0.98 * b
    if b > 100 and not packed:
        assert set(num_tokens.tolist()) == set(range(q + 1))  # every outcome occurs


SEEDS = [0, 1, -1, 2**63 - 1, -(2**63), 2**32, -(2**32), 0x0123456789ABCDEF]
LENGTHS = [0, 1, 7, 131071, 2**31 - 2]


def test_numbers_are_those_of_seed_token_and_purpose() -> None:
    """Over equal logits running sums are exact, so the token is the floor of number * tokens."""
    v = 4096
    settings = [Settings(seed, length) for seed in SEEDS for length in LENGTHS]
    b = len(settings)
    numbers = [[oracle.uniform(s.seed, s.length + 1 + j, p) for p in range(4)] for s in settings for j in range(2)]
    first, second = numbers[::2], numbers[1::2]
    drafts = torch.tensor([[int(row[oracle.TARGET] * v)] for row in first])
    arguments = torch.zeros(b, 2, v), drafts, torch.ones(b, dtype=torch.int32), *oracle.tensors(settings)
    tokens, _ = verify_sampled(*arguments)
    assert tokens[:, 0].tolist() == drafts[:, 0].tolist()
    assert tokens[:, 1].tolist() == [int(row[oracle.TARGET] * v) for row in second]
    # A draft of probability 1 is mostly refused: then any other token is as likely.
    point = torch.zeros(b, 1, v).scatter_(2, drafts[..., None], 1.0)
    tokens, num_tokens = verify_sampled(*arguments, point)
    assert num_tokens.tolist() == [1] * b
    places = [int(row[oracle.RESIDUAL] * (v - 1)) for row in first]
    assert tokens[:, 0].tolist() == [i + (i >= d) for i, d in zip(places, drafts[:, 0].tolist(), strict=True)]


def test_every_bit_of_a_number_counts() -> None:
    """Two tokens whose border lies just below, or just above, a small number: 24 bits of it, of any place."""
    found = [(s, u) for s in range(3000) if (u := oracle.uniform(s, 1, oracle.ACCEPT)) < 2**-9]
    assert len(found) >= 3 and min(u for _, u in found) < 2**-11
    for seed, u in found:
        # p(draft) is 1 / 2. Accepted if u * q < 1 / 2, q being float32.
        border = torch.tensor(0.5 / u)
        below, above = (torch.nextafter(border, torch.tensor(end)).item() for end in (0.0, math.inf))
        for q, accepted in ((below, True), (above, False)):
            assert (u * q < 0.5) == accepted
            probs = torch.tensor([[[q, 0.5]]])
            _, num_tokens = verify_sampled(
                torch.zeros(1, 2, 2), torch.zeros(1, 1, dtype=torch.int64), i32(1),
                *oracle.tensors([Settings(seed)]), probs,
            )  # fmt: skip
            assert int(num_tokens) == 1 + accepted
    for seed in range(40):  # 53 bits: an exact border of two weights that float64 tells from the number
        u = oracle.uniform(seed, 1, oracle.TARGET)
        x = torch.tensor(math.log((1 - u) / u))
        nearby = [x, *(torch.nextafter(x, torch.tensor(end)) for end in (-math.inf, math.inf))]
        logits = torch.stack([torch.stack([torch.zeros(()), y]) for y in nearby])[:, None]
        tokens, _ = verify_sampled(
            logits, torch.zeros(3, 0, dtype=torch.int64), i32(0, 0, 0), *oracle.tensors([Settings(seed)] * 3)
        )
        for token, y in zip(tokens[:, 0].tolist(), nearby, strict=True):
            border = 1 / (1 + math.exp(y.item()))
            if abs(border - u) > 1e-14:
                assert token == (border <= u)


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf, -0.0])
def test_greedy_sequences_among_others(temperature: float, drawn: bool) -> None:
    logits, drafts, num_drafts, probs = problem(40, 3, 24, drawn)
    draws = [*oracle.tensors(settings_of(40))]
    others = verify_sampled(logits, drafts, num_drafts, *draws, probs)
    greedy = torch.arange(40) % 2 == 0
    draws[2][greedy] = temperature
    tokens, num_tokens = verify_sampled(logits, drafts, num_drafts, *draws, probs)
    want = verify_greedy(logits, drafts, num_drafts)
    assert bits((tokens[greedy], num_tokens[greedy])) == bits([t[greedy] for t in want])
    assert bits((tokens[~greedy], num_tokens[~greedy])) == bits([t[~greedy] for t in others])
    assert bits(want) != bits(others)


def test_rows_that_are_not_finite_and_idle_sequences() -> None:
    """-1 at the row, and the end; rows that are not reached may hold anything."""
    logits = torch.zeros(6, 3, 17)
    point = torch.zeros(6, 2, 17)
    drafts = torch.zeros(6, 2, dtype=torch.int64)
    point[..., 3], logits[..., 3], drafts[:] = 1, 90, 3  # drafts are certain
    logits[0, 0, 5], logits[1, 1, 16], logits[2, 2, 0] = math.nan, math.inf, math.nan
    logits[3, 1], logits[4], logits[5, 2] = -math.inf, math.nan, math.nan
    num_drafts = i32(2, 2, 9, 2, -3, 1)
    draws = oracle.tensors([Settings(seed) for seed in range(6)])
    want = [[-1, -1, -1], [3, -1, -1], [3, 3, -1], [3, -1, -1], [-1, -1, -1], [3, 3, -1]]
    for probs in (None, point):
        tokens, num_tokens = verify_sampled(logits, drafts, num_drafts, *draws, probs)
        assert (tokens.tolist(), num_tokens.tolist()) == (want, [1, 2, 3, 2, 0, 2])
    # A draft of -1 behind a row that yields -1 is not accepted.
    tokens, num_tokens = verify_sampled(logits, drafts - 4, num_drafts, *draws, point)
    assert num_tokens.tolist() == [1, 1, 1, 1, 0, 1]


def test_drafts_that_are_no_tokens_are_replaced() -> None:
    """By a draw from (p - q)+, which is p where q is 0; NaN in q counts as nothing left."""
    b, v = 200, 8
    settings = [Settings(seed) for seed in range(b)]
    drafts = torch.tensor([-1, v, 2**40, -(2**63)]).repeat(b // 4)[:, None]
    call = torch.zeros(b, 2, v), drafts, torch.ones(b, dtype=torch.int32), *oracle.tensors(settings)
    residual = [int(oracle.uniform(s.seed, 1, oracle.RESIDUAL) * v) for s in settings]
    tokens, num_tokens = verify_sampled(*call, torch.zeros(b, 1, v))
    assert tokens[:, 0].tolist() == residual and num_tokens.tolist() == [1] * b
    odd = torch.zeros(b, 1, v)
    odd[..., 2:] = math.nan
    tokens, _ = verify_sampled(*call, odd)
    assert tokens[:, 0].tolist() == [int(oracle.uniform(s.seed, 1, oracle.RESIDUAL) * 2) for s in settings]
    tokens, num_tokens = verify_sampled(*call)
    assert tokens[:, 0].tolist() == [int(oracle.uniform(s.seed, 1, oracle.TARGET) * v) for s in settings]
    assert num_tokens.tolist() == [1] * b


def test_where_nothing_is_left_the_draw_is_from_p() -> None:
    b, v = 64, 4
    settings = [Settings(seed) for seed in range(b)]
    call = torch.zeros(b, 2, v), torch.zeros(b, 1, dtype=torch.int64), torch.ones(b, dtype=torch.int32)
    tokens, num_tokens = verify_sampled(*call, *oracle.tensors(settings), torch.ones(b, 1, v))
    accepted = [oracle.uniform(s.seed, 1, oracle.ACCEPT) < 1 / v for s in settings]
    residual = [int(oracle.uniform(s.seed, 1, oracle.RESIDUAL) * v) for s in settings]
    assert num_tokens.tolist() == [1 + a for a in accepted] and 0 < sum(accepted) < b
    assert tokens[:, 0].tolist() == [0 if a else r for a, r in zip(accepted, residual, strict=True)]


def test_views() -> None:
    """Drafts, draft_probs and tokens in wider tensors; nothing beside the tokens is written."""
    logits, drafts, num_drafts, probs = problem(24, 3, 24, True)
    draws = oracle.tensors(settings_of(24))
    want = verify_sampled(logits, drafts, num_drafts, *draws, probs)
    state, out, wide = torch.full((24, 5), 99), torch.full((24, 8), 77), torch.full((24, 4, 30), math.nan)
    state[:, 1:3], wide[:, 1:3, 4:28] = drafts, probs
    count = torch.zeros(24, dtype=torch.int32)
    tokens, num_tokens = verify_sampled(
        logits, state[:, 1:3], num_drafts, *draws, wide[:, 1:3, 4:28], tokens=out[:, 2:5], num_tokens=count
    )
    assert tokens.data_ptr() == out[:, 2:].data_ptr() and num_tokens is count
    assert bits((tokens, num_tokens)) == bits(want)
    assert (out[:, :2] == 77).all() and (out[:, 5:] == 77).all()


def test_the_reference_takes_float64() -> None:
    logits, drafts, num_drafts, probs = problem(40, 3, 24, True)
    draws = oracle.tensors(settings_of(40))
    arguments = drafts, num_drafts, *draws, probs
    assert bits(reference.verify_sampled(logits.double(), *arguments)) == bits(verify_sampled(logits, *arguments))

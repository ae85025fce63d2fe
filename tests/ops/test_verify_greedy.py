"""verify_greedy: argmax of each row while it yields the draft, against loops; ties, odd rows, packing, views."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from longcat_ops import reference, verify_greedy
from longcat_ops.testing.op_results import bits

INF, NAN = math.inf, math.nan


def i32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def expected(rows: list, drafts: list[int], num_drafts: int) -> list[int]:
    """Tokens of one sequence, by hand; rows: its logits, None for one that does not exist."""
    tokens = []
    for j, row in enumerate(rows):
        if j > num_drafts:
            break
        bad = row is None or any(math.isnan(v) for v in row) or math.isinf(max(row))
        tokens.append(-1 if bad else row.index(max(row)))
        if bad or j >= len(drafts) or tokens[-1] != drafts[j]:
            break
    return tokens


def padded(tokens: list[int], q: int) -> list[int]:
    return tokens + [-1] * (q - len(tokens))


def problem(b: int, q: int, v: int) -> tuple[Tensor, Tensor, Tensor]:
    """Few levels, so that maxima tie; drafts that are mostly right; rows with NaN and infinities."""
    g = torch.Generator().manual_seed(100 * q + v)
    logits = torch.randint(-3, 3, (b, q, v), generator=g).float()
    drafts = logits[:, :-1].argmax(-1)
    wrong = torch.rand(drafts.shape, generator=g) < 0.15
    drafts[wrong] = torch.randint(-1, v + 1, (int(wrong.sum()),), generator=g)
    for value in (NAN, INF, -INF):
        at = torch.rand(b, q, v, generator=g) < 0.1 / (v * (1 if value < 0 else 3))
        logits[at] = value
    return logits, drafts, torch.randint(-1, q + 2, (b,), generator=g).int()


@pytest.mark.parametrize(("b", "q", "v"), [(0, 3, 5), (1, 1, 1), (1, 4, 1), (300, 1, 17), (400, 5, 16), (50, 3, 1000)])
def test_against_loops(b: int, q: int, v: int) -> None:
    logits, drafts, num_drafts = problem(b, q, v)
    tokens, num_tokens = verify_greedy(logits, drafts, num_drafts)
    want = [expected(*row) for row in zip(logits.tolist(), drafts.tolist(), num_drafts.tolist(), strict=True)]
    assert tokens.dtype == torch.int64 and num_tokens.dtype == torch.int32
    assert tokens.tolist() == [padded(row, q) for row in want]
    assert num_tokens.tolist() == [len(row) for row in want]
    if b > 100 and q > 1:
        assert set(num_tokens.tolist()) == set(range(q + 1))  # every outcome occurs


@pytest.mark.parametrize("v", [1, 15, 16, 17, 33, 4099])
def test_maxima_at_every_place(v: int) -> None:
    """Of a tie the lowest id, also of 0 and -0."""
    places = sorted({0, 1, 14, 15, 16, 17, 31, 32, v // 2, v - 2, v - 1} & set(range(v)))
    logits = -torch.rand(len(places), 1, v, generator=torch.Generator().manual_seed(v)) - 1
    for b, place in enumerate(places):
        logits[b, 0, place:][::7] = -0.0
        logits[b, 0, place + 1 :] += 0.0
    none, count = torch.zeros(len(places), 0, dtype=torch.int64), torch.zeros(len(places), dtype=torch.int32)
    assert verify_greedy(logits, none, count)[0][:, 0].tolist() == places


@pytest.mark.parametrize("v", [3, 16, 40])
@pytest.mark.parametrize(("value", "ends"), [(NAN, True), (INF, True), (-INF, False)])
def test_one_value_at_every_place(v: int, value: float, ends: bool) -> None:
    logits = torch.zeros(v, 2, v)
    logits[torch.arange(v), 0, torch.arange(v)] = value
    best = 0 if not ends else -1
    tokens, num_tokens = verify_greedy(logits, torch.full((v, 1), best), torch.ones(v, dtype=torch.int32))
    first = [1, *[0] * (v - 1)] if not ends else [-1] * v  # a draft of -1 is not accepted where the token is -1
    assert tokens[:, 0].tolist() == first
    assert num_tokens.tolist() == [2 if token == best and not ends else 1 for token in first]


def test_nothing_but_minus_infinity_is_not_finite() -> None:
    tokens, num_tokens = verify_greedy(torch.full((1, 2, 20), -INF), torch.zeros(1, 1, dtype=torch.int64), i32(1))
    assert (tokens.tolist(), num_tokens.tolist()) == ([[-1, -1]], [1])


def test_packed_rows() -> None:
    """Rows anywhere, shared or outside; an idle sequence may name any."""
    logits, _, _ = problem(6, 4, 16)
    logits.nan_to_num_(2.0, 2.0, -2.0)
    packed = logits.flatten(0, 1)
    first = [5, 0, -1, 22, 23, 24]
    best = [row.index(max(row)) for row in packed.tolist()]
    drafts = torch.tensor([[best[min(max(f + j, 0), 23)] for j in range(3)] for f in first])
    num_drafts = i32(3, 2, 3, 3, 0, -1)
    tokens, num_tokens = verify_greedy(logits, drafts, num_drafts, i32(*first))
    rows = [[packed[f + j].tolist() if 0 <= f + j < 24 else None for j in range(4)] for f in first]
    want = [expected(*row) for row in zip(rows, drafts.tolist(), num_drafts.tolist(), strict=True)]
    assert tokens.tolist() == [padded(row, 4) for row in want]
    assert num_tokens.tolist() == [len(row) for row in want] == [4, 3, 1, 3, 1, 0]
    for far in (24, 2**31 - 1, -(2**31)):
        alone, count = verify_greedy(logits[:1], drafts[:1], num_drafts[:1], i32(far))
        assert (alone.tolist(), count.tolist()) == ([[-1] * 4], [1])


def test_views() -> None:
    """Drafts and tokens in columns of wider tensors; nothing beside them is written."""
    logits, drafts, num_drafts = problem(40, 4, 16)
    want = verify_greedy(logits, drafts, num_drafts)
    state, out, count = torch.full((40, 7), 99), torch.full((40, 9), 77), torch.full((40,), 9, dtype=torch.int32)
    state[:, 2:5] = drafts
    tokens, num_tokens = verify_greedy(logits, state[:, 2:5], num_drafts, tokens=out[:, 3:7], num_tokens=count)
    assert tokens.data_ptr() == out[:, 3:].data_ptr() and num_tokens is count
    assert bits((tokens, num_tokens)) == bits(want)
    assert (out[:, :3] == 77).all() and (out[:, 7:] == 77).all()
    one = verify_greedy(logits[:, :1].contiguous(), drafts[:, :0], num_drafts, tokens=out[:, 1:2])[0]
    assert bits(one) == bits(want[0][:, :1].where(num_drafts[:, None] >= 0, -1)) and (out[:, 2] == 77).all()


def test_a_sequence_does_not_depend_on_its_company() -> None:
    logits, drafts, num_drafts = problem(30, 4, 1000)
    tokens, num_tokens = verify_greedy(logits, drafts, num_drafts)
    for b in range(30):
        alone = verify_greedy(logits[b : b + 1], drafts[b : b + 1], num_drafts[b : b + 1])
        assert bits(alone) == bits((tokens[b], num_tokens[b]))


def test_the_text_is_that_of_plain_decoding() -> None:
    """The next token follows from the last by a table; a head guesses with errors, 0 to 3 tokens ahead."""
    g = torch.Generator().manual_seed(5)
    table = torch.randint(-9, 9, (60, 60), generator=g).float()
    best = [row.index(max(row)) for row in table.tolist()]
    text, count = [7], 0
    while len(text) < 200:
        drafts = torch.zeros(1, 3, dtype=torch.int64)
        last = text[-1]
        for j in range(3):
            last = best[last] if torch.rand(1, generator=g) < 0.8 else int(torch.randint(60, (1,), generator=g))
            drafts[0, j] = last
        rows = table[[text[-1], *drafts[0].tolist()]]
        tokens, num_tokens = verify_greedy(rows[None], drafts, i32(count % 4))
        text += tokens[0, : int(num_tokens)].tolist()
        count += 1
    plain = [7]
    while len(plain) < len(text):
        plain.append(best[plain[-1]])
    assert text == plain and count < 140


def test_the_reference_takes_float64() -> None:
    """It tells logits apart that float32 does not."""
    logits = torch.tensor([[[1.0, 1.0 + 2**-40, 0.0]]], dtype=torch.float64)
    tokens, _ = reference.verify_greedy(logits, torch.zeros(1, 0, dtype=torch.int64), i32(0))
    assert tokens.tolist() == [[1]]

"""advance_lengths: state and results against loops in plain Python, and whole texts beside a model of decoding."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from longcat_ops import advance_lengths, pack_rows
from support.step_oracle import MOST, State, advanced, drawn, i32, i64


def run(s: State, width: int) -> tuple[State, list[int], list[int]]:
    """The op on tensors of s, newest a column of a wider one; asserts that nothing else changes."""
    sequences = len(s.lengths)
    wide = torch.full((sequences, width + 3), 99)
    wide[:, 1 : 1 + width] = i64(s.tokens, sequences, width)
    slots = torch.full((sequences, 3), 55)
    slots[:, 1] = i64(s.newest)
    read = [wide, i32(s.num_tokens), i32(s.first_row), i32(s.limits), i64(s.stop_ids)]
    before = [t.clone() for t in read]
    lengths, num_drafts = i32(s.lengths), i32(s.num_drafts)
    kept, last_row = advance_lengths(wide[:, 1 : 1 + width], *read[1:], lengths, num_drafts, slots[:, 1])
    assert all(torch.equal(t, old) for t, old in zip(read, before, strict=True))
    assert (slots[:, ::2] == 55).all()
    assert (kept.dtype, last_row.dtype, kept.shape, last_row.shape) == (
        torch.int32, torch.int64, (sequences,), (sequences,)
    )  # fmt: skip
    state = s._replace(lengths=lengths.tolist(), num_drafts=num_drafts.tolist(), newest=slots[:, 1].tolist())
    return state, kept.tolist(), last_row.tolist()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("sequences", [0, 1, 2, 7])
def test_random_states(sequences: int, width: int) -> None:
    rng = random.Random(100 * sequences + width)
    for _ in range(60):
        s = drawn(rng, sequences, width)
        assert run(s, width) == advanced(s, width), s


def one(tokens: list[int], *, length: int = 10, limit: int = 100, stop: tuple[int, ...] = (), count: int | None = None,
        first_row: int = 20, drafts: int = 0) -> dict[str, int]:  # fmt: skip
    count = len(tokens) if count is None else count
    s = State([tokens], [count], [first_row], [limit], list(stop), [length], [drafts], [-7])
    state, kept, last_row = run(s, len(tokens))
    return {"kept": kept[0], "last_row": last_row[0], "length": state.lengths[0], "drafts": state.num_drafts[0],
            "newest": state.newest[0]}  # fmt: skip


def test_cases_by_hand() -> None:
    plain = {"kept": 3, "last_row": 22, "length": 13, "drafts": 2, "newest": 6}
    assert one([4, 5, 6]) == plain
    assert one([4, 5, 6], count=2) == plain | {"kept": 2, "last_row": 21, "length": 12, "newest": 5}
    assert one([4, 5, 6], count=9) == plain
    nothing = {"kept": 0, "last_row": -1, "length": 10, "drafts": -1, "newest": -7}
    assert one([4, 5, 6], count=0) == one([4, 5, 6], count=-3) == nothing
    assert one([4, 5, 6], drafts=-1) == nothing
    assert one([4, 5, 6], first_row=-1) == plain | {"last_row": -1}
    stopped = {"kept": 2, "last_row": 21, "length": 12, "drafts": -1, "newest": 5}
    assert one([4, 5, 6], stop=(9, 5)) == stopped
    assert one([4, 5, 6], stop=(6,), count=2) == stopped | {"drafts": 2}
    assert one([4, -1, 6]) == stopped | {"newest": -1}
    assert one([4, -(2**63), 6]) == stopped | {"newest": -(2**63)}


def test_a_negative_stop_id_changes_nothing() -> None:
    assert one([4, -1, 6], stop=(-1,)) == one([4, -1, 6])


def test_limits() -> None:
    """A text of 11 tokens; each limit leaves `limit - 11`, and drafts only before a token that fits."""
    found = [one([4, 5, 6], limit=limit) for limit in (-5, 10, 11, 12, 13, 14, 15, 16, 17, 18)]
    assert [f["kept"] for f in found] == [0, 0, 0, 1, 2, 3, 3, 3, 3, 3]
    assert [f["drafts"] for f in found] == [-1, -1, -1, -1, -1, -1, 0, 1, 2, 2]


def test_sums_do_not_wrap() -> None:
    end = one([4, 5, 6], length=MOST, limit=MOST)
    assert (end["kept"], end["length"], end["drafts"]) == (0, MOST, -1)
    last = one([4, 5, 6], length=MOST - 2, limit=MOST, first_row=MOST)
    assert (last["kept"], last["length"], last["drafts"], last["last_row"]) == (1, MOST - 1, -1, MOST)
    assert one([4, 5, 6], length=MOST - 3, limit=MOST, first_row=MOST)["last_row"] == MOST + 1
    low = one([4, 5, 6], length=-(2**31), limit=MOST)
    assert (low["kept"], low["length"], low["drafts"]) == (3, 3 - 2**31, 2)


def test_outputs_are_written_whole() -> None:
    """kept and last_row do not depend on what they held, idle sequences included."""
    results = []
    for fill in (-9, 123):
        kept, last_row = torch.full((3,), fill, dtype=torch.int32), torch.full((3,), fill)
        state = i32([4, 5, 6]), i32([0, -1, 1]), i64([1, 2, 3])
        inputs = torch.arange(6).view(3, 2), i32([2, 2, 0]), i32([0, -1, 1]), i32([50] * 3), i64([])
        torch.ops.longcat_ops.advance_lengths(*inputs, *state, kept, last_row)
        results.append((kept.tolist(), last_row.tolist()))
    assert results == [([2, 0, 0], [1, -1, -1])] * 2


def test_nothing_is_written_where_an_argument_does_not_fit() -> None:
    lengths, num_drafts, newest = i32([4, 5]), i32([0, 0]), i64([1, 2, 3])
    with pytest.raises(ValueError, match="`newest` is of shape \\[3\\], expected \\[2\\]"):
        advance_lengths(i64([8, 9], 2, 1), i32([1, 1]), i32([0, 1]), i32([9, 9]), i64([]), lengths, num_drafts,
                        newest)  # fmt: skip
    assert (lengths.tolist(), num_drafts.tolist(), newest.tolist()) == ([4, 5], [0, 0], [1, 2, 3])


def texts_by_hand(prompts: list[list[int]], limits: list[int], stop_ids: list[int], next_token) -> list[list[int]]:
    """Decoding token by token, each sequence alone, without drafts."""
    texts = []
    for prompt, limit in zip(prompts, limits, strict=True):
        text = list(prompt)
        while len(text) < limit:
            text.append(next_token(text))
            if text[-1] < 0 or text[-1] in stop_ids:
                break
        texts.append(text)
    return texts


def verified(state: Tensor, drafts: Tensor, texts: list[list[int]], next_token) -> tuple[Tensor, Tensor]:
    """(tokens, num_tokens): after each accepted draft the next token of the text."""
    sequences, width = state.shape
    tokens, num_tokens = torch.full((sequences, width), 4), torch.zeros(sequences, dtype=torch.int32)
    for b in range(sequences):
        text = list(texts[b])
        for j in range(int(drafts[b]) + 1):
            tokens[b, j] = next_token(text)
            num_tokens[b] = j + 1
            if j == drafts[b] or state[b, j + 1] != tokens[b, j]:
                break
            text.append(int(tokens[b, j]))
    return tokens, num_tokens


@pytest.mark.parametrize("width", [1, 2, 4])
def test_steps_in_a_chain_decode_the_texts(width: int) -> None:
    """pack, verify drafts of which some are wrong, advance: the texts of decoding token by token; lengths, rows and
    positions follow the texts at every step, and no draft lies past the last place but one."""

    def next_token(text: list[int]) -> int:
        value = (31 * sum(text) + 7 * len(text)) % 59
        return -1 if value == 58 else value

    rng, stop_ids = random.Random(width), [13, 40]
    prompts = [[rng.randrange(50) for _ in range(rng.randint(1, 6))] for _ in range(24)]
    limits = [len(p) + rng.randint(0, 30) for p in prompts]
    texts, wanted = [list(p) for p in prompts], texts_by_hand(prompts, limits, stop_ids, next_token)
    lengths, num_drafts = i32([len(p) - 1 for p in prompts]), torch.zeros(len(prompts), dtype=torch.int32)
    num_drafts[[len(p) >= limit for p, limit in zip(prompts, limits, strict=True)]] = -1
    state = torch.zeros(len(prompts), width, dtype=torch.int64)
    state[:, 0] = i64([p[-1] for p in prompts])
    steps = 0
    while (num_drafts >= 0).any():
        steps += 1
        for b, drafts in enumerate(num_drafts.tolist()):
            assert drafts < 0 or len(texts[b]) + drafts < limits[b]
            guess = list(texts[b])
            for j in range(1, drafts + 1):
                guess.append(next_token(guess) if rng.random() < 0.7 else 2)
                state[b, j] = guess[-1]
        rows = pack_rows(state, num_drafts, lengths)
        for row in range(int(rows.num_rows)):
            b, at = int(rows.sequence[row]), int(rows.position[row])
            assert rows.ids[row] == (texts[b][at] if at < len(texts[b]) else state[b, at - len(texts[b]) + 1])
        tokens, num_tokens = verified(state, num_drafts, texts, next_token)
        kept, last_row = advance_lengths(tokens, num_tokens, rows.first_row, i32(limits), i64(stop_ids), lengths,
                                         num_drafts, state[:, 0])  # fmt: skip
        for b, n in enumerate(kept.tolist()):
            if n:  # the row that gave the last kept token holds the token before it
                assert rows.sequence[last_row[b]] == b and rows.position[last_row[b]] == len(texts[b]) + n - 2
            texts[b] += tokens[b, :n].tolist()
            assert (lengths[b], state[b, 0]) == (len(texts[b]) - 1, texts[b][-1])
    assert texts == wanted
    most = max(len(w) - len(p) for w, p in zip(wanted, prompts, strict=True))
    assert steps == most if width == 1 else most / width <= steps < most

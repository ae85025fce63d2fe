"""pack_rows: every element of its outputs, against loops in plain Python."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from longcat_ops import PackedRows, pack_rows
from support.step_oracle import MOST, drawn, i32, i64, packed

DTYPES = {"ids": torch.int64, "sequence": torch.int32, "position": torch.int32, "first_row": torch.int32,
          "num_rows": torch.int32}  # fmt: skip


def assert_packed(out: PackedRows, expected: dict[str, list[int]], copies: int = 1) -> None:
    for name, dtype in DTYPES.items():
        value = getattr(out, name)
        assert value.dtype == dtype and value.dim() == 1 and value.is_contiguous()
        assert value.tolist() == expected[name] * (copies if name == "num_rows" else 1), name


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("sequences", [0, 1, 2, 7])
def test_random_states(sequences: int, width: int) -> None:
    rng = random.Random(10 * sequences + width)
    for _ in range(40):
        s, copies = drawn(rng, sequences, width), rng.randint(1, 5)
        tokens = i64(s.tokens, sequences, width)
        out = pack_rows(tokens, i32(s.num_drafts), i32(s.lengths), copies=copies)
        assert_packed(out, packed(s.tokens, s.num_drafts, s.lengths, width), copies)


def test_one_step_by_hand() -> None:
    """Two drafts, idle, none, more than there are."""
    tokens = torch.tensor([[10, 11, 12], [20, 21, 22], [30, 31, 32], [40, 41, 42]])
    out = pack_rows(tokens, i32([2, -1, 0, 9]), i32([5, 6, 0, 99]), copies=2)
    assert out.ids.tolist() == [10, 11, 12, 30, 40, 41, 42, -1, -1, -1, -1, -1]
    assert out.sequence.tolist() == [0, 0, 0, 2, 3, 3, 3, -1, -1, -1, -1, -1]
    assert out.position.tolist() == [5, 6, 7, 0, 99, 100, 101, -1, -1, -1, -1, -1]
    assert out.first_row.tolist() == [0, -1, 3, 4]
    assert out.num_rows.tolist() == [7, 7]


def test_all_idle_and_all_full() -> None:
    tokens = torch.arange(6).view(3, 2)
    idle = pack_rows(tokens, i32([-1, -1, -(2**31)]), i32([4, 5, 6]))
    assert [set(t.tolist()) for t in idle] == [{-1}, {-1}, {-1}, {-1}, {0}]
    full = pack_rows(tokens, i32([1, 1, MOST]), i32([4, 5, 6]))
    assert full.ids.tolist() == list(range(6)) and full.num_rows.tolist() == [6]


def test_a_position_does_not_wrap() -> None:
    out = pack_rows(torch.ones(1, 4, dtype=torch.int64), i32([3]), i32([MOST - 1]))
    assert out.position.tolist() == [MOST - 1, MOST, MOST, MOST]


@pytest.mark.parametrize("kind", ["apart", "shared", "column"])
def test_rows_at_any_distance(kind: str) -> None:
    tokens = {
        "apart": torch.arange(40).view(4, 10)[:, 3:6],
        "shared": torch.arange(3).expand(4, 3),
        "column": torch.arange(12).view(4, 3)[:, 1:2],
    }[kind]
    num_drafts, lengths = [2, -1, 0, 1], [3, 1, 4, 1]
    out = pack_rows(tokens, i32(num_drafts), i32(lengths))
    assert_packed(out, packed(tokens.tolist(), num_drafts, lengths, tokens.shape[1]))


def run_into(fill: int) -> list[Tensor]:
    """The outputs of one call, all of them full of `fill` before it."""
    sizes = zip((12, 12, 12, 4, 3), DTYPES.values(), strict=True)
    outputs = [torch.full((n,), fill, dtype=dtype) for n, dtype in sizes]
    inputs = torch.arange(12).view(4, 3), i32([1, -1, 0, 2]), i32([8, 9, 10, 11])
    before = [t.clone() for t in inputs]
    torch.ops.longcat_ops.pack_rows(*inputs, *outputs)
    assert all(torch.equal(t, old) for t, old in zip(inputs, before, strict=True))
    return outputs


def test_every_element_is_written_and_no_input() -> None:
    for one, other in zip(run_into(77), run_into(-5), strict=True):
        assert torch.equal(one, other)


def test_a_batch_is_not_wider_for_idle_sequences() -> None:
    """The rows of the others are the same with idle sequences between them."""
    tokens, drafts, lengths = torch.arange(1, 7).view(3, 2), [1, 0, 1], [7, 8, 9]
    alone = pack_rows(tokens, i32(drafts), i32(lengths))
    spread = torch.zeros(6, 2, dtype=torch.int64)
    spread[1::2] = tokens
    out = pack_rows(spread, i32([x for d in drafts for x in (-1, d)]), i32([x for n in lengths for x in (0, n)]))
    assert torch.equal(out.num_rows, alone.num_rows) and out.first_row[1::2].tolist() == alone.first_row.tolist()
    n = int(alone.num_rows)
    assert torch.equal(out.ids[:n], alone.ids[:n]) and torch.equal(out.position[:n], alone.position[:n])
    assert out.sequence[:n].tolist() == [2 * b + 1 for b in alone.sequence[:n].tolist()]

"""LatentCache agrees with plain lists of rows: pages out of order, growth, roll-back, reuse."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from longcat_ops import LongcatShapeError
from longcat_ops.model import LatentCache
from support import models

CONFIG = models.config(kv_lora_rank=3, qk_rope_head_dim=2)
SLOTS, LIMIT = 2, 200


def new(batch=3, limit=LIMIT):
    return LatentCache(CONFIG, batch, limit, num_slots=SLOTS, dtype=torch.float64)


def row_index(cache, sequence, positions):
    """Where rows of a sequence lie in the flattened pages of a slot, as kernels find them."""
    table = cache.page_table[sequence].tolist()
    assert table[: len(cache.pages[sequence])] == cache.pages[sequence]
    assert set(table[len(cache.pages[sequence]) :]) <= {-1}
    return [64 * table[p // 64] + p % 64 for p in positions]


def append(cache, sequence, count, value):
    """Appends `count` rows to every slot; row i of slot s holds value + i + 1000 * s."""
    start = int(cache.lengths[sequence])
    cache.reserve(sequence, start + count)
    index = row_index(cache, sequence, range(start, start + count))
    rows = (value + torch.arange(start, start + count, dtype=torch.float64))[:, None].expand(-1, 5)
    for slot in range(SLOTS):
        cache.rows[slot].flatten(0, 1)[index] = rows + 1000 * slot
    cache.truncate(sequence, start + count)


class Pages(RuleBasedStateMachine):
    """Grows, rolls back and releases three sequences in any order."""

    def __init__(self):
        super().__init__()
        self.cache, self.rows, self.value = new(), [[], [], []], 0.0

    @rule(b=st.integers(0, 2), count=st.integers(1, 70))
    def grow(self, b, count):
        count = min(count, LIMIT - len(self.rows[b]))
        self.value += 0.001
        self.rows[b] += [self.value + i for i in range(len(self.rows[b]), len(self.rows[b]) + count)]
        append(self.cache, b, count, self.value) if count else None

    @precondition(lambda self: any(self.rows))
    @rule(b=st.integers(0, 2), part=st.floats(0, 1))
    def roll_back(self, b, part):
        keep = int(part * len(self.rows[b]))
        del self.rows[b][keep:]
        self.cache.truncate(b, keep)

    @rule(b=st.integers(0, 2))
    def release(self, b):
        self.rows[b] = []
        self.cache.release(b)

    @invariant()
    def reads_what_was_written(self):
        cache = self.cache
        assert cache.lengths.tolist() == [len(r) for r in self.rows]
        for slot in range(SLOTS):
            for b, want in enumerate(self.rows):
                if want:
                    got = cache.read(slot, b, len(want))
                    assert got.shape == (-(-len(want) // 64) * 64, 5)
                    assert got[: len(want)].tolist() == [[v + 1000 * slot] * 5 for v in want]
        used = [page for pages in cache.pages for page in pages]
        assert len(used) == len(set(used))
        assert sorted(used + cache._free) == list(range(12))


Pages.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
test_any_order_of_operations = Pages.TestCase


def test_interleaved_growth_gives_pages_that_are_not_adjacent():
    cache = new()
    for _ in range(3):
        for b in (0, 1, 2):
            append(cache, b, 64, b * 0.1)
    assert all(p[i + 1] != p[i] + 1 for p in cache.pages for i in range(2))
    assert cache.read(1, 2, 130)[:130, 0].tolist() == [1000.2 + i for i in range(130)]


def test_a_sequence_that_grows_alone_is_read_without_a_copy():
    cache = new()
    append(cache, 0, 150, 0.0)
    assert cache.read(0, 0, 150).data_ptr() == cache.rows[0, cache.pages[0][0]].data_ptr()


@pytest.mark.parametrize("pages", list(itertools.permutations(range(4))), ids=str)
def test_pages_in_any_order_are_read_in_theirs(pages):
    """Pages are read in the sequence's order, also if they are contiguous only as a set, as 0 2 1 3: a view would show
    other rows."""
    cache = new(batch=1, limit=256)
    cache.pages[0], cache._free, cache.page_table[0] = list(pages), [], torch.tensor(pages)
    append(cache, 0, 250, 0.0)
    for length in (1, 64, 65, 128, 129, 192, 193, 250):
        got = cache.read(1, 0, length)
        assert got.shape == (-(-length // 64) * 64, 5)
        assert got[:length, 0].tolist() == [1000.0 + i for i in range(length)]
    assert row_index(cache, 0, [0, 64, 130, 249]) == [
        64 * pages[0], 64 * pages[1], 64 * pages[2] + 2, 64 * pages[3] + 57
    ]  # fmt: skip


def test_pages_of_a_released_sequence_come_back_in_another_order():
    """Every sequence keeps its own rows when released pages are reused, also after a truncation."""
    cache = new(batch=4, limit=256)
    for sequence in (0, 1, 2, 3):
        append(cache, sequence, 65 + sequence, 0.1 * sequence)
    cache.release(1)
    cache.release(0)
    cache.truncate(2, 3)
    append(cache, 2, 200, 0.25)
    append(cache, 1, 250, 0.15)
    append(cache, 3, 100, 0.35)
    assert cache.read(0, 2, 203)[:203, 0].tolist() == [0.2 + i for i in range(3)] + [0.25 + i for i in range(3, 203)]
    assert cache.read(0, 1, 250)[:250, 0].tolist() == [0.15 + i for i in range(250)]
    expected = [0.1 * 3 + i for i in range(68)] + [0.35 + i for i in range(68, 168)]
    assert cache.read(0, 3, 168)[:168, 0].tolist() == expected


def test_a_row_written_again_replaces_the_rejected_one():
    cache = new()
    append(cache, 0, 66, 0.0)
    cache.truncate(0, 63)
    append(cache, 0, 2, 0.5)
    assert cache.read(0, 0, 65)[:65, 0].tolist() == [*map(float, range(63)), 63.5, 64.5]


def test_released_pages_hold_nothing_of_their_last_owner():
    """A released page is cleared: a masked row enters the product with weight 0, so a NaN in it would reach the next
    sequence."""
    cache = new()
    append(cache, 0, 100, torch.nan)
    cache.release(0)
    append(cache, 1, 1, 0.0)
    assert not cache.read(0, 1, 1)[1:].any()


def test_room():
    cache = new(batch=2, limit=65)
    assert cache.rows.shape == (SLOTS, 4, 64, 5)
    cache.reserve(0, 65)
    cache.reserve(1, 65)
    with pytest.raises(LongcatShapeError, match=r"`max_length` is 65, expected at least 66.\n  sequence 1 grows to it"):
        cache.reserve(1, 66)
    assert cache.lengths.tolist() == [0, 0]


@pytest.mark.parametrize("length", [-1, 65])
def test_truncate_outside_what_is_reserved(length):
    cache = new()
    append(cache, 0, 10, 0.0)
    with pytest.raises(LongcatShapeError, match=rf"LatentCache.truncate: .*`length` is {length}, expected 0 .. 64 res"):
        cache.truncate(0, length)
    assert cache.lengths[0] == 10


@pytest.mark.parametrize(("batch", "limit", "name"), [(0, 5, "batch_size"), (2, 0, "max_length")])
def test_an_empty_cache_is_refused(batch, limit, name):
    with pytest.raises(LongcatShapeError, match=f"LatentCache: argument `{name}` is 0, expected 1 or more"):
        new(batch, limit)

"""PagePool agrees with a search through all orders in which holders could finish, and refuses what was not claimed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longcat_ops import LongcatShapeError
from longcat_ops.engine.pages import PagePool
from support.page_search import MOVES, compare


@settings(max_examples=300)
@given(st.integers(1, 12), MOVES)
def test_a_page_is_given_if_some_order_remains(total: int, moves: list[tuple[int, int, int]]) -> None:
    compare(total, moves)


@pytest.mark.slow
@settings(max_examples=10000)
@given(st.integers(1, 12), MOVES)
def test_in_many_runs(total: int, moves: list[tuple[int, int, int]]) -> None:
    compare(total, moves)


@settings(max_examples=100)
@given(st.integers(1, 12), st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), min_size=1, max_size=5))
def test_whoever_is_in_comes_to_its_end(total: int, claims: list[tuple[int, int]]) -> None:
    """Holders take a page at a time, in turn, and leave when they have all: somebody always gets one."""
    pool = PagePool(total)
    entered = {i for i, (most, first) in enumerate(claims) if most <= total
               and pool.enter(i, most, min(first, most)) is not None}  # fmt: skip
    while entered:
        moved = False
        for i in sorted(entered):
            if len(pool.held(i)) == claims[i][0]:
                pool.leave(i)
                entered.remove(i)
                moved = True
            else:
                moved |= pool.take(i, 1) is not None
        assert moved, "all wait for each other"
    assert pool.free == total


def test_claims_may_exceed_the_pool_together() -> None:
    pool = PagePool(4)
    assert pool.enter("a", 4, 1) == [0]
    assert pool.enter("b", 3, 1) == [1]
    assert pool.take("b", 1) == [2]
    assert pool.take("a", 1) is None  # a page is free, and then b could not end
    assert pool.take("b", 1) == [3]
    pool.leave("b")
    assert pool.take("a", 3) == [1, 2, 3]


def test_pages_that_come_back_are_given_again() -> None:
    pool = PagePool(3)
    assert pool.enter("a", 2, 2) == [0, 1]
    assert pool.leave("a") == [0, 1]
    assert pool.enter("b", 3, 3) == [0, 1, 2]
    assert pool.enter("c", 1, 1) is None
    with pytest.raises(KeyError):
        pool.held("c")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda pool: PagePool(0), "PagePool"),
        (lambda pool: pool.enter("a", 2, 1), "a new holder, pages <= most <= 5"),
        (lambda pool: pool.enter("b", 6, 1), "a new holder, pages <= most <= 5"),
        (lambda pool: pool.enter("b", 2, 3), "a new holder, pages <= most <= 5"),
        (lambda pool: pool.enter("b", 2, -1), "a new holder, pages <= most <= 5"),
        (lambda pool: pool.take("a", 3), "0 .. 2, what was claimed"),
        (lambda pool: pool.take("a", -1), "0 .. 2, what was claimed"),
    ],
)
def test_what_was_not_claimed_is_refused(call, text: str) -> None:
    pool = PagePool(5)
    pool.enter("a", 3, 1)
    with pytest.raises(LongcatShapeError, match=text):
        call(pool)
    assert pool.free == 4 and len(pool.held("a")) == 1

"""Pages of a pool against a search through all orders in which its holders could finish."""

from __future__ import annotations

import itertools

from hypothesis import strategies as st

from longcat_ops.engine.pages import PagePool

Claims = dict[int, tuple[int, int]]  # of a holder: pages that it has, the most that it may need


def some_order_works(claims: Claims, total: int) -> bool:
    """Whether the holders can finish in some order, by trying each: every one takes all it may need, then leaves."""

    def works(order: tuple[int, ...]) -> bool:
        free = total - sum(have for have, _ in claims.values())
        for holder in order:
            have, most = claims[holder]
            if most - have > free:
                return False
            free += have
        return True

    return any(map(works, itertools.permutations(claims)))


MOVES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 9)), max_size=40)


def compare(total: int, moves: list[tuple[int, int, int]], pool_type: type = PagePool) -> None:
    """Holders 0 .. 4 enter, take and leave; each answer is that of the search, and the pages are disjoint."""
    pool = pool_type(total)
    have: dict[int, list[int]] = {}
    most: dict[int, int] = {}
    for holder, pages, claim in moves:
        if holder not in have:
            claim = min(claim, total)
            pages, before, new = min(pages, claim), [], True
        elif pages == 9:
            assert pool.leave(holder) == have.pop(holder)
            continue
        else:
            pages, before, claim, new = min(pages, most[holder] - len(have[holder])), have[holder], most[holder], False
        claims = {h: (len(p), most[h]) for h, p in have.items()} | {holder: (len(before) + pages, claim)}
        enough = pages <= total - sum(map(len, have.values()))
        expected = enough and some_order_works(claims, total)
        free = pool.free
        taken = pool.enter(holder, claim, pages) if new else pool.take(holder, pages)
        assert (taken is not None) == expected
        if taken is None:
            assert pool.free == free
        else:
            assert len(taken) == pages
            have[holder], most[holder] = before + taken, claim
        held = [page for pages in have.values() for page in pages]
        assert len(set(held)) == len(held) and set(held) <= set(range(total))
        assert pool.free == total - len(held)
        assert all(pool.held(h) == pages for h, pages in have.items())
    for holder in have:
        pool.leave(holder)
    assert pool.free == total

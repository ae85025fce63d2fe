"""Expert parallelism called in other orders, with handles of others, with wrong weights, in other modes: what cannot be
right is refused before anything is sent, and what can be has the right bits."""

from __future__ import annotations

import pytest

from support.comm_ranks import Keeper, Ranks


def gloo(keeper: Keeper, ranks: int) -> Ranks:
    return Ranks(keeper, ranks, "gloo")


@pytest.mark.parametrize("ranks", [1, 2])
def test_combines_in_any_order(keeper: Keeper, ranks: int) -> None:
    assert gloo(keeper, ranks).run("expert_misuse.any_order") == [True] * ranks


@pytest.mark.parametrize("ranks", [1, 2])
def test_handles_of_other_dispatches(keeper: Keeper, ranks: int) -> None:
    for (old, other, beyond), same in gloo(keeper, ranks).run("expert_misuse.wrong_handles"):
        for text in (old, other):
            assert text.startswith("combine: the handle is of another dispatch than the one in buffer 0"), text
        assert beyond.startswith("combine: buffer 1 of this handle is not there, expected received."), beyond
        assert same

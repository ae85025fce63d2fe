"""Expert parallelism over gloo: the bits of one rank with all experts, for every routing; what it counts; what it
refuses."""

from __future__ import annotations

import pytest

from support.comm_ranks import Keeper, Ranks
from support.ep_cases import SHAPES

SLOW = pytest.mark.slow
WORLDS = (2, 3, pytest.param(4, marks=SLOW))


@pytest.mark.parametrize("ranks", WORLDS)
@pytest.mark.parametrize("payload", ["fp8", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values(keeper: Keeper, ranks: int, payload: str, shape: str) -> None:
    for wrong in Ranks(keeper, ranks, "gloo").run("ep_jobs.values", shape=shape, payload=payload):
        assert wrong == []


@pytest.mark.parametrize("payload", ["fp8", "bf16"])
def test_one_rank_by_the_name_of_a_backend(keeper: Keeper, payload: str) -> None:
    assert Ranks(keeper, 1, "gloo").run("ep_jobs.alone", payload=payload) == [True]


@pytest.mark.parametrize("ranks", WORLDS)
def test_two_layers_in_flight(keeper: Keeper, ranks: int) -> None:
    for wrong in Ranks(keeper, ranks, "gloo").run("ep_jobs.in_flight"):
        assert wrong == []

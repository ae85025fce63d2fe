"""Expert parallelism over gloo: the bits of one rank with all experts, for every routing; what it counts; what it
refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.comm_ranks import Keeper, Ranks
from support.ep_cases import SHAPES

SLOW = pytest.mark.slow
TINY = str(Path(__file__).parents[2] / "checkpoints" / "longcat-tiny")
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


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=SLOW)])
@pytest.mark.parametrize("precision", ["fp8", "bf16"])
def test_layers_of_the_tiny_checkpoint(keeper: Keeper, ranks: int, precision: str) -> None:
    for wrong in Ranks(keeper, ranks, "gloo").run("ep_jobs.checkpoint", folder=TINY, precision=precision):
        assert wrong == []


@pytest.mark.parametrize("payload", ["bf16", "fp8"])
def test_opcheck(keeper: Keeper, payload: str) -> None:
    for found in Ranks(keeper, 2, "gloo").run("ep_jobs.opchecks", payload=payload):
        assert set(found) == {"dispatch_send", "dispatch_recv", "combine_send", "combine_recv"}
        assert all(results == (["SUCCESS"], []) for results in found.values()), found


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=SLOW)])
def test_one_graph(keeper: Keeper, ranks: int, compiler: str) -> None:
    for same in Ranks(keeper, ranks, "gloo").run("ep_jobs.compiled", compiler=compiler):
        assert same == [True] * 4

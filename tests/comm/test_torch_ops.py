"""The operations as torch ops: opcheck, marks of what is written, one compiled graph, refusals."""

from __future__ import annotations

import pytest

from support.comm_ranks import Keeper, Ranks

SLOW = pytest.mark.slow
OPS = (
    "all_gather", "all_reduce", "all_reduce_", "all_reduce_residual_rmsnorm", "all_reduce_residual_rmsnorm_quant",
    "barrier", "broadcast_", "reduce_scatter",
)  # fmt: skip


# One rank exchanges nothing, and its calls are the same for opcheck.
@pytest.mark.parametrize(
    ("ranks", "every_form"), [(1, False), pytest.param(1, True, marks=SLOW), pytest.param(2, True, marks=SLOW)]
)
def test_opcheck(keeper: Keeper, rung: str, ranks: int, every_form: bool) -> None:
    for found in Ranks(keeper, ranks, rung).run("comm_graphs.opchecks", every_form=every_form):
        assert {name.rpartition(" ")[0] for name in found} == set(OPS)
        assert all(results == ["SUCCESS"] for results in found.values()), found


def test_marks_are_true(pair: Ranks) -> None:
    for wrong in pair.run("comm_graphs.marks"):
        assert wrong == []


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=SLOW)])
def test_one_graph(pair: Ranks, compiler: str) -> None:
    for pairs in pair.run("comm_graphs.compiled", compiler=compiler):
        assert pairs == [[True] * 11] * 2


def test_refusals(pair: Ranks) -> None:
    for found in pair.run("comm_graphs.refusals"):
        assert found["shape"] == "all_reduce: argument `out` is of shape [4], expected [3]."
        assert found["gradient"].startswith("comm_all_reduce_: argument `x` is a tensor that requires a gradient")
        assert found["no grad mode"] == ""
        assert found["handle"] == "comm_all_reduce: no communicator of this process has the handle 1000000000."
        assert found["closed"] == "all_reduce_: this communicator is closed."
        assert "no communicator of this process has the handle" in found["gone"]

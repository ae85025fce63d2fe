"""Every operation over every rung has the values of an oracle: each dtype, size, list of rows and place."""

from __future__ import annotations

import pytest

from comm.cells import KINDS, label
from support import node_values
from support.comm_oracle import FLOATS
from support.node import Node

MIB = 2**20


@pytest.mark.parametrize("place", node_values.PLACES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_all_reduce(node: Node, rung: str, dtype: str, place: str) -> None:
    node.run(node_values.all_reduces, rung, dtype, place)


@pytest.mark.parametrize("form", node_values.FORMS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_reduce_scatter(node: Node, rung: str, dtype: str, form: str) -> None:
    node.run(node_values.reduce_scatters, rung, dtype, form)


@pytest.mark.parametrize("form", node_values.FORMS)
@pytest.mark.parametrize("dtype", node_values.MOVED)
def test_all_gather(node: Node, rung: str, dtype: str, form: str) -> None:
    node.run(node_values.all_gathers, rung, dtype, form)


@pytest.mark.parametrize("dtype", node_values.MOVED)
def test_broadcast(node: Node, rung: str, dtype: str) -> None:
    node.run(node_values.broadcasts, rung, dtype)


@pytest.mark.parametrize("quant", [None, "fp8_1x128"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_all_reduce_residual_rmsnorm(node: Node, rung: str, dtype: str, quant: str | None) -> None:
    node.run(node_values.fused_norms, rung, dtype, quant)


@pytest.mark.parametrize("size", [8 * MIB, 96 * MIB], ids=label)
@pytest.mark.parametrize(("collective", "rows"), KINDS, ids=lambda text: text)
def test_large(node: Node, rung: str, collective: str, rows: str, size: int) -> None:
    if size > 8 * MIB and (rung == "gloo" or not node.fleet.on_gpus):
        pytest.skip("a size for GPUs: gloo takes seconds")
    node.run(node_values.large, rung, collective, rows, size)


@pytest.mark.parametrize("dtype", FLOATS)
def test_values_that_are_no_numbers(node: Node, rung: str, dtype: str) -> None:
    node.run(node_values.not_numbers, rung, dtype)


def test_deterministic_sums_have_the_same_bits(node: Node, rung: str) -> None:
    node.run(node_values.repeats, rung, node.limit(100, 3))

"""A rank that does not come, an abort, many communicators: every rank hears of it in time, and a new one works.

A killed rank is not among them, since torchrun then ends all: tests/comm has that, over gloo.
"""

from __future__ import annotations

import pytest

from support import node_faults
from support.node import Node


@pytest.mark.parametrize("op", node_faults.OPS)
def test_a_rank_that_never_arrives(node: Node, rung: str, op: str) -> None:
    node.run(node_faults.absent, rung, op)


def test_an_abort_from_the_host(node: Node, rung: str) -> None:
    node.run(node_faults.aborted, rung)


def test_communicators_are_made_and_closed(node: Node, rung: str) -> None:
    node.run(node_faults.cycles, rung, node.limit(50, 3))

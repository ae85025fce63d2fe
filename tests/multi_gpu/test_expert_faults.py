"""Expert parallelism: a rank that does not come to a dispatch or a combine is named by the others in time."""

from __future__ import annotations

import pytest

from support import node_experts
from support.node import Node


@pytest.mark.parametrize("where", ["dispatch", "combine"])
def test_a_rank_that_does_not_come(node: Node, backend: str, where: str) -> None:
    node.run(node_experts.absent, backend, where)

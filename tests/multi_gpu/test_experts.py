"""Expert parallelism over the backends that the node has: the bits of one rank, also in replays with other tokens."""

from __future__ import annotations

import pytest

from support import node_experts
from support.node import Node


@pytest.mark.parametrize("payload", ["fp8", "bf16"])
def test_values(node: Node, backend: str, payload: str) -> None:
    node.run(node_experts.values, backend, payload)


def test_replays_with_other_tokens(node: Node, backend: str) -> None:
    node.run(node_experts.replays, backend, node.limit(100, 3))

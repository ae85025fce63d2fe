"""The whole network over the ranks of a node: the texts of one process, eager and replayed, on one stream and two."""

from __future__ import annotations

import pytest

from support import node_network
from support.node import Node


@pytest.mark.parametrize("form", [None, "token", "all_reduce"], ids=["experts", "token", "all_reduce"])
def test_texts(node: Node, form: str | None) -> None:
    if form and node.ranks % 2:
        pytest.skip(f"a tp_group has 2 ranks, and there are {node.ranks}")
    node.run(node_network.texts, form)

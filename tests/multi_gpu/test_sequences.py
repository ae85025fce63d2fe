"""Collectives one after another: replayed from graphs, mixed with eager calls, 10,000 of them, on two streams."""

from __future__ import annotations

import pytest

from support import node_sequences as jobs
from support.node import Node


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "ordinary"])
@pytest.mark.parametrize("rows", [3, 3000], ids=["low latency", "two-shot"])
def test_replays_with_other_inputs(node: Node, graph_rung: str, rows: int, symmetric: bool) -> None:
    node.run(jobs.replays, graph_rung, node.limit(1000, 20), symmetric, rows)


def test_replays_with_other_rows(node: Node, graph_rung: str) -> None:
    node.run(jobs.counts_on_the_device, graph_rung, node.limit(200, 14))


def test_two_graphs_in_any_order(node: Node, graph_rung: str) -> None:
    node.run(jobs.two_graphs, graph_rung, node.limit(500, 20))


def test_mixed_calls(node: Node, rung: str) -> None:
    on_device = rung in ("multimem", "p2p")
    node.run(jobs.mixed, rung, node.limit(10_000 if on_device else 1000, 100))


def test_two_channels_at_once(node: Node, rung: str) -> None:
    node.run(jobs.channels_at_once, rung, node.limit(50, 5))

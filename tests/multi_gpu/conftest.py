"""Ranks for the tests that only a node with several GPUs can run. No run collects them that does not name this folder.

torchrun --nproc-per-node 8 -m pytest tests/multi_gpu
LONGCAT_OPS_COMM=gloo torchrun --nproc-per-node 2 -m pytest tests/multi_gpu     # without GPUs: tries the tests
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
_FACTS = pytest.StashKey[list[str]]()


def _named(config: pytest.Config) -> bool:
    """Whether the command line names this folder, or something in it."""
    start = config.invocation_params.dir
    return any((start / arg.split("::")[0]).resolve().is_relative_to(HERE) for arg in config.args)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return None if _named(config) else True


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if int(os.environ.get("WORLD_SIZE", "0")):
        from report import first_rank

        first_rank.configure(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    mine = [item for item in items if item.path.is_relative_to(HERE)]
    if not mine:
        return

    # NOTE: what might end a process comes last, NCCL's own deadlines at the very end.
    def late(item: pytest.Item) -> float:
        return ("faults" in item.path.name) + (("[nccl" in item.nodeid or "[torch" in item.nodeid) / 2)

    items.sort(key=lambda item: item in mine and late(item))
    from support.node import why_not_here

    if reason := why_not_here():
        for item in mine:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def node(request: pytest.FixtureRequest) -> Iterator[object]:
    from report.fleet import Fleet
    from support.node import Node

    fleet = Fleet.start()
    try:
        found = Node(fleet)
        request.config.stash[_FACTS] = found.facts()
        yield found
        found.close()
    finally:
        fleet.close()


@pytest.fixture(params=("multimem", "p2p", "nccl", "gloo"))
def rung(request: pytest.FixtureRequest, node: object) -> str:
    """Each rung that this node has."""
    if reason := node.unavailable(request.param):
        pytest.skip(f"no rung {request.param}: {reason}")
    return request.param


@pytest.fixture
def graph_rung(rung: str, node: object) -> str:
    """One whose calls can be captured. On the host calls are repeated instead."""
    if node.fleet.on_gpus and not node.comm(rung).caps.graphs:
        pytest.skip(f"calls of the rung {rung} cannot be captured in a CUDA graph")
    return rung


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What ran: to be sent back with the results."""
    for line in config.stash.get(_FACTS, []):
        terminalreporter.write_line(line)


@pytest.fixture(params=("nvl", "torch"))
def backend(request: pytest.FixtureRequest, node: object) -> str:
    """Each backend of expert parallelism that this node has."""
    from support import node_experts

    if reason := node_experts.unavailable(node, request.param):
        pytest.skip(f"no backend {request.param}: {reason}")
    return request.param

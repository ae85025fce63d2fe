"""Time on a GPU without the time of launches: CUDA graphs of many calls, timed by events of the device."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

ROUNDS, WARM_ROUNDS = 50, 3


@dataclass(frozen=True)
class Times:
    """Microseconds of one call, median and percentiles over the replays of a graph."""

    us: float
    p10_us: float
    p90_us: float


@dataclass(frozen=True)
class Graph:
    """`calls` calls, one after another. `runs` is what was captured: it keeps the memory that a replay uses."""

    graph: torch.cuda.CUDAGraph
    calls: int
    runs: list[Callable[[], object]]

    def replay(self) -> None:
        self.graph.replay()

    def microseconds(self) -> float:
        """One replay."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self.replay()
        end.record()
        end.synchronize()
        return 1e3 * start.elapsed_time(end)


def capture(runs: list[Callable[[], object]], repeats: int = 1) -> Graph:
    """Captures all runs in turn, `repeats` times over. Each must have run before: nothing may be compiled here."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            for run in runs:
                run()
    return Graph(graph, repeats * len(runs), runs)


def take_turns(graphs: dict[str, Graph]) -> dict[str, Times]:
    """Replay by replay, so that a drift of clocks hits all of them."""
    taken: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(WARM_ROUNDS + ROUNDS):
        for name, graph in graphs.items():
            us = graph.microseconds() / graph.calls
            if turn >= WARM_ROUNDS:
                taken[name].append(us)
    tenths = {name: statistics.quantiles(us, n=10) for name, us in taken.items()}
    return {name: Times(statistics.median(us), tenths[name][0], tenths[name][-1]) for name, us in taken.items()}


def microseconds(runs: list[Callable[[], object]]) -> float:
    """Median time of one call in a graph of all, after a first round."""
    for run in runs:
        run()
    return take_turns({"": capture(runs)})[""].us


def read_bytes_per_second(l2_bytes: int) -> float:
    """The device's read rate without writes: the best of two reductions over random words, of at least 4 times L2."""
    words = torch.randint(-(2**60), 2**60, (max(4 * l2_bytes, 2**30) // 8,), device="cuda")
    ways = [words.sum, words.view(torch.int32).amax]
    return words.nbytes / (1e-6 * min(microseconds([way]) for way in ways))

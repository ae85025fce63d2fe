"""Time on a GPU without the time of launches."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

ROUNDS = 25


def microseconds(runs: list[Callable[[], object]]) -> float:
    """Median time of one call in a graph of all, after a first round."""
    for run in runs:
        run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    times = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end) / len(runs))
    return statistics.median(times)

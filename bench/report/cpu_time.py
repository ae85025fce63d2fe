"""Time on a CPU: ways of doing one thing take turns, so that a drift of the machine hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

ROUNDS = 15
ROUND_SECONDS = 2e-3  # the least of one way in one round
READ_BYTES = 1 << 29  # beyond any cache


def microseconds(ways: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median over the rounds of the time of one call of each way."""
    calls = {name: _calls_of(run) for name, run in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            seconds[name].append(_seconds(run, calls[name]) / calls[name])
    return {name: 1e6 * statistics.median(values) for name, values in seconds.items()}


def in_turns(ways: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds of one call of each way, by round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values():
        run()
    for _ in range(rounds):
        for name, run in ways.items():
            seconds[name].append(_seconds(run, 1))
    return seconds


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """(10th percentile, median, 90th percentile)."""
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return tenths[0], statistics.median(values), tenths[-1]


def read_bytes_per_second() -> float:
    """What the set number of threads reads from memory: the best of a sum and a maximum over words of 512 MB."""
    words = torch.ones(READ_BYTES // 4, dtype=torch.float32)
    us = microseconds({"sum": words.sum, "amax": words.amax}, rounds=5)
    return words.nbytes / (1e-6 * min(us.values()))


def _seconds(run: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - start


def _calls_of(run: Callable[[], object]) -> int:
    run()
    return max(1, round(ROUND_SECONDS / max(_seconds(run, 1), _seconds(run, 1), 1e-6)))

"""Times of a rank: on a GPU by events, eager or as a graph of CALLS launches; on the host by its clock, to try the
harness. A round lets each implementation run once, in turns, and keeps the longest time of all ranks."""

from __future__ import annotations

import math
import statistics
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from peers.collective import Call
from report import graph_time
from report.fleet import Fleet

CALLS = 20  # of a round: launches of a graph, or calls in a row
ROUNDS, FEWEST_ROUNDS = 50, 5
SECONDS = 0.6  # aimed at, of all rounds of a cell
GEMM, GEMMS = 4096, 12  # products [GEMM]^3 in bf16: 12 take 2 to 3 ms on an H100
HOST_GEMM, HOST_CALLS, HOST_ROUNDS = 96, 2, 3

Run = Callable[[], object]
_elapsed_s = 0.0


def device_seconds() -> float:
    """A timer for pytest-benchmark: it goes on by the time of one call of the first implementation in each round. So
    its statistics are those of the device and of the slowest rank."""
    return _elapsed_s


@dataclass(frozen=True)
class Timed:
    """us: runs and returns the us of one call. launch: starts `calls` calls and does not wait for them; None where the
    host needs longer to start a call than the device to run it."""

    us: Callable[[], float]
    launch: Run | None
    calls: int


class Clock(ABC):
    rounds: int

    @abstractmethod
    def once(self, call: Call, mode: str) -> Run:
        """One call in the way it will be timed, for the check of its result."""

    @abstractmethod
    def timed(self, call: Call, mode: str) -> Timed: ...

    @abstractmethod
    def gemm_us(self, runs: Run | None, count: int) -> float:
        """us of the products on another stream; meanwhile `runs` is called `count` times."""


class GpuClock(Clock):
    rounds = ROUNDS

    def __init__(self, device: torch.device) -> None:
        self._side = torch.cuda.Stream(device)
        self._a, self._b = (torch.randn(GEMM, GEMM, device=device).bfloat16() for _ in range(2))
        self._c = torch.empty_like(self._a)

    def once(self, call: Call, mode: str) -> Run:
        call.fill()
        call.run()  # what a first call compiles, loads or connects must not be captured
        torch.cuda.synchronize()
        run = graph_time.capture([call.run]).replay if mode == "graph" else call.run
        call.fill()
        torch.cuda.synchronize()
        return run

    def timed(self, call: Call, mode: str) -> Timed:
        if mode == "graph":
            graph = graph_time.capture([call.run], repeats=CALLS)
            return Timed(lambda: graph.microseconds() / CALLS, graph.replay, CALLS)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

        def us() -> float:
            start.record()
            for _ in range(CALLS):
                call.run()
            end.record()
            end.synchronize()
            return 1e3 * start.elapsed_time(end) / CALLS

        return Timed(us, None, CALLS)

    def gemm_us(self, runs: Run | None, count: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        for _ in range(count if runs else 0):
            runs()
        with torch.cuda.stream(self._side):
            start.record()
            for _ in range(GEMMS):
                torch.mm(self._a, self._b, out=self._c)
            end.record()
        torch.cuda.synchronize()
        return 1e3 * start.elapsed_time(end)


class HostClock(Clock):
    rounds = HOST_ROUNDS

    def __init__(self) -> None:
        self._a = torch.randn(HOST_GEMM, HOST_GEMM)

    def once(self, call: Call, mode: str) -> Run:
        call.fill()
        return call.run

    def timed(self, call: Call, mode: str) -> Timed:
        def us() -> float:
            start = time.perf_counter()
            for _ in range(HOST_CALLS):
                call.run()
            return 1e6 * (time.perf_counter() - start) / HOST_CALLS

        return Timed(us, call.run, 1)

    def gemm_us(self, runs: Run | None, count: int) -> float:
        found: list[float] = []

        def products() -> None:
            start = time.perf_counter()
            for _ in range(GEMMS):
                torch.mm(self._a, self._a)
            found.append(1e6 * (time.perf_counter() - start))

        thread = threading.Thread(target=products)
        thread.start()
        for _ in range(count if runs else 0):
            runs()
        thread.join()
        return found[0]


class Rounds:
    """The rounds of one cell on one rank. us: name -> the longest of all ranks, round by round."""

    def __init__(self, fleet: Fleet, timed: dict[str, Timed]) -> None:
        self._fleet, self._timed, self._number = fleet, timed, 0
        self.us: dict[str, list[float]] = {name: [] for name in timed}

    def once(self) -> None:
        """One round. Who goes first changes, so that nobody always follows the same one."""
        global _elapsed_s
        names = list(self._timed)
        first = self._number % len(names)
        own = dict.fromkeys(names, math.nan)
        for name in names[first:] + names[:first]:
            self._fleet.align()
            own[name] = self._timed[name].us()
        for name, us in zip(names, self._fleet.longest(list(own.values())), strict=True):
            self.us[name].append(us)
        _elapsed_s += 1e-6 * self.us[names[0]][-1]
        self._number += 1

    def run(self, clock: Clock, benchmark: Any) -> int:
        """As many rounds on every rank as rank 0 decides, after one that does not count. benchmark: the fixture of
        pytest-benchmark on rank 0, None on the others."""
        start = time.perf_counter()
        self.once()
        wanted = int(SECONDS / (time.perf_counter() - start))
        for times in self.us.values():
            times.clear()
        count = max(min(FEWEST_ROUNDS, clock.rounds), min(clock.rounds, wanted))
        if benchmark is not None and benchmark.disabled:
            count = 1
        count = self._fleet.first(count)
        if benchmark is not None:
            benchmark.pedantic(self.once, rounds=count)
            return count
        for _ in range(count):
            self.once()
        return count

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(times) for name, times in self.us.items()}


def slowdown(fleet: Fleet, clock: Clock, timed: Timed, us: float) -> float:
    """How much longer products on another stream take beside calls that last as long: 0.1 is 10 %. us: of one call,
    the same on all ranks. Collective."""
    clock.gemm_us(None, 0)
    fleet.align()
    (alone,) = fleet.longest([clock.gemm_us(None, 0)])
    count = math.ceil(1.5 * alone / (us * timed.calls)) + 1
    fleet.align()
    (beside,) = fleet.longest([clock.gemm_us(timed.launch, count)])
    return beside / alone - 1

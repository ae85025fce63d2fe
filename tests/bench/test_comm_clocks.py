"""The clock of the bench of collectives over stand-ins that note what is asked of a GPU."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from comm import clocks
from peers.collective import Call
from report import graph_time

did: list[str] = []


class FakeEvent:
    def __init__(self, **_: object) -> None: ...

    def record(self) -> None:
        did.append("event")

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: object) -> float:
        return 0.5  # ms


class FakeGraph:
    def __init__(self, runs: list, repeats: int = 1) -> None:
        did.append(f"captures {repeats * len(runs)}")

    def replay(self) -> None:
        did.append("replays")

    def microseconds(self) -> float:
        return 100.0


@pytest.fixture
def gpu_clock(monkeypatch: pytest.MonkeyPatch) -> clocks.GpuClock:
    """Over stand-ins that note what is asked of a GPU."""
    did.clear()
    monkeypatch.setattr(clocks, "GEMM", 8)
    monkeypatch.setattr(clocks, "GEMMS", 2)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: "side")
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(did.append(f"on {stream}")))
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(graph_time, "capture", FakeGraph)
    monkeypatch.setattr(torch, "mm", lambda a, b, out: did.append("product"))
    return clocks.GpuClock(torch.device("cpu"))


CALL = Call(lambda: did.append("fills"), lambda: did.append("runs"), lambda: torch.empty(0))


def test_times_of_a_graph(gpu_clock: clocks.GpuClock) -> None:
    """The check replays one call on fresh inputs; what is timed are 20 launches."""
    gpu_clock.once(CALL, "graph")()
    assert did == ["fills", "runs", "captures 1", "fills", "replays"]
    timed = gpu_clock.timed(CALL, "graph")
    assert did[-1] == "captures 20" and (timed.us(), timed.calls) == (5.0, 20)


def test_times_of_eager_calls(gpu_clock: clocks.GpuClock) -> None:
    gpu_clock.once(CALL, "eager")()
    assert did == ["fills", "runs", "fills", "runs"]
    did.clear()
    timed = gpu_clock.timed(CALL, "eager")
    assert timed.us() == 25.0 and timed.launch is None
    assert did == ["event"] + ["runs"] * 20 + ["event"]


def test_products_run_beside_calls_that_are_there_before(gpu_clock: clocks.GpuClock) -> None:
    assert gpu_clock.gemm_us(CALL.run, 3) == 500.0
    assert did == ["runs"] * 3 + ["on side", "event", "product", "product", "event"]
    did.clear()
    gpu_clock.gemm_us(None, 3)
    assert did == ["on side", "event", "product", "product", "event"]

"""An H100 of which nothing is there: captured calls run on the CPU when their graph is replayed, and take 50 us."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from products import measuring
from report import graph_time

NAME = "NVIDIA H100 80GB HBM3"


class FakeGraph(graph_time.Graph):
    us = 50.0

    def microseconds(self) -> float:
        for run in self.runs:
            run()
        return self.us * self.calls


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the benches of products. It reads 3 TB/s."""

    def capture(runs: list[Callable], repeats: int = 1) -> FakeGraph:
        return FakeGraph(None, repeats * len(runs), runs)

    properties = SimpleNamespace(name=NAME, L2_cache_size=50 << 20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(measuring, "read_rate", lambda: 3e12)
    monkeypatch.setattr(graph_time, "ROUNDS", 2)
    monkeypatch.setattr(graph_time, "capture", capture)

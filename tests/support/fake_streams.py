"""Streams and events of a GPU of which nothing is there: a kernel is a number of us, and time is counted by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from longcat_ops.engine import stage_times


class Stream:
    def __init__(self, device: Device) -> None:
        self.busy = 0.0  # us, until when
        device.streams.append(self)

    def wait_event(self, event: Event) -> None:
        self.busy = max(self.busy, event.at)


class Event:
    def __init__(self, device: Device, enable_timing: bool) -> None:
        self.device, self.timed, self.at = device, enable_timing, 0.0

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or self.device.current
        self.at = stream.busy = max(stream.busy, self.device.host)

    def query(self) -> bool:
        return self.at <= self.device.host

    def elapsed_time(self, other: Event) -> float:
        """ms, of events that the host has waited for."""
        assert self.timed and other.timed and self.query() and other.query()
        return 1e-3 * (other.at - self.at)


class Device:
    """issue_us: what it costs the host to launch a kernel. A kernel begins no sooner than it is launched."""

    def __init__(self, issue_us: float = 0.0) -> None:
        self.host, self.issue_us = 0.0, issue_us
        self.streams: list[Stream] = []
        self.delays: list[float] = []  # us
        self.current = Stream(self)

    def kernel(self, us: float) -> None:
        """On the current stream."""
        self.host += self.issue_us
        self.current.busy = max(self.current.busy, self.host) + us

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def synchronize(self) -> None:
        self.host = max(self.host, *(stream.busy for stream in self.streams))

    def sleep(self, clocks: int) -> None:
        self.delays.append(1e6 * clocks / stage_times.CLOCK_HZ)
        self.current.busy = max(self.current.busy, self.host) + self.delays[-1]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In the place of torch.cuda, and of the clock of the host in `stage_times`."""
        ours = {
            "Event": lambda enable_timing=False: Event(self, enable_timing),
            "Stream": lambda: Stream(self),
            "current_stream": lambda: self.current,
            "stream": self.stream,
            "synchronize": self.synchronize,
            "_sleep": self.sleep,
        }
        for name, value in ours.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(stage_times, "time", SimpleNamespace(perf_counter=lambda: 1e-6 * self.host))

"""The machine that answers questions: a GPU, or in a rehearsal this CPU, where kernels run in the host emulator."""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from conformance.library import Library, first_difference
from report import graph_time

GRAPH_US = 1500.0  # the least time of a replay, so that its start and end do not count
# What a rehearsal runs in place of a probe: the case with the same kernels, or nothing.
STAND_INS = {"box_rate": "box_ring/sums", "two_back": "launches/seen_two_back", "neighbour": "launches/stay"}

Run = Callable[[], object]


@dataclass(frozen=True)
class Machine:
    """device: "cuda", or "cpu" in a rehearsal. The libraries are those of device_check.environment."""

    device: str
    conformance: Path
    traced: Path

    @property
    def real(self) -> bool:
        return self.device == "cuda"

    @cached_property
    def sms(self) -> int:
        return torch.cuda.get_device_properties(0).multi_processor_count if self.real else 2

    @property
    def l2_bytes(self) -> int:
        return torch.cuda.get_device_properties(0).L2_cache_size if self.real else 0

    def synchronize(self) -> None:
        if self.real:
            torch.cuda.synchronize()

    @cached_property
    def probes(self) -> Probes:
        return DeviceProbes(self.conformance) if self.real else RehearsedProbes(self.conformance)

    def times(self, ways: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, float]]:
        """us of one call of each way: median, 10th and 90th percentile. All calls of a way are in one CUDA graph,
        repeated until a replay is long enough, and the ways take turns. Each has run before. A rehearsal times one run
        by the clock.
        """
        if not self.real:
            return {name: {"us": _clocked(runs)} for name, runs in ways.items()}
        graphs = {name: _long_graph(list(runs)) for name, runs in ways.items()}
        found = graph_time.take_turns(graphs)
        return {
            name: {"us": round(t.us, 3), "p10_us": round(t.p10_us, 3), "p90_us": round(t.p90_us, 3)}
            for name, t in found.items()
        }


def _clocked(runs: Sequence[Run]) -> float:
    start = time.perf_counter()
    for run in runs:
        run()
    return round(1e6 * (time.perf_counter() - start) / len(runs), 3)


def _long_graph(runs: list[Run]) -> graph_time.Graph:
    graph = graph_time.capture(runs)
    graph.replay()
    repeats = round(GRAPH_US / max(graph.microseconds(), 1.0))
    return graph_time.capture(runs, repeats) if repeats > 1 else graph


class Probes:
    """The probes of tests/conformance: each answer is what its JSON object says."""

    def ask(self, what: str, number: int = 0) -> dict[str, Any]:
        raise NotImplementedError

    def start_neighbour(self, blocks: int, smem: int, carveout: int, limit_ms: int) -> None:
        raise NotImplementedError

    def stop_neighbour(self) -> dict[str, Any]:
        raise NotImplementedError


class DeviceProbes(Probes):
    def __init__(self, library: Path) -> None:
        self._c = ctypes.CDLL(str(library))
        self._c.conformance_error.restype = ctypes.c_char_p
        for name in ("probe", "neighbour_start", "neighbour_stop"):
            getattr(self._c, f"conformance_{name}").restype = ctypes.c_char_p

    def _answer(self, text: bytes | None) -> dict[str, Any]:
        if text is None:
            raise RuntimeError(self._c.conformance_error().decode())
        return json.loads(text)

    def ask(self, what: str, number: int = 0) -> dict[str, Any]:
        return self._answer(self._c.conformance_probe(what.encode(), ctypes.c_uint32(number)))

    def start_neighbour(self, blocks: int, smem: int, carveout: int, limit_ms: int) -> None:
        self._answer(self._c.conformance_neighbour_start(*map(ctypes.c_int32, (blocks, smem, carveout, limit_ms))))

    def stop_neighbour(self) -> dict[str, Any]:
        return self._answer(self._c.conformance_neighbour_stop())


class RehearsedProbes(Probes):
    def __init__(self, library: Path) -> None:
        self._library = Library(library)
        self._cases = {case.name: case for case in self._library.cases()}

    def ask(self, what: str, number: int = 0) -> dict[str, Any]:
        if what not in STAND_INS:
            return {"not_rehearsed": "only a GPU has it"}
        outcome = self._library.run(self._cases[STAND_INS[what]])
        if wrong := outcome.error or first_difference(outcome.actual, outcome.expected):
            raise RuntimeError(f"{STAND_INS[what]}: {wrong}")
        return {"rehearsed_by": STAND_INS[what]}

    def start_neighbour(self, blocks: int, smem: int, carveout: int, limit_ms: int) -> None:
        self.ask("neighbour")

    def stop_neighbour(self) -> dict[str, Any]:
        return {"blocks": 0, "sms": 0, "late": 0}

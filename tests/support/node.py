"""The ranks of one node, under torchrun: every rank runs the same test, and all of them hear what each found wrong."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from longcat_ops.comm import Communicator
from report import devices, graph_time
from report.fleet import Fleet, ranks_here

MAX_BYTES = 96 << 20
TIMEOUT_S = 20.0
KEPT_TEXT = 3000
COMMAND = "torchrun --nproc-per-node 8 -m pytest tests/multi_gpu"


def forced_rung() -> str:
    """The one rung of LONGCAT_OPS_COMM, "" for all."""
    named = os.environ.get("LONGCAT_OPS_COMM", "auto")
    return "" if named == "auto" else named


def why_not_here() -> str:
    """Why these tests cannot run in this process; "" if they can."""
    ranks = ranks_here()
    if ranks == 0:
        return f"several ranks are needed: {COMMAND}"
    if ranks < 2:
        return f"2 ranks are needed, and there is {ranks}: {COMMAND}"
    if (gpus := torch.cuda.device_count()) < ranks and forced_rung() != "gloo":
        return f"{ranks} ranks need a GPU each, and there are {gpus}; LONGCAT_OPS_COMM=gloo runs them on the host"
    return ""


class Node:
    """One rank's view. Communicators stay open for the tests that share them."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.rank, self.ranks, self.device = fleet.rank, fleet.ranks, fleet.device
        self._open: dict[Any, Communicator] = {}
        self._memory: dict[Any, Tensor] = {}
        self._reasons: dict[str, str] = {}

    def unavailable(self, rung: str) -> str:
        """Why this node has not that rung. Collective, the first time."""
        if rung not in self._reasons:
            reason = f"LONGCAT_OPS_COMM={forced_rung()}" if forced_rung() not in ("", rung) else ""
            if not reason:
                _, reason = self.fleet.attempt(lambda: self.comm(rung))
            self._reasons[rung] = reason
        return self._reasons[rung]

    def facts(self) -> list[str]:
        """What these ranks are, and which rung they would take. Collective."""
        found = [f"{self.ranks} ranks: {devices.versions(self.device)}"]
        with self.new(forced_rung() or "auto") as comm:
            found.append(f"  rung {comm.backend}: {comm.caps}")
            return found + [f"  not {name}: {why}" for name, why in comm.why_not.items()]

    def comm(self, rung: str, **options: Any) -> Communicator:
        """One that tests share. Who may poison one calls `new`."""
        key = (rung, *sorted(options.items()))
        if key not in self._open:
            self._open[key] = self.new(rung, **options)
        return self._open[key]

    def new(self, rung: str, **options: Any) -> Communicator:
        return Communicator(backend=rung, **{"max_bytes": MAX_BYTES, "timeout_s": TIMEOUT_S} | options)

    def symmetric(self, comm: Communicator, shape: tuple[int, ...], dtype: torch.dtype, skip: int = 0) -> Tensor:
        """A tensor in memory that the communicator hands out, `skip` elements behind its start. The next call gives the
        same memory."""
        whole = self._memory.get(comm)
        if whole is None:
            whole = self._memory[comm] = comm.empty(comm.caps.max_bytes, torch.uint8)
        return whole.view(dtype)[skip : skip + torch.Size(shape).numel()].view(shape)

    def capture(self, run: Callable[[], object]) -> Callable[[], object]:
        """Replays `run`, captured in a CUDA graph after a first call; on the host, which has no graphs, calls it."""
        run()
        return graph_time.capture([run]).replay if self.fleet.on_gpus else run

    def streams(self, count: int) -> list[Any]:
        """Contexts, each on a stream of its own; on the host they do nothing."""
        if not self.fleet.on_gpus:
            return [nullcontext() for _ in range(count)]
        return [torch.cuda.stream(torch.cuda.Stream()) for _ in range(count)]

    def synchronize(self) -> None:
        if self.fleet.on_gpus:
            torch.cuda.synchronize()

    def drop(self) -> None:
        """Ends communicators that may be out of step."""
        for comm in self._open.values():
            comm.abort("a test failed")
        self.close()

    def close(self) -> None:
        for comm in self._open.values():
            comm.close()
        self._open, self._memory = {}, {}

    def run(self, job: Callable[..., list[str]], *args: Any, **kwargs: Any) -> None:
        """The job on every rank: it returns what is wrong. Fails on all ranks if anything is wrong on one."""
        wrong, raised = [], ""
        try:
            wrong = job(self, *args, **kwargs)
        except Exception:
            raised = traceback.format_exc()[-KEPT_TEXT:]
        found = self.fleet.gather((wrong, raised))
        if any(text for _, text in found):
            self.drop()
        texts = [(r, text) for r, (wrong, error) in enumerate(found) for text in [*wrong[:10], error]]
        report = [f"rank {r}: {text}" for r, text in texts if text]
        assert not report, "\n".join(report)

    def limit(self, on_gpus: int, on_host: int) -> int:
        """What tests do less of on the host, where it is their harness that is tried."""
        return on_gpus if self.fleet.on_gpus else on_host

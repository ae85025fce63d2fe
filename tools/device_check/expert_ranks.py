"""The ranks of expert parallelism on one machine, each with the backend `nvl` of the library over its region of memory.

On a GPU all regions lie in its own memory, and each rank has a stream. In a rehearsal the ranks are devices of the host
emulator, which a thread of its own drives: on any other thread each kernel of an op runs at once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from device_check import ranks as emulated_ranks
from device_check.machine import Machine
from longcat_ops.comm.experts.base import ExpertConfig
from longcat_ops.comm.experts.nvl import NvlExperts
from longcat_ops.comm.providers.base import SymmetricMemory
from longcat_ops.comm.rungs import device_memory
from longcat_ops.comm.sizes import expert_bytes
from longcat_ops.errors import LongcatCommError, LongcatError
from longcat_ops.ops import emulated


class OwnThread:
    """The emulator's functions, all called on one thread. What is launched there is queued while a machine is open."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "device_check.emulator")

    def __getattr__(self, name: str) -> Any:
        function = getattr(emulated.load(), name)
        return lambda *arguments: self._thread.submit(function, *arguments).result()


class RankLibrary:
    """The emulator's functions, called on one rank's device."""

    def __init__(self, library: Any, rank: int) -> None:
        self.library, self.rank, self.record = library, rank, None

    def __getattr__(self, name: str) -> Any:
        def call(args: Any, stream: Any) -> int:
            self.library.lc_emu_device(ctypes.c_int32(self.rank), ctypes.byref(self.record))
            return getattr(self.library, name)(args, stream)

        return self.library.lc_last_error if name == "lc_last_error" else call


class Watch:
    """What kernels' ways, and who calls them, ask of their communicator: nothing is posted."""

    what = "ExpertParallel"

    def __init__(self, rank: int) -> None:
        self.rank, self.failure = rank, None
        self.channels = [
            SimpleNamespace(
                watch=self,
                index=i,
                op="a call",
                post=SimpleNamespace(call=5 + i),
                disagree=self.disagree,
                find_cause=lambda waited, broken: None,
                begin=lambda op: None,
                enter=lambda text, stage: None,
                refuse=lambda error: None,
            )
            for i in range(2)
        ]

    def require_open(self, op: str) -> None:
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Nothing, likewise."""

    def disagree(self, text: str) -> LongcatError:
        """As a watch whose posts say nothing."""
        return self.poison(LongcatCommError(text))

    def poison(self, error: LongcatError) -> LongcatError:
        self.failure = self.failure or error
        return error


class ExpertRanks:
    """memory: of each rank, uint8. library: the C functions. streams: of each rank; without one, kernels are queued in
    the emulator."""

    def __init__(self, memory: Sequence[Tensor], config: ExpertConfig, library: Any, streams: Sequence[Any]) -> None:
        self.ranks, self.streams, self.kept = len(memory), streams, []
        self.ways: list[NvlExperts] = []
        self.sessions: list[Any] = []
        self._library = library
        for rank, region in enumerate(memory):
            holder = SimpleNamespace(release=lambda: [], release_multicast=lambda: [], synchronize=lambda: None)
            symmetric = SymmetricMemory(rank=rank, pointers=tuple(other.data_ptr() for other in memory), multicast=0,
                                        tensor=region, provider="one machine", holder=holder)  # fmt: skip
            session = SimpleNamespace(
                rank=rank, ranks=self.ranks, config=config, watch=Watch(rank), device=region.device
            )
            self.sessions.append(session)
            made = device_memory.Region(session, symmetric, library if streams else RankLibrary(library, rank))
            if not streams:
                made.library.record = made.record
            self.ways.append(NvlExperts(made))
        self.synchronize()

    def each(self, name: str, *arguments: Sequence[Any], only: Sequence[int] | None = None) -> None:
        """A call of every rank. arguments[i][rank]. All ranks' launches of a call come before those of the next: a
        device has few hardware queues, and no launch may stand in one behind another that waits for it."""
        for rank in range(self.ranks) if only is None else only:
            given = [argument[rank] for argument in arguments]
            self.kept.append(given)  # the emulator remembers whose memory it was
            with self.on(rank):
                getattr(self.ways[rank], name)(*given)

    def on(self, rank: int) -> Any:
        return torch.cuda.stream(self.streams[rank]) if self.streams else nullcontext()

    def synchronize(self) -> None:
        """Until everything that was launched has ended."""
        if self.streams:
            torch.cuda.synchronize()
        elif self._library.lc_emu_synchronize() != 0:
            raise emulated.EmulatorError(self._library.lc_last_error().decode())

    def poll(self) -> None:
        for way in self.ways:
            way.poll()

    def captured(self, run: Callable[[int], Any]) -> tuple[Callable[[], None], list[Any]]:
        """run(rank) of each rank, captured once: a function that replays all, and what each returned. Without streams
        the function runs them."""
        if not self.streams:
            found: list[Any] = [None] * self.ranks

            def again() -> None:
                for rank in range(self.ranks):
                    found[rank] = run(rank)

            return again, found
        graphs, found = [torch.cuda.CUDAGraph() for _ in self.streams], []
        for rank, graph in enumerate(graphs):
            with torch.cuda.graph(graph, stream=self.streams[rank]):
                found.append(run(rank))

        def replay() -> None:
            for rank, graph in enumerate(graphs):
                with self.on(rank):
                    graph.replay()

        return replay, found


@contextmanager
def open_expert_ranks(machine: Machine, ranks: int, config: ExpertConfig) -> Iterator[ExpertRanks]:
    """All kernels are loaded: CUDA loads one at its first launch, which may wait for all that run."""
    size = expert_bytes(ranks, backend="nvl", **config.sizes())
    if machine.real:
        memory = list(torch.zeros(ranks, size, dtype=torch.uint8, device=machine.device))
        opened = ExpertRanks(memory, config, device_memory.load(), [torch.cuda.Stream() for _ in memory])
        opened.ways[0].load_kernels()
        opened.synchronize()
        try:
            yield opened
        finally:
            opened.synchronize()
        return
    library = OwnThread()
    with emulated_ranks.emulated_memory(ranks, size, library) as (memory, _):
        yield ExpertRanks(memory, config, library, [])

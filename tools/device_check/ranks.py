"""The ranks of a communicator on one machine: a region of symmetric memory each, and collectives launched on all.

On a GPU all regions lie in its own memory, and each rank has a stream. In a rehearsal the ranks are devices of the host
emulator. Either way a rank's kernels wait for those of the others, as they would across GPUs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from device_check.collective_calls import Call, difference, hollow, sizes
from device_check.machine import Machine
from longcat_ops.comm import kernels
from longcat_ops.comm.providers.base import CONTROL_BYTES, warn_unclean
from longcat_ops.comm.providers.driver import POSIX_FD, Driver
from longcat_ops.comm.providers.mappings import Mappings
from longcat_ops.comm.rungs import device_memory
from longcat_ops.ops import emulated

OP = 7  # of every call, for the record
BEFORE_THE_WRAP = 0xFFFFFFF0  # epochs start here, 16 before they come to 0 again
HOLD_CYCLES = 80_000_000  # 40 ms or more: what the host needs to queue 800 launches


@dataclass
class Prepared:
    """A call with its memory on the machine, `times` times over. args: by repetition, then rank."""

    call: Call
    inputs: list[dict[str, Tensor]]
    outputs: list[dict[str, Tensor]]  # [times, ...], so that each repetition has its own
    args: list[list[Any]]


class Ranks:
    """memory: of each rank, uint8 [bytes]; multicast: an address of all of them, or 0. Counters of barriers start at
    `epoch`. timeout_s: of each wait."""

    def __init__(self, memory: Sequence[Tensor], multicast: int, real: bool, timeout_s: float, epoch: int) -> None:
        self.ranks, self.memory, self.device = len(memory), list(memory), memory[0].device
        blocks, threads = sizes(real).grid
        pinned = [device_memory.pinned_record() for _ in memory]
        self.records = [record for record, _ in pinned]
        pointers = [region.data_ptr() for region in memory]
        self.comms = [
            kernels.Comm(memory=(ctypes.c_void_p * kernels.MAX_RANKS)(*pointers), multicast=multicast or None,
                         record=kept.data_ptr(), timeout_ns=int(1e9 * timeout_s), rank=rank, ranks=self.ranks, op=OP,
                         blocks=blocks, threads=threads, fixed_order=not multicast)
            for rank, (_, kept) in enumerate(pinned)
        ]  # fmt: skip
        self._kept: list[Any] = [pinned]  # the emulator remembers whose memory it was
        if epoch:
            for region in self.memory:
                start_epochs(region, self.ranks, epoch)
        self.synchronize()

    def launch(self, rank: int, args: Any) -> None:
        raise NotImplementedError

    def synchronize(self) -> None:
        """Until everything that was launched has ended."""
        raise NotImplementedError

    def captured(self, prepared: Prepared) -> Callable[[], None]:
        """One repetition of a call, as a graph for each rank: a function that replays them all."""
        raise NotImplementedError

    def delay(self, rank: int) -> None:
        """Lets the next launch of a rank start some microseconds later."""

    def prepare(self, call: Call, times: int = 1) -> Prepared:
        inputs = [{name: t.to(self.device, copy=True) for name, t in given.items()} for given in call.inputs]
        outputs = [
            {name: hollow((times, *t.shape), t.dtype).to(self.device) for name, t in expected.items()}
            for expected in call.outputs
        ]
        args = [
            [call.args(comm=self.comms[rank], **call.given,
                       **{name: t.data_ptr() for name, t in inputs[rank].items()},
                       **{name: t[i].data_ptr() for name, t in outputs[rank].items()})
             for rank in range(self.ranks)]
            for i in range(times)
        ]  # fmt: skip
        prepared = Prepared(call, inputs, outputs, args)
        self._kept.append(prepared)
        self.synchronize()
        return prepared

    def refill(self, prepared: Prepared, call: Call) -> None:
        """Other inputs of the same shapes, in the same memory, and outputs as before any call."""
        prepared.call = call
        for rank in range(self.ranks):
            for name, tensor in prepared.inputs[rank].items():
                tensor.copy_(call.inputs[rank][name])
            for tensor in prepared.outputs[rank].values():
                tensor.copy_(hollow(tuple(tensor.shape), tensor.dtype))
        self.synchronize()

    def call(self, prepared: Prepared, i: int = 0, ranks: Sequence[int] | None = None) -> None:
        # NOTE: a device has few hardware queues, and streams may share one. All ranks' launches of a call come before
        # any of the next, so that no launch stands in a queue behind one that waits for it.
        for rank in range(self.ranks) if ranks is None else ranks:
            self.launch(rank, prepared.args[i][rank])

    def run(self, call: Call) -> None:
        """One call of all ranks. Raises AssertionError unless every rank has what it must have, bit for bit."""
        prepared = self.prepare(call)
        for rank, held in enumerate(call.held):
            self._at(rank, call, held).copy_(held.to(self.device))
        self.synchronize()
        self.call(prepared)
        self.synchronize()
        self.compare(prepared)

    def compare(self, prepared: Prepared) -> None:
        call = prepared.call
        assert not any(record.status for record in self.records), f"{call.name}: {self.reports()}"
        for rank in range(self.ranks):
            got = {name: prepared.outputs[rank][name] for name in call.outputs[rank]}
            expected = {name: t.expand(len(got[name]), *t.shape) for name, t in call.outputs[rank].items()}
            if call.left:
                got["symmetric"], expected["symmetric"] = self._at(rank, call, call.left[rank]), call.left[rank]
            for name, tensor in got.items():
                wrong = difference(tensor, expected[name].to(self.device))
                assert not wrong, f"{call.name}, rank {rank} of {self.ranks}, {name}: {wrong}"

    def _at(self, rank: int, call: Call, like: Tensor) -> Tensor:
        """The payload of a call in a rank's memory, with the shape of `like`."""
        at = call.given["payload"]
        return self.memory[rank][at : at + like.nbytes].view(like.dtype).view(like.shape)

    def statuses(self) -> list[str]:
        return [kernels.STATUS.get(record.status, "ok") for record in self.records]

    def reports(self) -> str:
        return "; ".join(
            f"rank {rank}: {status}, ranks {record.missing_ranks}"
            for rank, (status, record) in enumerate(zip(self.statuses(), self.records, strict=True))
            if record.status
        )


class StreamRanks(Ranks):
    """On a GPU."""

    def __init__(self, *arguments: Any) -> None:
        self.library = ctypes.CDLL(str(device_memory.LIBRARY))
        self.streams = [torch.cuda.Stream() for _ in arguments[0]]
        super().__init__(*arguments)

    def launch(self, rank: int, args: Any) -> None:
        kernels.call(self.library, args, self.streams[rank].cuda_stream)

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def delay(self, rank: int) -> None:
        with torch.cuda.stream(self.streams[rank]):
            torch.cuda._sleep(20_000)

    def captured(self, prepared: Prepared) -> Callable[[], None]:
        graphs = [torch.cuda.CUDAGraph() for _ in self.streams]
        for rank, (graph, stream) in enumerate(zip(graphs, self.streams, strict=True)):
            with torch.cuda.graph(graph, stream=stream):
                self.launch(rank, prepared.args[0][rank])

        def replay() -> None:
            for graph, stream in zip(graphs, self.streams, strict=True):
                with torch.cuda.stream(stream):
                    graph.replay()

        return replay

    def us_per_call(self, prepared: Prepared, calls: int) -> dict[str, Any]:
        """us of a call in a row of `calls`."""
        return queued_us(self.streams, lambda: self.call(prepared), calls, self.synchronize)


class EmulatedRanks(Ranks):
    """In the emulator, which runs everything that was launched when it is waited for."""

    def __init__(self, *arguments: Any) -> None:
        self.library = emulated.load()
        super().__init__(*arguments)

    def launch(self, rank: int, args: Any) -> None:
        self.library.lc_emu_device(ctypes.c_int32(rank), ctypes.byref(self.records[rank]))
        kernels.call(self.library, args)

    def synchronize(self) -> None:
        if self.library.lc_emu_synchronize() != 0:
            raise emulated.EmulatorError(self.library.lc_last_error().decode())

    def captured(self, prepared: Prepared) -> Callable[[], None]:
        return lambda: self.call(prepared)


def queued_us(
    streams: Sequence[Any], run: Callable[[], None], count: int, synchronize: Callable[[], None]
) -> dict[str, Any]:
    """us of a `run` in a row of `count`. queued: all were launched before the first began, so that the time is the
    device's."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for stream in reversed(streams):
        with torch.cuda.stream(stream):
            torch.cuda._sleep(HOLD_CYCLES)
    start.record(streams[0])
    for _ in range(count):
        run()
    queued = not start.query()
    end.record(streams[0])
    synchronize()
    return {"us": round(1e3 * start.elapsed_time(end) / count, 2), "queued": queued}


def start_epochs(region: Tensor, ranks: int, epoch: int, lines: int | None = None) -> None:
    """Sets a rank's counters as if `epoch` barriers had been, and `lines` calls in lines, None: as many
    (cuda/comm/rank_view.cuh)."""
    words = region[: CONTROL_BYTES // 2].view(torch.int32).view(-1, 64)
    words[:, 0] = _signed(epoch * ranks)
    words[:, 8 : 8 + ranks] = _signed(epoch)
    words[:, 32:36] = _signed(epoch)
    words[:, 34] = _signed(epoch if lines is None else lines)


def _signed(word: int) -> int:
    word %= 2**32
    return word - 2**32 if word >= 2**31 else word


@contextmanager
def open_ranks(machine: Machine, ranks: int, *, timeout_s: float = 10.0, epoch: int = 0) -> Iterator[Ranks]:
    """Without multicast."""
    size = sizes(machine.real).region(ranks)
    if machine.real:
        whole = torch.zeros(ranks, size, dtype=torch.uint8, device=machine.device)
        opened = StreamRanks(list(whole), 0, True, timeout_s, epoch)
        try:
            yield opened
        finally:
            opened.synchronize()
        return
    with emulated_memory(ranks, size) as (memory, _):
        yield EmulatedRanks(memory, 0, False, timeout_s, epoch)


@contextmanager
def open_multicast(machine: Machine) -> Iterator[Ranks]:
    """Ranks with a multicast address: one on a GPU, two in the emulator, which makes no such address for one. Raises
    DriverError or LongcatUnsupportedError where the driver makes no multicast object of one device."""
    if not machine.real:
        with emulated_memory(2, sizes(False).region(2)) as (regions, multicast):
            yield EmulatedRanks(regions, multicast, False, 10.0, 0)
        return
    size = sizes(True).region(1)
    driver = Driver(torch.cuda.current_device())
    maps = Mappings(driver, 1)
    try:
        unit = max(driver.memory_granularity(POSIX_FD), driver.multicast_granularity(1, size, POSIX_FD, True))
        maps.size = -(-size // unit) * unit
        maps.multicast.handle = driver.multicast_create(1, maps.size, POSIX_FD)
        maps.own.handle = driver.create(maps.size, POSIX_FD)
        maps.map(maps.own)
        driver.zero(maps.own.address, maps.size)
        maps.add_device()
        maps.bind()
        maps.map(maps.multicast)
        memory = driver.tensor(maps.own.address, size)
        yield StreamRanks([memory], maps.multicast.address, True, 10.0, 0)
    finally:
        torch.cuda.synchronize()
        warn_unclean(maps.release())


@contextmanager
def emulated_memory(ranks: int, size: int, library: Any = None) -> Iterator[tuple[list[Tensor], int]]:
    """library: the emulator's functions; None: on this thread."""
    library = library or emulated.load()
    pointers, multicast = (ctypes.c_void_p * ranks)(), ctypes.c_void_p()
    if library.lc_emu_open(ctypes.c_int32(ranks), ctypes.c_size_t(size), pointers, ctypes.byref(multicast)) != 0:
        raise emulated.EmulatorError(library.lc_last_error().decode())
    try:
        buffers = [(ctypes.c_uint8 * size).from_address(pointer) for pointer in pointers]
        yield [torch.frombuffer(buffer, dtype=torch.uint8) for buffer in buffers], multicast.value
    finally:
        library.lc_emu_close()

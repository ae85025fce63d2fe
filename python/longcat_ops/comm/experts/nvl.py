"""The backend `nvl`: this library's kernels between GPUs behind one NVLink switch. They have not run on GPUs yet.

Ranks exchange where their rows of each expert begin, so that each row is written once, to its final place on the GPU
of its expert (docs/expert_parallel.md). Nothing is read on the host, and graphs can hold every call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import LongcatCommError
from ...types import BLOCK, Plan
from .. import expert_kernels as kernels
from ..expert_kernels import Matrix, Shape
from ..kernels import MAX_RANKS, AbortArgs, Comm
from ..providers.exchange import StoreExchange
from ..rungs import device
from ..rungs.base import Session
from ..rungs.device_memory import Region, aligned, load, open_memory
from ..sizes import expert_bytes, expert_parts
from .base import Buffer, ExpertCaps, ExpertConfig, ExpertWay


def objection(place: torch.device) -> str:
    return device.objection("p2p", place)


def build(session: Session) -> NvlExperts:
    """Collective. Raises LongcatCommError with the reason of each provider of memory."""
    config = session.config
    assert isinstance(config, ExpertConfig)
    if not 2 <= session.ranks <= MAX_RANKS:
        raise LongcatCommError(f"ranks is {session.ranks}, and the kernels take 2 to {MAX_RANKS}")
    exchange = StoreExchange(session.store, session.rank, session.ranks, "nvl", config.timeout_s or 30.0)
    try:
        size = expert_bytes(session.ranks, backend="nvl", **config.sizes())
        memory = open_memory("p2p", session, exchange, size)
        try:
            made = NvlExperts(Region(session, memory, load()))
            memory.holder.synchronize()  # the zeroes are there
            memory.compare_parts(exchange)
            made.load_kernels()
            return made
        except BaseException:
            memory.close()
            raise
    finally:
        exchange.close()


class NvlExperts(ExpertWay):
    """Kernels on the current stream."""

    def __init__(self, region: Region) -> None:
        session, memory = region.session, region.memory
        c = session.config
        assert isinstance(c, ExpertConfig)
        self.region, self.watch, self.config = region, session.watch.channels[0], c
        self.shape = Shape(session.ranks, c.num_ffn_experts, c.top_k, c.max_tokens, c.hidden, c.payload)
        sizes = expert_parts(session.ranks, backend="nvl", **c.sizes())
        self.offsets = {name: memory.allocate(name, size) for name, size in sizes.items()}
        for name in ("lines", "flags"):
            memory.tensor[self.offsets[name] :][: sizes[name]].zero_()
        place = memory.tensor.device
        self.table = torch.zeros(self.shape.table_bytes(c.buffers) // 8, dtype=torch.int64, device=place)
        self.counters = self.table[kernels.COUNTER_BYTE // 8 :][: kernels.COUNTERS]
        self.buffers = [self._buffer(b) for b in range(c.buffers)]
        self.caps = ExpertCaps("nvl", self.shape.local, self.shape.received, True, 0, c.buffers, memory.bytes)

    def _buffer(self, b: int) -> Buffer:
        s, memory = self.shape, self.region.memory.tensor

        def part(name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
            at = self.offsets[f"{name} {b}"]
            return memory[at : at + rows * columns * dtype.itemsize].view(dtype).view(rows, columns)

        fp8 = s.payload == "fp8"
        return Buffer(
            part("rows", s.received, s.hidden, torch.float8_e4m3fn if fp8 else torch.bfloat16),
            part("scales", s.received, -(-s.hidden // BLOCK), torch.float32) if fp8 else None,
            torch.zeros(s.local + 1, dtype=torch.int32, device=memory.device),  # no rows, if the first call is given up
            part("returned", s.returned, s.hidden, torch.bfloat16),
        )

    def dispatch_send(self, buffer: int, x: Tensor, ids: Tensor, plan: Plan) -> None:
        offsets = self.buffers[buffer].offsets
        self._launch(kernels.CountsArgs, buffer, plan_offsets=plan.offsets, tokens=len(x), offsets=offsets)
        self._launch(kernels.DispatchArgs, buffer, x=Matrix.of(aligned(x)), ids=ids, row_of=plan.row_of)

    def dispatch_recv(self, buffer: int, q: Tensor, s: Tensor | None, offsets: Tensor) -> None:
        self._launch(kernels.WaitArgs, buffer, traffic=kernels.DISPATCH)
        own = self.buffers[buffer]
        _copied((q, own.q), (s, own.s), (offsets, own.offsets))

    def combine_send(self, buffer: int, y: Tensor) -> None:
        self._launch(kernels.CombineArgs, buffer, y=Matrix.of(aligned(y)))

    def combine_recv(self, buffer: int, returned: Tensor) -> None:
        self._launch(kernels.WaitArgs, buffer, traffic=kernels.COMBINE)
        _copied((returned, self.buffers[buffer].returned))

    def load_kernels(self) -> None:
        """Loads every kernel: loading one may wait for those that run, and those for other ranks."""
        comm = Comm.from_buffer_copy(self.region.comm)
        comm.load_only = 1
        x = Matrix(self.region.memory.pointers[self.region.memory.rank], 2, 0, self.shape.hidden, self.shape.hidden, 1)
        y = Matrix.of(self.buffers[0].returned[:0])
        y.rows = self.shape.received
        self._launch(kernels.CountsArgs, 0, comm=comm, tokens=0)
        self._launch(kernels.DispatchArgs, 0, comm=comm, x=x)
        self._launch(kernels.WaitArgs, 0, comm=comm, traffic=kernels.DISPATCH)
        self._launch(kernels.CombineArgs, 0, comm=comm, y=y)
        self.region.call(AbortArgs(comm=comm))  # while others wait, or in a capture, it is too late

    def _launch(self, args: type, buffer: int, comm: Comm | None = None, **values: Any) -> None:
        s = self.shape
        if comm is None:
            comm = Comm.from_buffer_copy(self.region.comm)
            comm.op = self.watch.post.call % 2**31
        of_buffer = {name: self.offsets.get(f"{name} {buffer}", 0) for name in ("rows", "scales", "returned")}
        experts = kernels.Experts(
            comm, buffer, s.experts, s.top_k, kernels.PAYLOADS[s.payload], s.max_tokens, s.hidden,
            self.offsets["lines"], self.offsets["flags"], **of_buffer, tables=self.table.data_ptr(),
        )  # fmt: skip
        given = {name: v.data_ptr() if isinstance(v, Tensor) else v for name, v in values.items()}
        self.region.call(args(experts=experts, **given))

    def refused(self, rank_local: bool) -> None:
        """The others may wait for this rank in a kernel: end their waits."""
        if rank_local:
            self.abort()

    def poll(self) -> None:
        self.region.poll(self.watch)

    def abort(self) -> None:
        self.region.abort()

    def close(self) -> None:
        self.region.close()


def _copied(*pairs: tuple[Tensor | None, Tensor | None]) -> None:
    """(to, from). A compiled graph may pass other memory than that of the buffer."""
    for to, source in pairs:
        if to is not None and source is not None and to.data_ptr() != source.data_ptr():
            to.copy_(source)

"""The memory that the channels of one communicator on a device rung share, and its first small all-reduce."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import torch
from torch import Tensor

from ... import _library
from ...errors import LongcatCommError, LongcatTimeoutError
from .. import kernels
from ..providers import torch_symm, vmm
from ..providers.base import CONTROL_BYTES, SymmetricMemory
from ..providers.exchange import Exchange
from ..sizes import LINE_BYTES, PROVIDERS, parts
from ..watch import ChannelWatch
from .base import Session

THREADS = 512  # of a block
LIBRARY = _library.PACKAGE / "liblongcat_kernels.so"


def load() -> ctypes.CDLL:
    """The C functions."""
    return ctypes.CDLL(str(LIBRARY), mode=os.RTLD_LOCAL)


def open_memory(name: str, session: Session, exchange: Exchange, size: int) -> SymmetricMemory:
    """`size` bytes of each rank, by the first provider that has what the rung `name` needs. Collective. Raises
    LongcatCommError."""
    config, reasons = session.config, []
    for provider in PROVIDERS[1:] if config.provider == "auto" else (config.provider,):
        inner = exchange.scope(provider)
        if provider == "torch":
            found = torch_symm.open_memory(inner, session.device, size, group=session.group, smoke=smoke)
        else:
            found = vmm.open_memory(inner, session.device.index, size, smoke=smoke)
        memory, why = found.memory, found.why_not.get(name, "")
        if memory is not None and not why:
            if name == "p2p" and memory.multicast:
                memory.drop_multicast()
            return memory
        if memory is not None:
            memory.close()
        reasons.append(f"{provider}: {why}")
    raise LongcatCommError("; ".join(reasons))


def smoke(memory: SymmetricMemory, exchange: Exchange) -> None:
    """One small all-reduce over a region that is not in use yet. Raises LongcatCommError if it fails or is wrong."""
    record, kept = pinned_record()
    comm = comm_of(memory, kept, blocks=4, fixed_order=False, timeout_s=exchange.timeout_s)
    x = torch.full((4096,), memory.rank + 1.0, device=memory.tensor.device)
    out, stream = torch.empty_like(x), torch.cuda.current_stream()
    args = kernels.AllReduceArgs(comm=comm, input=x.data_ptr(), out=out.data_ptr(), payload=CONTROL_BYTES,
                                 elements=x.numel(), dtype=kernels.DTYPES[x.dtype])  # fmt: skip
    kernels.call(load(), args, stream.cuda_stream)
    stream.synchronize()
    if record.status:
        text = f"{kernels.STATUS[record.status]}, ranks {record.missing_ranks}"
        raise LongcatCommError(f"smoke test: {text}, in stage `{kernels.STAGES[record.stage]}`")
    right = memory.ranks * (memory.ranks + 1) / 2
    if not bool((out == right).all()):
        raise LongcatCommError(f"smoke test: the sum is {out.unique().tolist()[:4]}, expected {right}")


def pinned_record() -> tuple[kernels.Record, Tensor]:
    """A record that the GPU reaches, and the pinned memory that holds it."""
    kept = torch.zeros(ctypes.sizeof(kernels.Record), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    return kernels.Record.from_address(kept.data_ptr()), kept


def comm_of(memory: SymmetricMemory, record: Tensor, *, blocks: int, fixed_order: bool, timeout_s: float) -> Any:
    """lc_comm of channel 0."""
    return kernels.Comm(
        memory=(ctypes.c_void_p * kernels.MAX_RANKS)(*memory.pointers),
        multicast=memory.multicast or None,
        record=record.data_ptr(),
        timeout_ns=int(timeout_s * 1e9),
        rank=memory.rank,
        ranks=memory.ranks,
        blocks=blocks,
        threads=THREADS,
        fixed_order=fixed_order,
    )


class Region:
    """Symmetric memory, and how a rank launches kernels over it. library: the C functions. session: whose `config` has
    the rest."""

    def __init__(self, session: Session, memory: SymmetricMemory, library: Any) -> None:
        config = session.config
        self.session, self.memory, self.library = session, memory, library
        self.record, self._kept = pinned_record()
        self.side = torch.cuda.Stream(priority=-1) if memory.tensor.is_cuda else None  # nothing else waits on it
        self.comm = comm_of(memory, self._kept, blocks=config.num_blocks, fixed_order=config.deterministic,
                            timeout_s=config.timeout_s)  # fmt: skip

    def call(self, args: Any, *, aside: bool = False) -> None:
        """One C function on the current stream of the memory's device, or on the stream that nothing waits on."""
        if not self.memory.tensor.is_cuda:
            kernels.call(self.library, args)
            return
        with torch.cuda.device(self.memory.tensor.device):  # a new thread starts with another one
            stream = self.side if aside else torch.cuda.current_stream()
            kernels.call(self.library, args, stream.cuda_stream)

    def poll(self, watch: ChannelWatch) -> None:
        """Raises what a kernel has recorded, as a failure of `watch`."""
        record = self.record
        if not record.status:
            return
        status, missing, stage = kernels.STATUS[record.status], record.missing_ranks, kernels.STAGES[record.stage]
        op = watch.op or "a collective"
        slot = f"channel {record.channel}, block {record.block}, stage `{stage}`"
        if status == "timeout":
            if stage in kernels.EXPERT_STAGES:  # a buffer, or a parity of lines, has older calls than the last
                last = f"call {record.seen} is the newest here" if record.seen else "no call is here yet"
                text = f"has not sent its {stage} of call {record.expected}; {last}"
            else:
                text = f"has come to barrier {record.seen}, not to {record.expected}"
            if error := watch.find_cause(0.0, None):  # a rank that refused a call, or failed, says more
                raise watch.watch.poison(error)
            seen = dict.fromkeys(missing, text)
            raise watch.watch.poison(
                LongcatTimeoutError(watch.watch.rank, op, slot, record.op, seen, "found by the kernel")
            )
        text = f"{status}, ranks {missing}, in {slot}, call {record.op}"
        if status == "a peer aborted":  # that one knows why, and may have said so
            raise watch.disagree(text)
        raise watch.watch.poison(LongcatCommError(f"{op}: {text}."))

    def abort(self) -> None:
        self.record.host_abort = 1  # ends the waits of this rank; the kernel ends those of its peers
        if not self.memory.closed:
            self.call(kernels.AbortArgs(comm=self.comm), aside=True)

    def close(self) -> None:
        """Waits for the kernels that this rank has launched: each has a deadline, unless there is none at all."""
        if self.memory.closed:
            return
        if self.session.watch.failure is not None:
            self.record.host_abort = 1
        try:
            self.memory.holder.synchronize()
        finally:
            self.memory.close()


class Shared(Region):
    """What the channels of one communicator share."""

    def __init__(self, name: str, session: Session, memory: SymmetricMemory, library: Any) -> None:
        super().__init__(session, memory, library)
        self.name = name
        sizes = parts(memory.ranks, session.config.max_bytes, session.config.num_channels)
        self.offsets = {part: memory.allocate(part, size) for part, size in sizes.items()}
        self.used = 0  # bytes of what `empty` handed out

    def load_kernels(self) -> None:
        """Loads every kernel that a call may launch. Loading one may wait for those that run: two ranks that wait for
        each other in two channels would never end."""
        comm = kernels.Comm.from_buffer_copy(self.comm)
        comm.load_only = 1
        for dtype in kernels.DTYPES.values():
            self.call(kernels.AllReduceArgs(comm=comm, elements=1, dtype=dtype))
            self.call(kernels.ReduceScatterArgs(comm=comm, width=1, dtype=dtype))
            self.call(kernels.LowLatencyArgs(comm=comm, elements=1, max_bytes=LINE_BYTES, dtype=dtype))
            for lines in (0, 1):
                self.call(kernels.NormArgs(comm=comm, rows=1, width=8, max_bytes=LINE_BYTES, dtype=dtype, lines=lines))
        self.call(kernels.AllGatherArgs(comm=comm))
        self.call(kernels.AbortArgs(comm=comm))

    def place(self, tensor: Tensor) -> int | None:
        """The offset of a tensor that `empty` handed out, or of a part of one; None for any other."""
        start = self.memory.pointers[self.memory.rank] + self.offsets["empty"]
        at = tensor.data_ptr() - start
        inside = at >= 0 and at + tensor.nbytes <= self.session.config.max_bytes
        return at + self.offsets["empty"] if inside else None


def aligned(tensor: Tensor, *, read: bool = True) -> Tensor:
    """The tensor, or one like it on 16 bytes."""
    if tensor.data_ptr() % 16 == 0:
        return tensor
    return tensor.clone() if read else torch.empty_like(tensor)

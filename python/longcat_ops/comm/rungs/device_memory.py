"""The memory that the channels of one communicator on a device rung share, and its first small all-reduce."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import torch
from torch import Tensor

from ... import _library
from ...errors import LongcatCommError
from .. import kernels
from ..providers import torch_symm, vmm
from ..providers.base import CONTROL_BYTES, SymmetricMemory
from ..providers.exchange import Exchange
from ..sizes import LINE_BYTES, PROVIDERS, communicator_bytes, parts
from .base import Session

THREADS = 512  # of a block
LIBRARY = _library.PACKAGE / "liblongcat_kernels.so"


def load() -> ctypes.CDLL:
    """The C functions."""
    return ctypes.CDLL(str(LIBRARY), mode=os.RTLD_LOCAL)


def open_memory(name: str, session: Session, exchange: Exchange) -> SymmetricMemory:
    """The memory of the first provider that has what the rung needs. Collective. Raises LongcatCommError."""
    config, reasons = session.config, []
    size = communicator_bytes(session.ranks, config.max_bytes, config.num_channels)
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


class Shared:
    """What the channels of one communicator share. library: the C functions."""

    def __init__(self, name: str, session: Session, memory: SymmetricMemory, library: Any) -> None:
        config = session.config
        self.name, self.session, self.memory, self.library = name, session, memory, library
        self.record, self._kept = pinned_record()
        sizes = parts(memory.ranks, config.max_bytes, config.num_channels)
        self.offsets = {part: memory.allocate(part, size) for part, size in sizes.items()}
        self.side = torch.cuda.Stream(priority=-1) if memory.tensor.is_cuda else None  # nothing else waits on it
        self.used = 0  # bytes of what `empty` handed out
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

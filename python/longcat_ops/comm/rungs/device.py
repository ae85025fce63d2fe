"""The rungs `multimem` and `p2p`: this library's kernels over symmetric memory. They have not run on GPUs yet."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import torch
from torch import Tensor

from ... import _library
from ...errors import LongcatCommError, LongcatShapeError, LongcatTimeoutError, message
from ...perf import comm as choice
from .. import kernels
from ..providers import torch_symm, vmm
from ..providers.base import ALIGNMENT, CONTROL_BYTES, SymmetricMemory, round_up
from ..providers.exchange import Exchange, StoreExchange
from ..sizes import LINE_BYTES, PROVIDERS, communicator_bytes, parts
from .base import Caps, Rung, Session

THREADS = 512  # of a block
LIBRARY = _library.PACKAGE / "liblongcat_kernels.so"


def objection(name: str, device: torch.device) -> str:
    """Why this rank cannot use the rung; "" if it can. Calls no collective."""
    if device.type != "cuda":
        return "CUDA tensors only: this process group has no GPU"
    supported, text = _library.load().device_supported(device.index)
    if not supported:
        return text
    return "" if LIBRARY.exists() else "device kernels are not in this build"


def build(name: str, session: Session) -> DeviceRung:
    """The rung over the memory of the first provider that has what it needs. Collective. Raises LongcatCommError with
    the reason of each provider."""
    config = session.config
    for what, number, most in (("blocks", config.num_blocks, kernels.MAX_BLOCKS),
                               ("channels", config.num_channels, kernels.MAX_CHANNELS)):  # fmt: skip
        if number > most:
            raise LongcatCommError(f"num_{what} is {number}, and the kernels take at most {most}")
    exchange = StoreExchange(session.store, session.rank, session.ranks, name, config.timeout_s or 30.0)
    try:
        shared = Shared(name, session, _memory(name, session, exchange), load())
        shared.memory.compare_parts(exchange)
        return DeviceRung(shared, 0)
    finally:
        exchange.close()


def load() -> ctypes.CDLL:
    """The C functions."""
    return ctypes.CDLL(str(LIBRARY), mode=os.RTLD_LOCAL)


def _memory(name: str, session: Session, exchange: Exchange) -> SymmetricMemory:
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

    def place(self, tensor: Tensor) -> int | None:
        """The offset of a tensor that `empty` handed out, or of a part of one; None for any other."""
        start = self.memory.pointers[self.memory.rank] + self.offsets["empty"]
        at = tensor.data_ptr() - start
        inside = at >= 0 and at + tensor.nbytes <= self.session.config.max_bytes
        return at + self.offsets["empty"] if inside else None


class DeviceRung(Rung):
    """Kernels on the current stream. A tensor that `empty` handed out is used where it lies, which must be the same
    place on every rank; the kernel copies any other in and out. The host waits in `barrier` alone: what failed is found
    by the next call, or by `check`."""

    reads_rows = False

    def __init__(self, shared: Shared, index: int) -> None:
        session, config = shared.session, shared.session.config
        self.shared, self.index = shared, index
        self.watch = session.watch.channels[index]
        self.caps = Caps(shared.name, (shared.memory.tensor.device.type,), config.deterministic or shared.name == "p2p",
                         True, True, config.num_blocks, config.num_channels, config.max_bytes,
                         shared.memory.bytes)  # fmt: skip
        self._copy, self._lines = shared.offsets[f"copy {index}"], shared.offsets[f"lines {index}"]
        self._calls = 0

    def all_reduce(self, x: Tensor, out: Tensor) -> None:
        if not x.numel():
            return
        given = dict(elements=x.numel(), dtype=kernels.DTYPES[x.dtype])
        at, in_place = self.shared.place(out), x.data_ptr() == out.data_ptr()
        if self._in_lines("all_reduce", x):
            self._launch(kernels.LowLatencyArgs, input=x, out=out, lines=self._lines, max_bytes=LINE_BYTES, **given)
        elif at is not None:
            self._launch(kernels.AllReduceArgs, input=0 if in_place else x, payload=at, **given)
        else:
            self._launch(kernels.AllReduceArgs, input=x, out=out, payload=self._copy, **given)

    def reduce_scatter(self, x: Tensor, out: Tensor, rows: Any) -> None:
        at = self.shared.place(x)
        given = dict(input=x, payload=self._copy) if at is None else dict(payload=at)
        width = x.numel() // max(len(x), 1)
        self._launch(kernels.ReduceScatterArgs, out=out, width=width, dtype=kernels.DTYPES[x.dtype],
                     **self._rows(rows, len(x), len(out)), **given)  # fmt: skip

    def all_gather(self, x: Tensor, out: Tensor, rows: Any) -> None:
        at, row_bytes = self.shared.place(out), out.nbytes // max(len(out), 1)
        given = dict(input=x, out=out, payload=self._copy) if at is None else dict(input=x, payload=at)
        if at is not None and self.shared.place(x) is not None:
            given["input"] = 0 if self._is_own_place(x, out, rows, row_bytes) else x
        self._launch(kernels.AllGatherArgs, row_bytes=row_bytes, **self._rows(rows, len(out), len(x)), **given)

    def broadcast_(self, x: Tensor, src: int) -> None:
        at, ranks = self.shared.place(x), self.shared.memory.ranks
        given = dict(input=x, out=x, payload=self._copy) if at is None else dict(payload=at)
        rows = [int(rank == src) for rank in range(ranks)]
        self._launch(kernels.AllGatherArgs, row_bytes=x.nbytes, rows=rows, max_rows=1, **given)

    def all_reduce_residual_rmsnorm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Any, residual_out: Tensor
    ) -> None:
        rows, width = x.shape
        if not rows:
            return
        if width % 8:
            self._norm_apart(x, residual, weight, eps, out, residual_out)
            return
        # NOTE: which kernel runs may not depend on one rank's addresses, so tensors off 16 bytes go through others.
        targets = [residual_out, out[0] if isinstance(out, tuple) else out]
        h, result = written = [_aligned(target, read=False) for target in targets]
        given: dict[str, Any] = dict(input=_aligned(x), residual=_aligned(residual), weight=_aligned(weight), eps=eps)
        given |= dict(residual_out=h)
        if isinstance(out, tuple):
            s = out[1]
            given |= dict(q=result, s=s, s_row_stride=s.stride(0), s_column_stride=s.stride(1))
        else:
            given["y"] = result
        lines = self._in_lines("all_reduce_residual_rmsnorm", x)
        given |= dict(payload=self._lines, lines=1) if lines else dict(payload=self._copy)
        self._launch(kernels.NormArgs, rows=rows, width=width, max_bytes=LINE_BYTES, dtype=kernels.DTYPES[x.dtype],
                     **given)  # fmt: skip
        for target, source in zip(targets, written, strict=True):
            if target is not source:
                target.copy_(source)

    def _norm_apart(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, y: Tensor, h: Tensor) -> None:
        total = torch.empty_like(x)
        self.all_reduce(x, total)
        torch.add(total, residual, out=h)
        torch.ops.longcat_ops.rms_norm(h, weight, eps, y)

    def barrier(self) -> None:
        rows = [0] * self.shared.memory.ranks
        self._launch(kernels.AllGatherArgs, row_bytes=1, rows=rows, payload=self._copy)
        if self.shared.memory.tensor.is_cuda and not torch.cuda.is_current_stream_capturing():
            torch.cuda.current_stream().synchronize()
            self.poll()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        shared, most = self.shared, self.caps.max_bytes
        size = torch.Size(shape).numel() * dtype.itemsize
        if shared.used + size > most:
            got = f"{size} bytes, and {shared.used} are in use"
            raise LongcatShapeError(message("empty", "shape", got, f"at most {most} (max_bytes) in all"))
        at = shared.offsets["empty"] + shared.used
        shared.used = round_up(shared.used + size, ALIGNMENT)
        return shared.memory.tensor[at : at + size].view(dtype).view(shape)

    def channel(self, index: int) -> DeviceRung:
        return DeviceRung(self.shared, index)

    def poll(self) -> None:
        record = self.shared.record
        if not record.status:
            return
        watch, status, missing = self.watch.watch, kernels.STATUS[record.status], record.missing_ranks
        op = f"call {record.op} of channel {record.channel}"
        slot = f"channel {record.channel}, block {record.block}, stage `{kernels.STAGES[record.stage]}`"
        if status == "timeout":
            seen = {rank: f"has come to barrier {record.seen}" for rank in missing}
            raise watch.poison(LongcatTimeoutError(watch.rank, op, slot, record.expected, seen, "found by the kernel"))
        raise watch.poison(LongcatCommError(f"{op}: {status}, ranks {missing}, in {slot}."))

    def refused(self, rank_local: bool) -> None:
        """The others may wait for this rank in a kernel: end their waits."""
        if rank_local:
            self.abort()

    def abort(self) -> None:
        shared = self.shared
        shared.record.host_abort = 1  # ends the waits of this rank; the kernel ends those of its peers
        if not shared.memory.closed:
            stream = shared.side.cuda_stream if shared.side is not None else 0
            kernels.call(shared.library, kernels.AbortArgs(comm=shared.comm), stream)

    def close(self) -> None:
        self.shared.memory.close()

    def _in_lines(self, collective: str, x: Tensor) -> bool:
        multicast = bool(self.shared.memory.multicast)
        return choice.choose(collective, self.shared.memory.ranks, x.nbytes, multicast=multicast).form == "low latency"

    def _rows(self, rows: Any, length: int, own: int) -> dict[str, Any]:
        if isinstance(rows, Tensor):
            return dict(device_rows=rows, max_rows=length, max_own_rows=own)
        return dict(rows=list(rows), max_rows=sum(rows))

    def _is_own_place(self, x: Tensor, out: Tensor, rows: Any, row_bytes: int) -> bool:
        if isinstance(rows, Tensor):  # the host does not know the place
            return False
        return x.data_ptr() == out.data_ptr() + sum(rows[: self.shared.memory.rank]) * row_bytes

    def _launch(self, args: type, **values: Any) -> None:
        """One kernel on the current stream. Tensors stand for their addresses."""
        self._calls += 1
        comm = kernels.Comm.from_buffer_copy(self.shared.comm)
        comm.channel, comm.op = self.index, self._calls % 2**31
        given = {name: v.data_ptr() if isinstance(v, Tensor) else v for name, v in values.items()}
        is_cuda = self.shared.memory.tensor.is_cuda
        kernels.call(self.shared.library, args(comm=comm, **given),
                     torch.cuda.current_stream().cuda_stream if is_cuda else 0)  # fmt: skip


def _aligned(tensor: Tensor, *, read: bool = True) -> Tensor:
    """The tensor, or one like it on 16 bytes."""
    if tensor.data_ptr() % 16 == 0:
        return tensor
    return tensor.clone() if read else torch.empty_like(tensor)

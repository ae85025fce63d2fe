"""The rungs `multimem` and `p2p`: this library's kernels over symmetric memory. They have not run on GPUs yet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import _library
from ...errors import LongcatCommError, LongcatShapeError, message
from ...perf import comm as choice
from .. import kernels
from ..providers.base import ALIGNMENT, round_up
from ..providers.exchange import StoreExchange
from ..sizes import LINE_BYTES, communicator_bytes
from .base import Caps, Rung, Session
from .device_memory import LIBRARY, Shared, aligned, load, open_memory


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
    for what, number, least, most in (
        ("ranks", session.ranks, 2, kernels.MAX_RANKS),
        ("num_blocks", config.num_blocks, 1, kernels.MAX_BLOCKS),
        ("num_channels", config.num_channels, 1, kernels.MAX_CHANNELS),
    ):
        if not least <= number <= most:
            raise LongcatCommError(f"{what} is {number}, and the kernels take {least} to {most}")
    exchange = StoreExchange(session.store, session.rank, session.ranks, name, config.timeout_s or 30.0)
    try:
        size = communicator_bytes(session.ranks, config.max_bytes, config.num_channels)
        memory = open_memory(name, session, exchange, size)
        try:
            shared = Shared(name, session, memory, load())
            memory.compare_parts(exchange)
            shared.load_kernels()
            return DeviceRung(shared, 0)
        except BaseException:
            memory.close()
            raise
    finally:
        exchange.close()


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
        if at is not None and self._is_own_place(x, out, rows, row_bytes):
            given["input"] = 0
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
        h, result = written = [aligned(target, read=False) for target in targets]
        given: dict[str, Any] = dict(input=aligned(x), residual=aligned(residual), weight=aligned(weight), eps=eps)
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
        torch.ops.longcat_ops.rms_norm(h, weight, eps, None, y, None)

    def barrier(self) -> None:
        rows = [0] * self.shared.memory.ranks
        self._launch(kernels.AllGatherArgs, row_bytes=1, rows=rows, payload=self._copy)
        if self.shared.memory.tensor.is_cuda and not torch.cuda.is_current_stream_capturing():
            torch.cuda.current_stream(self.shared.memory.tensor.device).synchronize()
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
        self.shared.poll(self.watch)

    def refused(self, rank_local: bool) -> None:
        """The others may wait for this rank in a kernel: end their waits."""
        if rank_local:
            self.abort()

    def abort(self) -> None:
        self.shared.abort()

    def close(self) -> None:
        self.shared.close()

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
        """One kernel. Tensors stand for their addresses."""
        place = self.shared.memory.tensor.device
        for name, value in values.items():
            if isinstance(value, Tensor) and value.device != place:
                raise LongcatShapeError(message(self.watch.op, name, f"on {value.device}", f"on {place}"))
        comm = kernels.Comm.from_buffer_copy(self.shared.comm)
        comm.channel, comm.op = self.index, self.watch.post.call % 2**31
        given = {name: v.data_ptr() if isinstance(v, Tensor) else v for name, v in values.items()}
        self.shared.call(args(comm=comm, **given))

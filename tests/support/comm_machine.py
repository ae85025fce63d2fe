"""Several emulated GPUs with symmetric memory, and collectives launched on all of them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from device_check.collective_calls import PAYLOAD, in_order
from device_check.ranks import OP, start_epochs
from longcat_ops.comm import kernels
from longcat_ops.comm.providers.base import SymmetricMemory
from longcat_ops.ops import emulated
from support.emulated_kernels import apart, copied, scales

LINES = 128 * 1024  # where lines of data and flag lie
MAX_LINE_BYTES = 1024  # of a message in lines


class Machine:
    """`ranks` devices. `memory[r]` is the symmetric memory of rank r as bytes."""

    def __init__(self, ranks: int, bytes: int, multicast: bool, blocks: int, threads: int, fixed_order: bool) -> None:
        self.library = emulated.load()
        self.ranks, self.multicast = ranks, multicast
        pointers, mc = (ctypes.c_void_p * ranks)(), ctypes.c_void_p()
        self._checked(
            self.library.lc_emu_open(ctypes.c_int32(ranks), ctypes.c_size_t(bytes), pointers, ctypes.byref(mc))
        )
        self.records = [kernels.Record() for _ in range(ranks)]
        self.memory = [self._bytes(pointer, bytes) for pointer in pointers]
        self.comms = [
            kernels.Comm(
                memory=(ctypes.c_void_p * kernels.MAX_RANKS)(*pointers),
                multicast=mc.value if multicast else None,
                record=ctypes.addressof(self.records[rank]),
                timeout_ns=10**10,
                rank=rank,
                ranks=ranks,
                op=OP,
                blocks=blocks,
                threads=threads,
                fixed_order=fixed_order,
            )
            for rank in range(ranks)
        ]
        self.hold = False  # queue launches, and run none
        self._kept: list[Any] = []  # the emulator remembers whose memory it was

    @staticmethod
    def _bytes(pointer: int, count: int) -> Tensor:
        return torch.frombuffer((ctypes.c_uint8 * count).from_address(pointer), dtype=torch.uint8)

    def _checked(self, status: int) -> None:
        if status != 0:
            raise emulated.EmulatorError(self.library.lc_last_error().decode())

    def symmetric(self, rank: int) -> SymmetricMemory:
        """The memory as a provider gives it to a rank."""
        holder = SimpleNamespace(release=lambda: [], release_multicast=lambda: [], synchronize=lambda: None)
        comm = self.comms[rank]
        return SymmetricMemory(rank=rank, pointers=tuple(comm.memory[: self.ranks]), multicast=comm.multicast or 0,
                               tensor=self.memory[rank], provider="emulator", holder=holder)  # fmt: skip

    def start_epochs(self, epoch: int, lines: int | None = None) -> None:
        """Sets the counters of every rank, as device_check.ranks says."""
        for region in self.memory:
            start_epochs(region, self.ranks, epoch, lines)

    def launch(self, args: type, rank: int, **values: Any) -> None:
        """Queues one collective on one rank's device. Tensors stand for their addresses."""
        given = {k: (v.data_ptr() if isinstance(v, Tensor) else v) for k, v in values.items()}
        self.start(rank, args(comm=self.comms[rank], **given), values)

    def start(self, rank: int, args: Any, kept: Any) -> None:
        """Queues a function of the C ABI on one rank's device. kept: the tensors whose addresses stand in args."""
        self._kept.append(kept)
        self.library.lc_emu_device(ctypes.c_int32(rank), ctypes.byref(self.records[rank]))
        try:
            kernels.call(self.library, args)
        except kernels.LongcatError as error:
            raise emulated.EmulatorError(str(error)) from None

    def synchronize(self) -> None:
        """Runs what is queued."""
        if self.hold:
            return
        self._checked(self.library.lc_emu_synchronize())

    def statuses(self) -> list[str]:
        return [kernels.STATUS.get(record.status, "ok") for record in self.records]


@contextmanager
def machine(ranks: int, *, bytes: int = 256 * 1024, multicast: bool = True, blocks: int = 2, threads: int = 32,
            fixed_order: bool = False) -> Iterator[Machine]:  # fmt: skip
    try:
        yield Machine(ranks, bytes, multicast, blocks, threads, fixed_order)
    finally:
        emulated.load().lc_emu_close()


def inputs(ranks: int, count: int, dtype: torch.dtype, exact: bool, seed: int = 0) -> list[Tensor]:
    """Integers whose sums every dtype represents exactly, or random numbers."""
    g = torch.Generator().manual_seed(seed)
    if exact:
        return [torch.randint(-8, 9, (count,), generator=g).to(dtype) for _ in range(ranks)]
    return [torch.randn(count, generator=g).to(dtype) for _ in range(ranks)]


def assert_sum(got: Tensor, tensors: Sequence[Tensor], *, fixed_order: bool) -> None:
    """Bit for bit in a fixed order; else within the rounding of float32 sums and one of the result."""
    if fixed_order:
        assert torch.equal(got, in_order(tensors))
        return
    wide = torch.stack([t.double() for t in tensors])
    exact, magnitude = wide.sum(0), wide.abs().sum(0)
    last = torch.finfo(got.dtype).eps / 2 * exact.abs() * 1.001
    bound = last + len(tensors) * torch.finfo(torch.float32).eps / 2 * magnitude
    assert bool(((got.double() - exact).abs() <= bound).all())


def local(tensor: Tensor, offset: int = 0) -> Tensor:
    """A copy of a flat tensor, `offset` elements behind a 64-byte boundary, fillers around it."""
    return apart(1, len(tensor), tensor.dtype, offset=offset)[0].copy_(tensor)


def hollow(count: int, dtype: torch.dtype, offset: int = 0) -> Tensor:
    return apart(1, count, dtype, offset=offset)[0]


FORMS = {"multicast": (True, False), "fixed order": (True, True), "peers": (False, True)}


def of_form(ranks: int, form: str, **options: Any) -> Any:
    """A machine in one of FORMS: sums in the switch, in the order of ranks, without multicast."""
    multicast, fixed_order = FORMS[form]
    return machine(ranks, multicast=multicast, fixed_order=fixed_order, **options)


def view(m: Machine, rank: int, at: int, count: int, dtype: torch.dtype) -> Tensor:
    """`count` elements of a rank's symmetric memory from byte `at` on."""
    size = dtype.itemsize
    return torch.frombuffer(memoryview(m.memory[rank].numpy())[at : at + max(count, 1) * size], dtype=dtype)[:count]


def all_reduce(m: Machine, tensors: list[Tensor], *, staged: bool, offset: int = 0) -> list[Tensor]:
    """The result of each rank. Staged: from and to ordinary tensors, `offset` elements off; else in place in the
    symmetric memory, `offset` elements off."""
    count, dtype = len(tensors[0]), tensors[0].dtype
    results = []
    for rank, tensor in enumerate(tensors):
        at = PAYLOAD if staged else PAYLOAD + offset * dtype.itemsize
        values: dict[str, Any] = dict(payload=at, elements=count, dtype=kernels.DTYPES[dtype])
        out = hollow(count, dtype, offset) if staged else view(m, rank, at, count, dtype).copy_(tensor)
        if staged:
            values |= dict(input=local(tensor, offset), out=out)
        m.launch(kernels.AllReduceArgs, rank, **values)
        results.append(out)
    m.synchronize()
    return results


def low_latency(m: Machine, tensors: list[Tensor], *, offset: int = 0) -> list[Tensor]:
    results = [hollow(len(tensor), tensor.dtype, offset) for tensor in tensors]
    for rank, (tensor, out) in enumerate(zip(tensors, results, strict=True)):
        m.launch(kernels.LowLatencyArgs, rank, input=local(tensor, offset), out=out, lines=LINES,
                 max_bytes=MAX_LINE_BYTES, elements=len(tensor), dtype=kernels.DTYPES[tensor.dtype])  # fmt: skip
    m.synchronize()
    return results


def row_values(rows: Sequence[int], on_device: bool, extra: int) -> dict[str, Any]:
    """The arguments that say how many rows each rank has; on the device, `extra` more would fit."""
    if not on_device:
        return dict(rows=list(rows), max_rows=sum(rows))
    counts = torch.tensor(rows, dtype=torch.int32)
    return dict(device_rows=counts, max_rows=sum(rows) + extra, max_own_rows=sum(rows) + extra)


def reduce_scatter(m: Machine, tensors: list[Tensor], rows: Sequence[int], width: int, *, staged: bool,
                   on_device: bool = False, offset: int = 0) -> list[Tensor]:  # fmt: skip
    """tensors: [sum(rows) * width] of each rank."""
    dtype, results = tensors[0].dtype, []
    for rank, tensor in enumerate(tensors):
        at = PAYLOAD if staged else PAYLOAD + offset * dtype.itemsize
        values = row_values(rows, on_device, extra=0)
        values |= dict(payload=at, width=width, dtype=kernels.DTYPES[dtype])
        if staged:
            values |= dict(input=local(tensor, offset))
        else:
            view(m, rank, at, len(tensor), dtype).copy_(tensor)
        results.append(hollow(sum(rows) * width if on_device else rows[rank] * width, dtype, offset))
        m.launch(kernels.ReduceScatterArgs, rank, out=results[-1], **values)
    m.synchronize()
    return results


def all_gather(m: Machine, parts: list[Tensor], rows: Sequence[int], width: int, *, staged: bool,
               on_device: bool = False, extra: int = 0, offset: int = 0) -> list[Tensor]:  # fmt: skip
    """parts: [rows[r] * width] of each rank. Staged: into an ordinary tensor; else in place in the symmetric memory."""
    dtype, results = parts[0].dtype, []
    for rank, part in enumerate(parts):
        at = PAYLOAD if staged else PAYLOAD + offset * dtype.itemsize
        values = row_values(rows, on_device, extra)
        values |= dict(payload=at, row_bytes=width * dtype.itemsize)
        total = (sum(rows) + (extra if on_device else 0)) * width
        if staged:
            out = hollow(total, dtype, offset)
            given = local(part, offset)
            if on_device:  # the host does not know how much of it is read
                given = hollow(total, dtype, offset)
                given[: len(part)] = part
            values |= dict(input=given, out=out)
        else:
            out = view(m, rank, at, total, dtype)
            out[sum(rows[:rank]) * width :][: len(part)] = part
        results.append(out)
        m.launch(kernels.AllGatherArgs, rank, **values)
    m.synchronize()
    return results


def residual_norm(m: Machine, x: list[Tensor], residual: Tensor, weight: Tensor, eps: float, *, lines: bool = False,
                  staged: bool = True, codes: bool = True) -> list[tuple[Tensor, ...]]:  # fmt: skip
    """(q, s, y, residual_out) of each rank, the first two None without codes."""
    rows, width = residual.shape
    dtype, results = residual.dtype, []
    at = LINES if lines else PAYLOAD
    for rank, tensor in enumerate(x):
        y, h = apart(rows, width, dtype), apart(rows, width, dtype)
        q, s = apart(rows, width, torch.float8_e4m3fn), scales(rows, -(-width // 128), column_major=rank % 2 == 1)
        values: dict[str, Any] = dict(
            residual=copied(residual, 0, 0), weight=local(weight), eps=eps, residual_out=h, y=y
        )
        if codes:
            values |= dict(q=q, s=s, s_row_stride=s.stride(0), s_column_stride=s.stride(1))
        if staged or lines:
            values["input"] = copied(tensor, 0, 0)
        else:
            view(m, rank, at, rows * width, dtype).copy_(tensor.flatten())
        m.launch(kernels.NormArgs, rank, payload=at, max_bytes=MAX_LINE_BYTES, rows=rows, width=width,
                 dtype=kernels.DTYPES[dtype], lines=int(lines), **values)  # fmt: skip
        results.append((q if codes else None, s if codes else None, y, h))
    m.synchronize()
    return results

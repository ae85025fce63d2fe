"""torch's symmetric memory as a provider: the only file that uses torch.distributed._symmetric_memory.

That module is an alpha interface, so we take as little of it as we can: `empty`, `rendezvous`, `get_backend`, and of
the handle the attributes in HANDLE. We use neither its ops nor its signal pads: our control words lie in the region.
The floor is torch 2.11; docs/nvls.md says how to check another version.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import LongcatUnsupportedError
from .base import ALIGNMENT, SetUp, SmokeTest, SymmetricMemory, prove
from .capabilities import require_sizes
from .exchange import Exchange, of_ranks, together
from .faults import describe

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

FLOOR = (2, 11)
BACKEND = "CUDA"
FUNCTIONS = ("empty", "rendezvous", "get_backend")
HANDLE = ("buffer_ptrs", "multicast_ptr", "offset", "buffer_size", "rank", "world_size")


def open_memory(
    exchange: Exchange,
    device: torch.device | str,
    size: int,
    *,
    group: ProcessGroup | str,
    smoke: SmokeTest | None = None,
    symm_mem: Any = None,
) -> SetUp:
    """Collective: a region of `size` bytes on each rank, from torch's allocator.

    device: the own CUDA device; size: bytes, control region included, the same on all ranks (`symmetric_bytes`);
    group: the process group of the exchange's ranks, or its name; smoke: tried on the finished region (`prove`);
    symm_mem: stands in for torch's module in tests. torch puts its signal pad and up to ALIGNMENT bytes of ours into
    the same allocation, so its device memory may be one granule above `size`.

    Each rank says whether it could allocate, before `rendezvous`, and whether the handle is sound, after it; if one
    could not, all give their memory back and answer with the reason of each. `rendezvous` itself has no deadline in
    any torch up to 2.14, and holds the interpreter's lock: a rank that dies inside it blocks the others.

    Raises LongcatTimeoutError if a rank does not arrive at a vote, LongcatShapeError on all ranks if sizes differ.
    """
    try:
        return _open(exchange, device, size, group, smoke, _Rendezvous(exchange, symm_mem))
    except BaseException as error:
        exchange.leave(describe(error))
        raise


def _open(
    exchange: Exchange,
    device: torch.device | str,
    size: int,
    group: ProcessGroup | str,
    smoke: SmokeTest | None,
    work: _Rendezvous,
) -> SetUp:
    votes = together(exchange, "allocation by torch", lambda: work.allocate(device, size))
    if votes.problems:
        return SetUp.nothing(votes.text)
    require_sizes([int(data) for data in votes.payloads])
    votes = together(exchange, "rendezvous of torch", lambda: work.meet(group, size))
    if votes.problems:
        return SetUp.nothing(votes.text)
    sound = [json.loads(data) for data in votes.payloads]
    shifts = [one["shift"] for one in sound]
    if len(set(shifts)) > 1:
        return SetUp.nothing(f"torch's allocations start at different distances from {ALIGNMENT} bytes: {shifts}")
    reasons = {rank: one["no_multicast"] for rank, one in enumerate(sound) if one["no_multicast"]}
    why_not = {"multimem": of_ranks(reasons, len(sound))} if reasons else {}
    memory = work.memory(shifts[0], size, with_multicast=not why_not)
    try:
        return prove(exchange, memory, why_not, smoke)
    except BaseException:
        memory.close()
        raise


class _Rendezvous:
    """What one rank has of torch."""

    def __init__(self, exchange: Exchange, symm_mem: Any) -> None:
        self.rank, self.ranks, self.symm_mem = exchange.rank, exchange.ranks, symm_mem
        self.allocation: torch.Tensor | None = None
        self.handle: Any = None

    def allocate(self, device: torch.device | str, size: int) -> bytes:
        if self.symm_mem is None:
            self.symm_mem = _import()
        lacks = [name for name in FUNCTIONS if not hasattr(self.symm_mem, name)]
        if lacks:
            raise LongcatUnsupportedError(f"torch.distributed._symmetric_memory has no {', '.join(lacks)}")
        backend = self.symm_mem.get_backend(device)
        if backend != BACKEND:
            raise LongcatUnsupportedError(
                f"torch's backend of symmetric memory is {backend}, expected {BACKEND}: others map multicast in"
                " another way, and a process has one; unset TORCH_SYMMMEM, or do not call set_backend"
            )
        import torch

        self.allocation = self.symm_mem.empty(size + ALIGNMENT, dtype=torch.uint8, device=device)
        _zero(self.allocation)
        return str(size).encode()

    def meet(self, group: ProcessGroup | str, size: int) -> bytes:
        handle = self.handle = self.symm_mem.rendezvous(self.allocation, group)
        lacks = [name for name in HANDLE if not hasattr(handle, name)]
        if lacks:
            raise LongcatUnsupportedError(f"torch's handle of symmetric memory has no {', '.join(lacks)}")
        got = (handle.rank, handle.world_size, len(handle.buffer_ptrs))
        if got != (self.rank, self.ranks, self.ranks):
            text = f"rank {got[0]} of {got[1]} with {got[2]} addresses"
            raise LongcatUnsupportedError(f"torch's handle is of {text}, expected rank {self.rank} of {self.ranks}")
        if handle.buffer_size < size + ALIGNMENT:
            raise LongcatUnsupportedError(f"torch's buffer has {handle.buffer_size} bytes, expected {size + ALIGNMENT}")
        starts = [address + handle.offset for address in handle.buffer_ptrs]
        if starts[self.rank] != self.allocation.data_ptr():
            text = f"{starts[self.rank]:#x}, expected that of the tensor, {self.allocation.data_ptr():#x}"
            raise LongcatUnsupportedError(f"torch's address of the own buffer is {text}")
        if not all(handle.buffer_ptrs):
            raise LongcatUnsupportedError(f"torch has mapped no memory of rank {handle.buffer_ptrs.index(0)}")
        if len({start % ALIGNMENT for start in starts}) > 1:
            raise LongcatUnsupportedError(f"torch's addresses {[hex(start) for start in starts]} are not aligned alike")
        self.starts = starts
        return json.dumps({"shift": -starts[0] % ALIGNMENT, "no_multicast": self._no_multicast()}).encode()

    def _no_multicast(self) -> str:
        if self.ranks < 3:
            return f"{self.ranks} ranks: multicast needs 3 or more, and 2 lose nothing with peer memory"
        if not self.handle.multicast_ptr:
            return "torch has mapped no multicast address"
        if self.handle.offset:
            # Whether the multicast address counts from the buffer or from the tensor differs between versions.
            return f"the tensor lies at offset {self.handle.offset} of torch's buffer, expected 0"
        if (self.handle.multicast_ptr - self.starts[0]) % ALIGNMENT:
            return f"torch's multicast address {self.handle.multicast_ptr:#x} is not aligned like its buffers"
        return ""

    def memory(self, shift: int, size: int, *, with_multicast: bool) -> SymmetricMemory:
        tensor = self.allocation[shift : shift + size]
        return SymmetricMemory(
            rank=self.rank,
            pointers=tuple(start + shift for start in self.starts),
            multicast=self.handle.multicast_ptr + shift if with_multicast else 0,
            tensor=tensor,
            provider="torch",
            holder=_Holder(tensor, self.handle),
        )


@dataclass
class _Holder:
    """Keeps torch's tensor and handle; torch gives the memory back when the last reference to them goes."""

    tensor: torch.Tensor | None
    handle: Any

    def synchronize(self) -> None:
        _synchronize(self.tensor)

    def clear(self) -> None:
        _zero(self.tensor)

    def release_multicast(self) -> list[str]:
        return []  # torch's handle has both

    def release(self) -> list[str]:
        self.tensor = self.handle = None
        return []


def _zero(tensor: torch.Tensor) -> None:
    tensor.zero_()
    _synchronize(tensor)


def _synchronize(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        import torch

        torch.cuda.synchronize(tensor.device)


def _import() -> Any:
    """torch's module. Raises LongcatUnsupportedError if torch is below FLOOR, ImportError if it has no such module."""
    import torch

    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < FLOOR:
        raise LongcatUnsupportedError(f"torch is {torch.__version__}, expected {FLOOR[0]}.{FLOOR[1]} or newer")
    import torch.distributed._symmetric_memory as symm_mem

    return symm_mem

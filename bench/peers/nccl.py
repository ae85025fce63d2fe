"""NCCL as torch brings it: as it comes, on registered buffers, and held to 4 blocks. On the host, gloo in its place.

Uneven rows have no collective in NCCL. Torch's own answer is a group, with one reduce or broadcast for each rank; NCCL
fuses a group of broadcasts. "padded" gives every rank as many rows as the largest has.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import longcat_ops
from comm.cells import EPS, MOST_BYTES, NORM, Cell, Inputs
from report.fleet import WAIT_S, Fleet

from . import nccl_calls
from .collective import Call, Collectives

FOUR = 4
# torch 2.13 has new names for these, and warns about the old ones.
_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class TorchGroup(Collectives):
    """The default process group: NCCL on GPUs, gloo on the host. padded: uneven rows padded to the most."""

    def __init__(self, fleet: Fleet, padded: bool = False) -> None:
        super().__init__(fleet)
        self.padded = padded
        self.name = ("NCCL" if fleet.on_gpus else "gloo") + ", padded" * padded
        self.group: Any = None

    def absent(self) -> str:
        return ""

    def open(self) -> None:
        self.group = dist.group.WORLD

    def captures(self) -> str:
        return "" if self.fleet.on_gpus else "needs a GPU"

    def lacks(self, cell: Cell) -> str:
        if self.padded:
            return "" if cell.uneven else "for uneven rows only"
        unequal = cell.uneven and cell.collective == "all_gather" and not self.fleet.on_gpus
        return "no all-gather of unequal tensors" if unequal else ""

    def empty(self, shape: tuple[int, ...], role: str) -> Tensor:
        """role: "in" or "out", of two tensors that are in use at once."""
        return torch.empty(shape, dtype=torch.bfloat16, device=self.fleet.device)

    def prepare(self, cell: Cell, inputs: Inputs) -> Call:
        if cell.collective in ("reduce_scatter", "all_gather") and cell.uneven:
            return self._padded(cell, inputs) if self.padded else self._groups(cell, inputs)
        given = inputs.x
        x = self.empty(tuple(given.shape), "in")

        def fill() -> None:
            x.copy_(given)

        if cell.collective == "reduce_scatter":
            own = self.empty(tuple(given[cell.own(inputs.rank)].shape), "out")
            return Call(fill, lambda: self.scatter(own, x), lambda: own)
        if cell.collective == "all_gather":
            out = self.empty(cell.shape, "out")
            return Call(fill, lambda: self.gather(out, x), lambda: out)
        if cell.collective == "broadcast":
            return Call(fill, lambda: self.broadcast(x), lambda: x)
        if cell.collective == NORM:
            return self._norm(x, inputs, fill)
        return Call(fill, lambda: self.reduce(x), lambda: x)

    def _norm(self, x: Tensor, inputs: Inputs, fill: Any) -> Call:
        h, y = torch.empty_like(x), torch.empty_like(x)

        def run() -> None:
            self.reduce(x)
            torch.add(x, inputs.residual, out=h)
            y.copy_(longcat_ops.rms_norm(h, inputs.weight, EPS))

        return Call(fill, run, lambda: y, "then add, then rms_norm of this project")

    def _groups(self, cell: Cell, inputs: Inputs) -> Call:
        x, counts = inputs.x, cell.counts
        if cell.collective == "all_gather":
            out = torch.empty(cell.shape, dtype=x.dtype, device=x.device)
            parts = list(out.split(counts))
            return Call(lambda: None, lambda: dist.all_gather(parts, x, group=self.group), lambda: out, "a group")
        own, parts = torch.empty_like(x[cell.own(inputs.rank)]), list(x.split(counts))
        return Call(lambda: None, lambda: dist.reduce_scatter(own, parts, group=self.group), lambda: own, "a group")

    def _padded(self, cell: Cell, inputs: Inputs) -> Call:
        given, counts, ranks = inputs.x, cell.counts, cell.ranks
        most = max(counts)
        wide, narrow = (torch.zeros(rows, cell.width, dtype=given.dtype, device=given.device)
                        for rows in (ranks * most, most))  # fmt: skip
        parts = wide.view(ranks, most, cell.width)
        if cell.collective == "all_gather":
            narrow[: len(given)] = given

            def rows() -> Tensor:
                return torch.cat([parts[r, :count] for r, count in enumerate(counts)])

            return Call(lambda: None, lambda: self.gather(wide, narrow), rows, "padded to the most rows")
        for r, part in enumerate(given.split(counts)):
            parts[r, : len(part)] = part
        mine = narrow[: counts[inputs.rank]]
        return Call(lambda: None, lambda: self.scatter(narrow, wide), lambda: mine, "padded to the most rows")

    def reduce(self, x: Tensor) -> None:
        dist.all_reduce(x, group=self.group)

    def scatter(self, own: Tensor, x: Tensor) -> None:
        _scatter(own, x, group=self.group)

    def gather(self, out: Tensor, x: Tensor) -> None:
        _gather(out, x, group=self.group)

    def broadcast(self, x: Tensor) -> None:
        dist.broadcast(x, 0, group=self.group)


class Registered(TorchGroup):
    """Buffers in windows of NCCL (since 2.27): torch allocates them with ncclMemAlloc, in a pool that it registers."""

    symmetric = True

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self.name = "NCCL registered"
        self._pool: Any = None
        self._buffers: dict[str, Tensor] = {}

    def absent(self) -> str:
        if reason := self.lacks_gpus():
            return reason
        if (version := torch.cuda.nccl.version()) < (2, 27):
            return f"NCCL {'.'.join(map(str, version))} has no windows; 2.27 has"
        return "" if hasattr(torch.cuda, "MemPool") else f"torch {torch.__version__} has no torch.cuda.MemPool"

    def open(self) -> None:
        self.group = dist.new_group(backend="nccl", timeout=timedelta(seconds=WAIT_S))
        dist.all_reduce(torch.zeros(1, device=self.fleet.device), group=self.group)  # makes its communicator
        backend = self.group._get_backend(self.fleet.device)
        self._pool = torch.cuda.MemPool(backend.mem_allocator)
        with torch.cuda.use_mem_pool(self._pool):
            self._buffers = {role: torch.empty(MOST_BYTES, dtype=torch.uint8, device=self.fleet.device)
                             for role in ("in", "out")}  # fmt: skip
        # NOTE: only with symm=True are these windows. What is allocated later is not in one.
        backend.register_mem_pool(self._pool, symm=True)

    def lacks(self, cell: Cell) -> str:
        return "no collective for uneven rows" if cell.uneven else ""

    def empty(self, shape: tuple[int, ...], role: str) -> Tensor:
        return self._buffers[role].view(torch.bfloat16)[: torch.Size(shape).numel()].view(shape)

    def close(self) -> None:
        if self._pool is not None:
            self.group._get_backend(self.fleet.device).deregister_mem_pool(self._pool)
        self._buffers, self._pool = {}, None


class FourBlocks(TorchGroup):
    """NCCL held to 4 blocks (its CTAs): by the configuration of each call where NCCL has that, else by that of a
    communicator of its own."""

    blocks = str(FOUR)

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self.name = f"NCCL, {FOUR} CTAs"
        self.calls: nccl_calls.ConfiguredCalls | None = None

    def absent(self) -> str:
        return self.lacks_gpus()

    def open(self) -> None:
        wait = timedelta(seconds=WAIT_S)
        if nccl_calls.missing():
            options = dist.ProcessGroupNCCL.Options()
            options.config.min_ctas = options.config.max_ctas = FOUR
            self.group = dist.new_group(backend="nccl", timeout=wait, pg_options=options)
            return
        self.group = dist.new_group(backend="nccl", timeout=wait)
        dist.all_reduce(torch.zeros(1, device=self.fleet.device), group=self.group)  # makes its communicator
        pointer = self.group._get_backend(self.fleet.device)._comm_ptr()
        self.calls = nccl_calls.ConfiguredCalls(nccl_calls.library(), pointer, FOUR)

    def lacks(self, cell: Cell) -> str:
        return "no collective for uneven rows" if cell.uneven else ""

    def prepare(self, cell: Cell, inputs: Inputs) -> Call:
        call = super().prepare(cell, inputs)
        call.note = "; ".join(filter(None, (self.how(), call.note)))
        return call

    def how(self) -> str:
        if self.calls is not None:
            return "ncclCollConfig_t of each call"
        return f"min_ctas = max_ctas = {FOUR} of a communicator, since {nccl_calls.missing()}"

    def reduce(self, x: Tensor) -> None:
        self.calls.all_reduce(x) if self.calls else super().reduce(x)

    def scatter(self, own: Tensor, x: Tensor) -> None:
        self.calls.reduce_scatter(own, x) if self.calls else super().scatter(own, x)

    def gather(self, out: Tensor, x: Tensor) -> None:
        self.calls.all_gather(out, x) if self.calls else super().gather(out, x)

    def broadcast(self, x: Tensor) -> None:
        self.calls.broadcast(x) if self.calls else super().broadcast(x)

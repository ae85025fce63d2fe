"""Collectives of torch over its symmetric memory: multimem kernels, and an all-gather by copy engines alone."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from comm.cells import MOST_BYTES, Cell, Inputs
from report.fleet import Fleet

from .collective import Call, Collectives

# Since torch 2.14, with an output that the caller gives; the other allocates one and copies from each rank in turn.
TO_ALL, FROM_EACH = "_low_contention_all_gather_ce_multicast_out", "_low_contention_all_gather"


def has(op: str) -> bool:
    return hasattr(torch.ops.symm_mem, op)


class _Symmetric(Collectives):
    """Buffers that torch hands out: "in" and "out"."""

    symmetric = True
    ops: tuple[str, ...]  # one of them is needed

    def absent(self) -> str:
        if reason := self.lacks_gpus():
            return reason
        import torch.distributed._symmetric_memory  # defines some of the ops

        return "" if any(map(has, self.ops)) else f"torch {torch.__version__} has no torch.ops.symm_mem.{self.ops[-1]}"

    def open(self) -> None:
        import torch.distributed._symmetric_memory as symmetric

        group = dist.group.WORLD
        self.group_name = group.group_name
        self._buffers = {}
        for role in ("in", "out"):
            self._buffers[role] = symmetric.empty(MOST_BYTES // 2, dtype=torch.bfloat16, device=self.fleet.device)
            self.handle = symmetric.rendezvous(self._buffers[role], group)

    def empty(self, shape: tuple[int, ...], role: str) -> Tensor:
        return self._buffers[role][: torch.Size(shape).numel()].view(shape)

    def close(self) -> None:
        self._buffers = {}


class Multimem(_Symmetric):
    """torch.ops.symm_mem.multimem_*: at most 8 blocks of 1024 threads, as its source has them."""

    name, blocks = "torch multimem", "<= 8"
    ops = ("multimem_all_reduce_",)

    def open(self) -> None:
        super().open()
        if not self.handle.multicast_ptr:
            raise RuntimeError("torch has no multicast memory for these ranks")

    def lacks(self, cell: Cell) -> str:
        if cell.collective == "all_gather":
            return "no all-gather for uneven rows" if cell.uneven else ""
        return "" if cell.collective == "all_reduce" else f"no {cell.collective}"

    def prepare(self, cell: Cell, inputs: Inputs) -> Call:
        given, ops = inputs.x, torch.ops.symm_mem
        x = self.empty(tuple(given.shape), "in")

        def fill() -> None:
            x.copy_(given)

        if cell.collective == "all_gather":
            out = self.empty(cell.shape, "out")
            return Call(fill, lambda: ops.multimem_all_gather_out(given, self.group_name, out), lambda: out)
        return Call(fill, lambda: ops.multimem_all_reduce_(x, "sum", self.group_name), lambda: x)


class CopyEngines(_Symmetric):
    """An all-gather without a block: copy engines move the rows, as multicast where torch has that."""

    name, blocks = "torch copy engines", "0"
    ops = (TO_ALL, FROM_EACH)

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self._last: Tensor | None = None

    def lacks(self, cell: Cell) -> str:
        if cell.collective != "all_gather":
            return f"no {cell.collective}"
        return "no all-gather for uneven rows" if cell.uneven else ""

    def prepare(self, cell: Cell, inputs: Inputs) -> Call:
        given, wait = inputs.x, torch.ops._c10d_functional.wait_tensor
        x = self.empty(tuple(given.shape), "in")
        out = self.empty(cell.shape, "out")

        def fill() -> None:
            x.copy_(given)

        def to_all() -> None:
            self._last = wait(getattr(torch.ops.symm_mem, TO_ALL)(x, self.group_name, out))

        def from_each() -> None:
            self._last = wait(getattr(torch.ops.symm_mem, FROM_EACH)(x, self.group_name))

        multicast = has(TO_ALL) and self.handle.multicast_ptr
        run, note = (to_all, "multicast") if multicast else (from_each, "from each rank")
        return Call(fill, run, lambda: self._last.view(cell.shape), note)

"""The communicator of this project: on memory that it handed out, and on ordinary tensors, which its kernels copy."""

from __future__ import annotations

import torch
from torch import Tensor

from comm.cells import EPS, MOST_BYTES, NORM, Cell, Inputs
from comm.claim import BLOCKS, ORDINARY, OURS
from longcat_ops.comm import Communicator
from report.fleet import Fleet

from .collective import Call, Collectives


class Ours(Collectives):
    """symmetric False: ordinary tensors, by the communicator of `other`."""

    name = OURS

    def __init__(self, fleet: Fleet, other: Ours | None = None) -> None:
        super().__init__(fleet)
        self.symmetric, self._other = other is None, other
        self.comm: Communicator | None = None
        if other is not None:
            self.name = ORDINARY

    def absent(self) -> str:
        return ""

    def open(self) -> None:
        if self._other is not None:
            self.comm = self._other.comm
            return
        self.comm = Communicator(max_bytes=MOST_BYTES, num_blocks=BLOCKS, num_channels=1)
        self._memory = self.comm.empty(MOST_BYTES, torch.uint8) if self.fleet.on_gpus else None

    @property
    def blocks(self) -> str:
        return str(self.comm.caps.num_blocks) if self.comm.caps.num_blocks else f"none: rung {self.comm.backend}"

    def lacks(self, cell: Cell) -> str:
        if not self.symmetric:
            return ""
        if not self.comm.caps.symmetric:
            return f"the rung {self.comm.backend} has no memory that every rank reaches"
        return "it copies its input in any case" if cell.collective == NORM else ""

    def captures(self) -> str:
        return "" if self.comm.caps.graphs else f"calls of the rung {self.comm.backend} cannot be captured"

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        if not self.symmetric:
            return torch.empty(shape, dtype=torch.bfloat16, device=self.fleet.device)
        count = torch.Size(shape).numel()
        return self._memory.view(torch.bfloat16)[:count].view(shape)

    def prepare(self, cell: Cell, inputs: Inputs) -> Call:
        comm, given = self.comm, inputs.x
        if cell.collective == "all_gather":
            out, rows = self._empty(cell.shape), cell.counts if cell.uneven else None
            return Call(lambda: None, lambda: comm.all_gather(given, out, rows), lambda: out)
        x = self._empty(tuple(given.shape))

        def fill() -> None:
            x.copy_(given)

        if cell.collective == "reduce_scatter":
            own, rows = torch.empty_like(given[cell.own(inputs.rank)]), cell.counts if cell.uneven else None
            return Call(fill, lambda: comm.reduce_scatter(x, own, rows), lambda: own)
        if cell.collective == "broadcast":
            return Call(fill, lambda: comm.broadcast_(x, 0), lambda: x)
        if cell.collective == NORM:
            y, h = torch.empty_like(x), torch.empty_like(x)
            args = (x, inputs.residual, inputs.weight, EPS, y, h)
            return Call(fill, lambda: comm.all_reduce_residual_rmsnorm(*args), lambda: y)
        return Call(fill, lambda: comm.all_reduce_(x), lambda: x)

    def close(self) -> None:
        if self._other is None and self.comm is not None:
            self.comm.close()

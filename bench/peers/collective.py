"""The interface that bench_comm.py needs of an implementation of collectives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from comm.cells import Cell, Inputs
from report.fleet import Fleet

from .peer import no_gpu


@dataclass
class Call:
    """One cell on one rank. fill: writes the inputs to where `run` reads them, since a call in place replaces them.
    run: what is timed. result: what it wrote, not timed. note: how it is called, where there are several ways."""

    fill: Callable[[], object]
    run: Callable[[], object]
    result: Callable[[], Tensor]
    note: str = ""


class Collectives(ABC):
    """symmetric: it works on memory that every rank reaches, so it is compared with ours on such memory. blocks: of its
    kernels, in words. Each method is called on all ranks together, with the same arguments."""

    name: str
    symmetric = False
    blocks = "its choice"

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    @abstractmethod
    def absent(self) -> str:
        """Why this rank cannot use it; "" if it can. Calls no collective."""

    @abstractmethod
    def open(self) -> None:
        """Makes communicators and buffers, once."""

    @abstractmethod
    def lacks(self, cell: Cell) -> str:
        """Why it has nothing for this cell, on any machine; "" if it has."""

    @abstractmethod
    def prepare(self, cell: Cell, inputs: Inputs) -> Call:
        """One cell. Copies that a framework would make for each call belong into `run`."""

    def lacks_gpus(self) -> str:
        """Why this rank has no GPU of its own; "" if each rank has one."""
        return no_gpu() or ("" if self.fleet.on_gpus else "needs a GPU for each rank")

    def captures(self) -> str:
        """Why its calls cannot be captured in a CUDA graph; "" if they can."""
        return ""

    def close(self) -> None:  # noqa: B027 -- most have nothing to do
        """Gives back what `open` made."""

"""What a rung is, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..watch import ChannelWatch, Watch


@dataclass(frozen=True)
class Config:
    """The arguments of a Communicator. They are the same on every rank: the constructor compares them."""

    max_bytes: int
    backend: str
    num_blocks: int
    num_channels: int
    deterministic: bool
    timeout_s: float
    provider: str


@dataclass
class Session:
    """One communicator's view of its ranks.

    store: the process group's, with a prefix for this communicator; calls on it may wait. device: where the process
    group computes.
    """

    group: Any
    store: Any
    rank: int
    ranks: int
    device: torch.device
    config: Config
    watch: Watch


@dataclass(frozen=True)
class Caps:
    """What the chosen rung can do.

    devices: types of device whose tensors it takes. fixed_order: sums are added in rank order in float32 and rounded
    once, so their bits are the same on every rank and in every run. graphs: calls can be captured in a CUDA graph.
    symmetric: `empty` returns memory that every rank reaches, so calls on it need no copy. memory_bytes: of symmetric
    memory on this rank; the command `plan` predicts it.
    """

    backend: str
    devices: tuple[str, ...]
    fixed_order: bool
    graphs: bool
    symmetric: bool
    num_blocks: int
    num_channels: int
    max_bytes: int
    memory_bytes: int = 0


class Way(ABC):
    """How the calls of one channel reach the other ranks. no_graph: why no CUDA graph can hold one, "" if it can."""

    watch: ChannelWatch
    no_graph = ""

    def refused(self, rank_local: bool) -> None:  # noqa: B027 -- most have nothing to do
        """This rank refused a call. rank_local: other ranks may have started it."""

    @abstractmethod
    def poll(self) -> None:
        """Raises if work that was launched earlier has failed or is late. Never waits."""

    @abstractmethod
    def abort(self) -> None:
        """Ends what runs, on this rank and on others, as far as it can. Never waits."""

    @abstractmethod
    def close(self) -> None:
        """Gives everything back. Calls no collective and never waits for another rank."""


class Rung(Way):
    """The operations of one channel.

    Arguments have been checked: tensors are dense and contiguous, sizes fit, nothing overlaps that must not. `rows` is
    one count per rank, as a list of ints, or as an int32 tensor if `reads_rows` is False. A rung returns from an
    operation when the result is written, or, on a CUDA stream, when the work that writes it is on the stream. It raises
    through `watch`, which knows what the other ranks do.
    """

    caps: Caps
    reads_rows = True  # the host reads a tensor of rows, and the rung gets a list and tensors without unused rows

    @abstractmethod
    def all_reduce(self, x: Tensor, out: Tensor) -> None:
        """out = the sum of every rank's x; out may be x."""

    @abstractmethod
    def reduce_scatter(self, x: Tensor, out: Tensor, rows: Any) -> None:
        """out [rows[rank], ...] = this rank's rows of the sum of every rank's x [sum(rows), ...]; out may be those
        rows of x."""

    @abstractmethod
    def all_gather(self, x: Tensor, out: Tensor, rows: Any) -> None:
        """out [sum(rows), ...] = every rank's x [rows[rank], ...] in rank order; x may be its place in out."""

    @abstractmethod
    def broadcast_(self, x: Tensor, src: int) -> None:
        """x = the x of rank `src`."""

    @abstractmethod
    def all_reduce_residual_rmsnorm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Any, residual_out: Tensor
    ) -> None:
        """residual_out = sum + residual, out = its RMSNorm; out is a tensor, or (q, s) with FP8 output."""

    @abstractmethod
    def barrier(self) -> None:
        """Returns after every rank has called it."""

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory that is best for this rung's calls; the same calls in the same order on every rank."""

    @abstractmethod
    def channel(self, index: int) -> Rung:
        """The same rung for another channel."""

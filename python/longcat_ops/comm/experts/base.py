"""What a backend of expert parallelism is, and what it is given."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ...types import Plan
from ..rungs.base import Config, Way

COUNTERS = ("rows", "remote rows", "slots saved", "bytes")


@dataclass(frozen=True)
class ExpertConfig(Config):
    """The arguments of an ExpertParallel, the same on every rank, behind those of a Communicator."""

    num_ffn_experts: int = 1
    top_k: int = 1
    hidden: int = 16
    max_tokens: int = 1
    payload: str = "fp8"
    buffers: int = 1

    def sizes(self) -> dict[str, Any]:
        """Its keywords of `sizes.expert_parts`."""
        names = ("num_ffn_experts", "top_k", "hidden", "max_tokens", "payload", "buffers")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class ExpertCaps:
    """What an ExpertParallel has and does.

    rows: capacity of a dispatch, ranks * max_tokens * min(top_k, local experts), which no routing exceeds. graphs:
    calls can be captured in a CUDA graph. host_reads: of a dispatch. memory_bytes: of this rank; the command `plan`
    predicts it. one_rank_bits: the output has the bits of one rank that has all experts.
    """

    backend: str
    local_experts: int
    rows: int
    graphs: bool
    host_reads: int
    buffers: int
    memory_bytes: int
    one_rank_bits: bool = True


class Dispatch(NamedTuple):
    """One dispatch, for its combine. plan: of this rank's tokens over all experts. buffer: which memory it is in. rows:
    those of q. max_m_hint: rows that the largest local expert is expected to have, from shapes alone."""

    plan: Plan
    buffer: int
    rows: int
    max_m_hint: int


class Routes(NamedTuple):
    """Which rows travel between which ranks, by the plan of each over all experts; known on the host.

    offsets i32 [local experts + 1]: of the rows that arrive, by expert. sent, came: rows to and from each rank. order
    i64: which row each row by expert is, of those that arrive by source; None on one rank, where nothing travels.
    """

    offsets: Tensor
    sent: list[int]
    came: list[int]
    order: Tensor | None


class Buffer(NamedTuple):
    """The memory of one dispatch and its combine.

    q [rows, H] e4m3, or bf16 without s; s f32 [rows, ceil(H / 128)]; offsets i32 [local experts + 1]; returned bf16
    [max_tokens * min(top_k, experts), H], in the order of this rank's plan.
    """

    q: Tensor
    s: Tensor | None
    offsets: Tensor
    returned: Tensor

    def without_rows(self) -> Buffer:
        """One that keeps no memory."""
        return Buffer(*(None if t is None else t.new_empty(0, *t.shape[1:]) for t in self))


class ExpertWay(Way):
    """Rows go to the ranks that have their experts, and come back. Calls of one buffer come in this order on every
    rank; arguments have been checked. counters: i64 of COUNTERS on the device, since the construction. reduces: this is
    a `ReducingWay`."""

    caps: ExpertCaps
    buffers: list[Buffer]
    counters: Tensor
    reduces = False
    moves_rows = False  # a `RowWay`

    @abstractmethod
    def dispatch_send(self, buffer: int, x: Tensor, ids: Tensor, plan: Plan) -> None:
        """Sends x [T, H] to the experts that the plan of all experts, made of ids [T, K], gives it rows for."""

    @abstractmethod
    def dispatch_recv(self, buffer: int, q: Tensor, s: Tensor | None, offsets: Tensor) -> None:
        """The rows of all ranks for this rank's experts: by expert, then by rank, then in the order of its plan."""

    @abstractmethod
    def combine_send(self, buffer: int, y: Tensor) -> None:
        """Sends y [>= rows that came, H] back, each row to where it came from."""

    @abstractmethod
    def combine_recv(self, buffer: int, returned: Tensor) -> None:
        """What came back, in the order of this rank's plan."""


class RowWay(ExpertWay):
    """A way that also moves rows of any values and dtype, in the order of plans, both ways: for gradients."""

    moves_rows = True

    @abstractmethod
    def routes(self, offsets: Tensor) -> Routes:
        """By the offsets of this rank's plan over all experts. Reads the counts of all ranks on the host."""

    @abstractmethod
    def forth(self, rows: Tensor, routes: Routes) -> Tensor:
        """rows [>= sent, H] in the order of this rank's plan; returns those that came, by expert, as a dispatch."""

    @abstractmethod
    def back(self, rows: Tensor, routes: Routes) -> Tensor:
        """rows [>= came, H] by expert; returns this rank's own, in the order of its plan. The transpose of `forth`."""


class ReducingWay(ExpertWay):
    """A way whose engine weighs and sums itself: the sum comes back, not the rows. `dispatch_weighted` is called for
    `dispatch_send`, and `combine_reduced` for `combine_recv`."""

    reduces = True

    @abstractmethod
    def dispatch_weighted(self, buffer: int, x: Tensor, ids: Tensor, weights: Tensor, plan: Plan) -> None:
        """`dispatch_send`, with weights [T, K]."""

    @abstractmethod
    def combine_reduced(self, buffer: int, bias: Tensor, add: Tensor | None, out: Tensor) -> None:
        """out [T, H] = the weighted sum of what the experts made of this rank's tokens, plus bias and add [T, H]."""

    def dispatch_send(self, buffer: int, x: Tensor, ids: Tensor, plan: Plan) -> None:
        raise NotImplementedError("rows of a way that reduces travel with their weights")

    def combine_recv(self, buffer: int, returned: Tensor) -> None:
        raise NotImplementedError("no rows come back on a way that reduces")

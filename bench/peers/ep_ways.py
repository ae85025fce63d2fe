"""What bench_ep.py times: ExpertParallel by its backends, DeepEP among them, and all-to-all of torch.distributed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import longcat_ops
from comm.ep_problem import DISPATCH, LAYER, Cell, Problem, Sizes
from longcat_ops.comm import ExpertParallel
from longcat_ops.comm.experts.in_flight import FREE
from report.fleet import Fleet

from .collective import Call

OURS = "longcat_ops"


@dataclass
class Ready:
    """One cell on one rank. sent: bytes of a call to other ranks, there and back, by formula. counted: by counters."""

    call: Call
    sent: int
    counted: int | None = None


class ExpertRanks(ABC):
    """ordered: rows and bits are those of one rank. Each method is called on all ranks together."""

    name: str
    ordered = True

    @abstractmethod
    def absent(self) -> str:
        """Why this rank cannot use it; "" if it can. Calls no collective."""

    @abstractmethod
    def open(self, sizes: Sizes, most: int) -> None:
        """Once, for up to `most` tokens a rank."""

    @abstractmethod
    def captures(self) -> str:
        """Why its calls cannot be captured in a CUDA graph; "" if they can."""

    @abstractmethod
    def prepare(self, cell: Cell, problem: Problem) -> Ready: ...

    def close(self) -> None:  # noqa: B027 -- most have nothing to do
        """Gives back what `open` made."""


class Ours(ExpertRanks):
    """ExpertParallel. backend: "auto", or by name what `first` has not taken."""

    def __init__(self, fleet: Fleet, backend: str = "auto", first: Ours | None = None) -> None:
        self.fleet, self.backend, self.first = fleet, backend, first
        self.name = OURS if first is None else {"deepep": "DeepEP"}.get(backend, f"{OURS}, {backend}")
        self.ep: Any = None

    def absent(self) -> str:
        if self.first is None:
            return ""
        if self.first.ep is None:
            return f"{OURS} could not be opened"
        if self.first.ep.backend == self.backend:
            return f"it is {OURS} here"
        why = self.first.ep.why_not[self.backend]
        return "" if why.endswith("comes first") else why

    def open(self, sizes: Sizes, most: int) -> None:
        self.ep = ExpertParallel(num_ffn_experts=sizes.experts, top_k=sizes.top_k, hidden=sizes.hidden, max_tokens=most,
                                 payload="fp8", backend=self.backend)  # fmt: skip
        self.ordered = self.ep.caps.one_rank_bits

    def captures(self) -> str:
        return "" if self.ep.caps.graphs else f"the backend {self.ep.backend} cannot be captured"

    def prepare(self, cell: Cell, problem: Problem) -> Ready:
        ep, x, routing, kept = self.ep, problem.x, problem.routing, []

        def dispatch() -> tuple:
            q, s, offsets, handle = ep.dispatch(x, routing)
            ep._in_flight.set(handle, FREE)  # nobody reads these rows, so no combine must come
            return q, s, offsets

        y = outputs(problem, self.ordered, len(dispatch()[0]))

        def round_trip() -> Tensor:
            *_, handle = ep.dispatch(x, routing)
            return ep.combine(y, handle, x, routing)

        def layer() -> Tensor:
            return ep.fused_moe(x, routing, problem.weights.gate_up, problem.weights.down)

        act = dispatch if cell.what == DISPATCH else layer if cell.what == LAYER else round_trip
        before = ep.counts()["bytes"]
        act()
        counted = ep.counts()["bytes"] - before
        back = rows_to(problem)
        there = back if self.ordered else rows_to(problem, once=True)
        if cell.what == DISPATCH and not self.ordered:
            counted = None  # its counter has what comes back already
        call = Call(lambda: wipe(kept), lambda: keep(kept, act()), lambda: kept[-1])
        return Ready(call, moved(cell, problem, there, back), counted)

    def close(self) -> None:
        self.ep.close()


def outputs(problem: Problem, ordered: bool, rows: int) -> Tensor:
    """`problem.outputs` of this rank's experts, in as many rows as its q has."""
    y = torch.zeros(rows, problem.sizes.hidden, dtype=torch.bfloat16, device=problem.fleet.device)
    y[: problem.last - problem.first] = problem.outputs(ordered)[problem.first : problem.last]
    return y


def keep(kept: list, value: Any) -> None:
    kept[:] = [value]


def wipe(kept: list) -> None:
    """Zeroes what the last run left, which a replay of its graph writes again."""
    for value in kept:
        for part in value if isinstance(value, tuple) else (value,):
            part.view(torch.uint8).zero_()


def rows_to(problem: Problem, once: bool = False) -> list[list[int]]:
    """[source][rank]: choices that travel; once: a token's on one rank count as one."""
    ids = [part.ids.masked_fill(part.weights == 0, -1) // problem.local for _, part in problem.parts]
    places = range(problem.fleet.ranks)
    return [[int((of == r).any(1).sum() if once else (of == r).sum()) for r in places] for of in ids]


def moved(cell: Cell, problem: Problem, there: list[list[int]], back: list[list[int]]) -> int:
    """Bytes of this rank's rows for others, and of theirs that it sends back. there, back: [source][rank], in rows."""
    rank = problem.fleet.rank
    sent = sum(rows for r, rows in enumerate(there[rank]) if r != rank) * problem.sizes.row
    replied = sum(rows[rank] for r, rows in enumerate(back) if r != rank) * problem.sizes.returned
    return sent + (replied if cell.what != DISPATCH else 0)


class AllToAll(ExpertRanks):
    """all_to_all_single of the default group: NCCL, or gloo on the host. every: all choices travel, those of zero
    experts to ranks in turn; else those of FFN experts, 2 of 3 in LongCat.

    A lower bound of what a framework spends: every rank knows all sizes beforehand, and rows lie in place, except in a
    layer, which packs, sorts and sums. Zero experts' rows travel and are not used: the sum takes the local x.
    """

    def __init__(self, fleet: Fleet, every: bool, sizes: Sizes) -> None:
        self.fleet, self.every = fleet, every
        slots = f"{sizes.top_k}" if every else f"{sizes.mean:g} in the mean"
        self.name = f"{'NCCL' if fleet.on_gpus else 'gloo'} all-to-all, {slots}"

    def absent(self) -> str:
        return ""

    def open(self, sizes: Sizes, most: int) -> None:
        pass

    def captures(self) -> str:
        return "" if self.fleet.on_gpus else "needs a GPU"

    def _slots(self, problem: Problem, rank: int) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """What a rank sends, by destination: token, row of its plan (-1: of a zero expert), expert; rows to each."""
        routing, choices = problem.parts[rank][1], problem.sizes.top_k
        plan, ranks = problem.plan_of(routing), self.fleet.ranks
        ffn = plan.src_of[: int(plan.offsets[-1])].long()
        rest = (plan.row_of.flatten() < 0).nonzero().flatten() if self.every else ffn[:0]
        places = torch.cat([ffn, rest])
        experts = torch.cat([routing.ids.flatten()[ffn].long(), torch.full_like(rest, -1)])
        to = torch.where(experts < 0, places % ranks, experts // problem.local)
        order = to.sort(stable=True).indices
        rows = torch.where(experts < 0, -1, plan.row_of.flatten()[places].long())
        return places[order] // choices, rows[order], experts[order], torch.bincount(to, minlength=ranks).tolist()

    def prepare(self, cell: Cell, problem: Problem) -> Ready:
        rank, z, device, x = self.fleet.rank, problem.sizes, self.fleet.device, problem.x
        slots = [self._slots(problem, r) for r in range(self.fleet.ranks)]
        to = [counts for *_, counts in slots]
        tokens, own_rows, _, there = slots[rank]
        here = [counts[rank] for counts in to]
        came = torch.cat([experts.split(counts)[rank] for _, _, experts, counts in slots])
        order = came.sort(stable=True).indices[int((came < 0).sum()) :]  # FFN experts' rows, by expert
        received = torch.empty(sum(here), z.row, dtype=torch.uint8, device=device)
        back = torch.zeros(sum(here), z.hidden, dtype=torch.bfloat16, device=device)
        returned = torch.empty(sum(there), z.hidden, dtype=torch.bfloat16, device=device)
        used = own_rows.sort(stable=True).indices[int((own_rows < 0).sum()) :]  # in the order of the plan
        plan, offsets, kept = problem.plan_of(problem.routing), problem.offsets - problem.first, []

        def packed() -> Tensor:
            q, s = longcat_ops.per_token_group_quant_fp8(x)
            return torch.cat([q.view(torch.uint8), s.view(torch.uint8)], 1)[tokens]

        def unpacked() -> tuple[Tensor, Tensor, Tensor]:
            rows = received[order]
            q = rows[:, : z.hidden].contiguous().view(torch.float8_e4m3fn)
            return q, rows[:, z.hidden :].contiguous().view(torch.float32), offsets

        def combined() -> Tensor:
            return longcat_ops.moe_combine(returned[used], plan, problem.routing, x)

        ready = packed()
        back[order] = outputs(problem, True, len(order))

        def go() -> None:
            dist.all_to_all_single(received, ready, here, there)

        def come() -> None:
            dist.all_to_all_single(returned, back, there, here)

        def layer() -> None:
            dist.all_to_all_single(received, packed(), here, there)
            back[order] = problem.weights.rows(*unpacked())
            come()
            keep(kept, combined())

        sent = moved(cell, problem, to, to)
        if cell.what == DISPATCH:
            return Ready(Call(received.zero_, go, unpacked), sent)
        if cell.what == LAYER:
            return Ready(Call(returned.zero_, layer, lambda: kept[-1]), sent)
        return Ready(Call(returned.zero_, lambda: (go(), come()), combined), sent)

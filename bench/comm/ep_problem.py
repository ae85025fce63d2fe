"""The cells of bench_ep.py: what is called, for how many tokens a rank; the tokens and choices of all ranks, and what
must come out."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import longcat_ops
from longcat_ops import Plan, Routing
from longcat_ops.comm.experts.rows import row_bytes
from products.moe_gemm_problem import random_weights
from report.fleet import Fleet

DISPATCH, ROUND_TRIP, LAYER = "dispatch", "dispatch and combine", "layer"
WHATS = (DISPATCH, ROUND_TRIP, LAYER)
TOKENS = (1, 8, 96, 192)
SCALE = 6.0
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Sizes:
    """experts: FFN experts of all ranks. zero: zero experts."""

    experts: int
    zero: int
    top_k: int
    hidden: int
    width: int

    @property
    def mean(self) -> float:
        """Choices of a token that are FFN experts, if routing is even."""
        return self.top_k * self.experts / (self.experts + self.zero)

    @property
    def row(self) -> int:
        """Bytes of a dispatched row."""
        return row_bytes(self.hidden, "fp8")

    @property
    def returned(self) -> int:
        """Bytes of a row that comes back, in bf16."""
        return 2 * self.hidden


LONGCAT = Sizes(512, 256, 12, 6144, 2048)


def host_sizes(ranks: int) -> Sizes:
    """For ranks on the host, which try the harness."""
    return Sizes(8 * ranks, 4 * ranks, 12, 256, 128)


@dataclass(frozen=True)
class Cell:
    """tokens: of each rank."""

    what: str
    tokens: int

    def mean_bytes(self, sizes: Sizes, ranks: int) -> float:
        """What a rank sends to others, there and back, if routing is even."""
        each = sizes.row + (self.what != DISPATCH) * sizes.returned
        return self.tokens * sizes.mean * each * (ranks - 1) / ranks

    def __str__(self) -> str:
        return f"{self.what}, {self.tokens} tokens a rank"


@dataclass
class Weights:
    """FP8 pairs of this rank's experts, of random codes; gate_up is interleaved."""

    gate_up: Pair
    down: Pair

    @classmethod
    def of(cls, sizes: Sizes, fleet: Fleet) -> Weights:
        generator = torch.Generator(fleet.device).manual_seed(fleet.rank)
        local, device = sizes.experts // fleet.ranks, str(fleet.device)
        halves = random_weights(local, 2 * sizes.width, sizes.hidden, device, generator)
        down = random_weights(local, sizes.hidden, sizes.width, device, generator)
        return cls(longcat_ops.interleave_gate_up(*halves), down)

    def rows(self, q: Tensor, s: Tensor, offsets: Tensor) -> Tensor:
        """bf16 [R, H]: what these experts make of rows that lie by expert."""
        y = q.new_empty(q.shape, dtype=torch.bfloat16)
        h = longcat_ops.m_grouped_fp8_swiglu_gemm_nt_offset((q, s), self.gate_up, offsets, quantise=True)
        return longcat_ops.m_grouped_fp8_gemm_nt_offset(h, self.down, y, offsets)


class Problem:
    """What all ranks bring, known to each. x [T,H], routing: this rank's."""

    def __init__(self, sizes: Sizes, tokens: int, fleet: Fleet, weights: Weights) -> None:
        self.sizes, self.tokens, self.fleet, self.weights = sizes, tokens, fleet, weights
        self.local = sizes.experts // fleet.ranks
        self.parts = [self._part(rank) for rank in range(fleet.ranks)]
        self.x, self.routing = self.parts[fleet.rank]
        self.own = slice(fleet.rank * tokens, (fleet.rank + 1) * tokens)
        fields = zip(*(routing for _, routing in self.parts), strict=True)
        self.all_x, self.all_routing = torch.cat([x for x, _ in self.parts]), Routing(*map(torch.cat, fields))
        self.plan = self.plan_of(self.all_routing)
        self.offsets = self.plan.offsets[fleet.rank * self.local :][: self.local + 1]
        self.first, self.last = int(self.offsets[0]), int(self.offsets[-1])

    def _part(self, rank: int) -> tuple[Tensor, Routing]:
        z, generator = self.sizes, torch.Generator().manual_seed(1000 * self.tokens + rank)
        x = torch.randn(self.tokens, z.hidden, generator=generator).bfloat16()
        total = z.experts + z.zero
        logits = torch.randn(self.tokens, total, generator=generator)
        routing = longcat_ops.moe_route(logits, torch.zeros(total), top_k=z.top_k, num_experts=total,
                                        num_zero_experts=z.zero, scale=SCALE)  # fmt: skip
        return x.to(self.fleet.device), Routing(*(field.to(self.fleet.device) for field in routing))

    def plan_of(self, routing: Routing) -> Plan:
        return longcat_ops.moe_plan(routing.ids, self.sizes.experts, routing.weights)

    @cached_property
    def arrived(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, s and offsets of this rank's experts."""
        q, s = longcat_ops.moe_permute_quant(self.all_x, self.plan)
        mine = slice(self.first, self.last)
        return q[mine], s[mine], self.offsets - self.first

    @cached_property
    def _rows(self) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        return torch.randn(int(self.plan.offsets[-1]), self.sizes.hidden, generator=generator).bfloat16()

    def outputs(self, ordered: bool) -> Tensor:
        """Rows by expert of all ranks that stand for the experts' outputs. Not ordered: of an expert all are the same,
        since its rows come in any order."""
        rows, starts = self._rows, self.plan.offsets[:-1].cpu().long()
        if not ordered and len(rows):
            each = rows[starts.clamp(max=len(rows) - 1)]
            rows = each.repeat_interleave(self.plan.offsets.diff().cpu(), 0)
        return rows.to(self.fleet.device)

    def combined(self, y: Tensor) -> Tensor:
        """This rank's tokens, from rows of all experts."""
        return longcat_ops.moe_combine(y, self.plan, self.all_routing, self.all_x)[self.own]

    @cached_property
    def layer(self) -> Tensor:
        """Collective: the ranks tell each other what their experts make of all tokens."""
        mine = self.weights.rows(*self.arrived).cpu()
        return self.combined(torch.cat(self.fleet.gather(mine)).to(self.fleet.device))

    def disagreement(self, what: str, got: object, ordered: bool) -> str:
        """What is wrong with a result; "" if nothing is. Collective. ordered: it has the bits of one rank, and rows in
        their order."""
        if what == DISPATCH:
            return self._other_rows(got, ordered)
        want = self.layer if what == LAYER else self.combined(self.outputs(ordered))
        if got.shape != want.shape:
            return f"computes something else: shape {list(got.shape)} for {list(want.shape)}"
        if ordered:
            return "" if torch.equal(got, want) else f"computes something else: {int((got != want).sum())} values"
        error = float((got.float() - want.float()).norm() / want.float().norm())
        return "" if error < 2.0**-6 else f"computes something else: {error:.3g} off in norm"

    def _other_rows(self, got: tuple[Tensor, Tensor, Tensor], ordered: bool) -> str:
        q, s, offsets = got
        wanted_q, wanted_s, wanted = self.arrived
        if not torch.equal(offsets, wanted):
            return "dispatches something else: offsets"
        count = len(wanted_q)
        one, other = (torch.cat([codes[:count].view(torch.uint8), scales[:count].view(torch.uint8)], 1)
                      for codes, scales in ((q, s), (wanted_q, wanted_s)))  # fmt: skip
        if not ordered:
            ends = wanted.tolist()
            one, other = (sorted_rows(rows.cpu(), ends) for rows in (one, other))
        return "" if torch.equal(one, other) else "dispatches something else: rows"


def sorted_rows(rows: Tensor, offsets: list[int]) -> Tensor:
    """Bytes of rows, in an order that depends on them and their expert alone."""
    raw = [row.tobytes() for row in rows.numpy()]
    found = [row for a, b in itertools.pairwise(offsets) for row in sorted(raw[a:b])]
    return torch.frombuffer(bytearray(b"".join(found)), dtype=torch.uint8) if found else rows.flatten()

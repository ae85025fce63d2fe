"""Expert parallelism on several emulated GPUs: problems, what one rank alone would have, and calls of the kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longcat_ops import Plan, Routing, reference
from longcat_ops.comm import expert_kernels as ek
from longcat_ops.comm import kernels
from longcat_ops.comm.expert_kernels import COMBINE, DISPATCH, Matrix, Shape
from longcat_ops.comm.providers.base import CONTROL_BYTES
from longcat_ops.testing.op_results import bits
from support.comm_machine import Machine, view
from support.emulated_kernels import FILLER, apart, copied

GAP = 256  # bytes between parts, which nobody may touch
E4M3 = torch.float8_e4m3fn


def routing_of(tokens: int, shape: Shape, seed: int, kind: str) -> Routing:
    """kind `mixed`: none to all of the choices are FFN experts, some ids lie out of range, some weights are 0, and the
    last rows are padding. `hot`: expert 1 in every token, so that most rows go to one rank. `full`: K experts each.
    `twice`: one expert in the first two choices."""
    g = torch.Generator().manual_seed(seed)
    pool = shape.experts if kind == "full" else 2 * shape.experts
    order = torch.rand(tokens, max(pool, shape.top_k), generator=g).argsort(1)[:, : shape.top_k]
    ids = order.where(order < shape.experts, -1).to(torch.int32)
    weights = torch.rand(tokens, shape.top_k, generator=g) + 0.1
    if kind == "hot" and shape.experts > 1:
        ids = ids.where(ids != 1, -1)
        ids[:, tokens % shape.top_k] = 1
    if kind == "twice" and min(shape.top_k, shape.local) > 1:
        ids[:, 1] = ids[:, 0]
    if kind == "mixed":
        odd = torch.rand(ids.shape, generator=g)
        ids = ids.where(odd > 0.05, shape.experts + 3).where(odd < 0.97, -(2**31)).where(odd < 0.99, 2**31 - 1)
        ids[:1] = -1
        ids[1:2] = torch.arange(shape.top_k, dtype=torch.int32).where(torch.arange(shape.top_k) < shape.experts, -1)
        weights = weights.where(torch.rand(weights.shape, generator=g) > 0.1, 0.0)
        ids[tokens - tokens // 4 :] = -1
    weights = weights.where((ids >= 0) & (ids < shape.experts), 0.0) if kind != "mixed" else weights
    zero = torch.rand(tokens, generator=g)
    return Routing(ids, weights, zero, torch.zeros(0), torch.zeros(0), torch.zeros(0))


@dataclass
class Problem:
    """One call of all ranks, and its results. Lists are by rank."""

    shape: Shape
    x: list[Tensor]
    routings: list[Routing]
    plans: list[Plan]
    offsets: list[Tensor]
    rows: list[Tensor]  # received [n, H] codes or bf16
    scales: list[Tensor | None]
    y: list[Tensor]  # [received, H] with fillers behind the n rows
    returned: list[Tensor]  # [rows of the plan, H]
    out: list[Tensor]

    @property
    def tokens(self) -> list[int]:
        return [len(x) for x in self.x]


def concatenated(routings: Sequence[Routing]) -> Routing:
    return Routing(*(torch.cat([r[i] for r in routings]) for i in range(3)), *routings[0][3:])


def problem(shape: Shape, tokens: Sequence[int], seed: int = 0, kind: str = "mixed",
            routings: list[Routing] | None = None) -> Problem:  # fmt: skip
    """What one rank that has all experts makes of all ranks' tokens, one rank's behind the other's: its rows, split by
    expert; experts' results at random; what its combine makes of them."""
    g = torch.Generator().manual_seed(seed)
    x = [(torch.randn(t, shape.hidden, generator=g) * 10 ** (i - 1.0)).bfloat16() for i, t in enumerate(tokens)]
    made = routings or [routing_of(t, shape, 100 * seed + i, kind) for i, t in enumerate(tokens)]
    plans = [reference.moe_plan(r.ids, shape.experts, r.weights) for r in made]
    routing, whole = concatenated(made), torch.cat(x)
    plan = reference.moe_plan(routing.ids, shape.experts, routing.weights)
    if shape.payload == "fp8":
        rows, scales = reference.moe_permute_quant(whole, plan)
    else:
        rows, scales = reference.moe_permute(whole, plan), None
    y = torch.randn(len(plan.src_of), shape.hidden, generator=g).bfloat16()
    out = reference.moe_combine(y, plan, routing, whole)
    result = Problem(shape, x, made, plans, [], [], [], [], [], list(out.split(list(tokens))))
    before = 0
    for rank, own in enumerate(plans):
        offsets = plan.offsets[rank * shape.local : (rank + 1) * shape.local + 1]
        mine = slice(int(offsets[0]), int(offsets[-1]))
        result.offsets.append(offsets - offsets[0])
        result.rows.append(rows[mine])
        result.scales.append(None if scales is None else scales[mine])
        result.y.append(apart(shape.received, shape.hidden, torch.bfloat16, gap=8 * (rank % 2)))
        result.y[rank][: mine.stop - mine.start] = y[mine]
        back = torch.empty(int(own.offsets[-1]), shape.hidden, dtype=torch.bfloat16)
        there = plan.row_of[before : before + tokens[rank]]
        kept = own.row_of >= 0
        assert bool(((there >= 0) == kept).all())
        back[own.row_of[kept].long()] = y[there[kept].long()]
        result.returned.append(back)
        before += tokens[rank]
    return result


class DequantArgs(kernels.Args):
    function = "lc_dequant_fp8"
    _fields_ = (("struct_size", ctypes.c_size_t), ("q", Matrix), ("s", Matrix), ("group_size", ctypes.c_int64),
                ("out", Matrix))  # fmt: skip


class AddRowsArgs(kernels.Args):
    function = "lc_add_rows"
    _fields_ = (("struct_size", ctypes.c_size_t), ("x", Matrix), ("y", Matrix), ("out", Matrix))


class MoeCombineArgs(kernels.Args):
    function = "lc_moe_combine"
    _fields_ = (("struct_size", ctypes.c_size_t), ("y", Matrix), ("row_of", ctypes.c_void_p), ("top_k", ctypes.c_int32),
                ("weights", ctypes.c_void_p), ("zero_weight", ctypes.c_void_p), ("x", Matrix), ("add", Matrix),
                ("out", Matrix))  # fmt: skip


class Exchange:
    """The kernels of expert parallelism on a machine. Calls are queued; machine.synchronize runs them. epoch: of the
    last call before."""

    def __init__(self, m: Machine, shape: Shape, buffers: int, epoch: int = 0) -> None:
        self.m, self.shape, self.at, self.buffers = m, shape, [], buffers
        self.common, end = self._place(shape.parts(), CONTROL_BYTES)
        for _ in range(buffers):
            at, end = self._place(shape.buffer_parts(), end)
            self.at.append(at)
        self.tables = [torch.zeros(shape.table_bytes(buffers) // 8, dtype=torch.int64) for _ in range(m.ranks)]
        for rank in range(m.ranks):
            m.memory[rank][CONTROL_BYTES:] = FILLER
            for name, size in shape.parts().items():
                m.memory[rank][self.common[name] :][:size] = 0
            self.tables[rank].view(torch.int32)[0] = epoch - 2**32 if epoch >= 2**31 else epoch

    @staticmethod
    def _place(parts: dict[str, int], at: int) -> tuple[dict[str, int], int]:
        places = {}
        for name, size in parts.items():
            places[name] = at + GAP
            at += GAP + -(-size // 16) * 16
        return places, at

    @staticmethod
    def bytes(shape: Shape, buffers: int) -> int:
        sizes = [*shape.parts().values(), *list(shape.buffer_parts().values()) * buffers]
        return CONTROL_BYTES + sum(GAP + -(-size // 16) * 16 for size in sizes) + GAP

    def experts(self, rank: int, buffer: int) -> ek.Experts:
        s = self.shape
        sizes = (s.experts, s.top_k, ek.PAYLOADS[s.payload], s.max_tokens, s.hidden)
        places = self.common | self.at[buffer]
        return ek.Experts(self.m.comms[rank], buffer, *sizes, **places, tables=self.tables[rank].data_ptr())

    def start(self, args: type, rank: int, buffer: int, *kept: Any, **values: Any) -> None:
        given = {k: (v.data_ptr() if isinstance(v, Tensor) else v) for k, v in values.items()}
        self.m.start(rank, args(experts=self.experts(rank, buffer), **given), (kept, values))

    # The steps of a call on one rank.
    def counts(self, p: Problem, rank: int, buffer: int) -> Tensor:
        offsets = apart(1, self.shape.local + 1, torch.int32)[0]
        self.start(ek.CountsArgs, rank, buffer, plan_offsets=p.plans[rank].offsets, tokens=p.tokens[rank],
                   offsets=offsets)  # fmt: skip
        return offsets

    def dispatch(self, p: Problem, rank: int, buffer: int) -> None:
        x = copied(p.x[rank], 8 * (rank % 3), 0)
        self.start(ek.DispatchArgs, rank, buffer, x, x=Matrix.of(x), ids=p.routings[rank].ids,
                   row_of=p.plans[rank].row_of)  # fmt: skip

    def wait(self, rank: int, buffer: int, traffic: int) -> None:
        self.start(ek.WaitArgs, rank, buffer, traffic=traffic)

    def combine(self, p: Problem, rank: int, buffer: int) -> None:
        self.start(ek.CombineArgs, rank, buffer, p, y=Matrix.of(p.y[rank]))

    def send(self, p: Problem, rank: int, buffer: int) -> Tensor:
        offsets = self.counts(p, rank, buffer)
        self.dispatch(p, rank, buffer)
        return offsets

    def read_rows(self, rank: int, buffer: int, wait: bool = True) -> Tensor | None:
        """As an expert's product reads them, all that may have come: [received, H], f32 or twice the bf16 rows."""
        if wait:
            self.wait(rank, buffer, DISPATCH)
        s = self.shape
        if s.received == 0:
            return None
        rows, scales, _ = self.parts(rank, buffer)
        if s.payload == "fp8":
            out = apart(s.received, s.hidden, torch.float32)
            args = DequantArgs(q=Matrix.of(rows), s=Matrix.of(scales), group_size=128, out=Matrix.of(out))
        else:
            out = apart(s.received, s.hidden, torch.bfloat16)
            args = AddRowsArgs(x=Matrix.of(rows), y=Matrix.of(rows), out=Matrix.of(out))
        self.m.start(rank, args, out)
        return out

    def read_returned(self, p: Problem, rank: int, buffer: int) -> Tensor:
        """moe_combine of what came back."""
        self.wait(rank, buffer, COMBINE)
        routing, x = p.routings[rank], p.x[rank]
        out = apart(*x.shape, torch.bfloat16)
        returned = self.parts(rank, buffer)[2]
        if len(x):
            args = MoeCombineArgs(y=Matrix.of(returned), row_of=p.plans[rank].row_of.data_ptr(), top_k=self.shape.top_k,
                                  weights=routing.weights.data_ptr(), zero_weight=routing.zero_weight.data_ptr(),
                                  x=Matrix.of(x), out=Matrix.of(out))  # fmt: skip
            self.m.start(rank, args, (p, out))
        return out

    def parts(self, rank: int, buffer: int) -> tuple[Tensor, Tensor, Tensor]:
        s, at = self.shape, self.at[buffer]
        rows = view(self.m, rank, at["rows"], s.received * s.hidden, E4M3 if s.payload == "fp8" else torch.bfloat16)
        scales = view(self.m, rank, at["scales"], s.received * s.groups, torch.float32)
        returned = view(self.m, rank, at["returned"], s.returned * s.hidden, torch.bfloat16)
        return rows.view(-1, s.hidden), scales.view(-1, max(s.groups, 1)), returned.view(-1, s.hidden)

    def counters(self, rank: int) -> list[int]:
        return self.tables[rank][ek.COUNTER_BYTE // 8 :][: ek.COUNTERS].tolist()

    def assert_gaps_untouched(self) -> None:
        for rank in range(self.m.ranks):
            memory = self.m.memory[rank].clone()[CONTROL_BYTES:]
            sizes = [(self.common, self.shape.parts()), *((at, self.shape.buffer_parts()) for at in self.at)]
            for places, parts in sizes:
                for name, size in parts.items():
                    memory[places[name] - CONTROL_BYTES :][:size] = FILLER
            assert bool((memory == FILLER).all())


def assert_received(ex: Exchange, p: Problem, rank: int, buffer: int, fresh: bool = True) -> None:
    """fresh: the buffer has not been used before, so that rows behind have their fillers."""
    n = len(p.rows[rank])
    rows, scales, _ = ex.parts(rank, buffer)
    assert bits(rows[:n]) == bits(p.rows[rank])
    assert not fresh or bool((rows[n:].view(torch.uint8) == FILLER).all())
    if p.scales[rank] is not None:
        assert bits(scales[:n]) == bits(p.scales[rank])
        assert not fresh or bool((scales[n:].view(torch.uint8) == FILLER).all())


def assert_returned(ex: Exchange, p: Problem, rank: int, buffer: int, fresh: bool = True) -> None:
    n = len(p.returned[rank])
    returned = ex.parts(rank, buffer)[2]
    assert bits(returned[:n]) == bits(p.returned[rank])
    assert not fresh or bool((returned[n:].view(torch.uint8) == FILLER).all())


def assert_read(out: Tensor | None, p: Problem, rank: int) -> None:
    """What read_rows gave."""
    n = len(p.rows[rank])
    if n == 0:
        return
    if p.scales[rank] is not None:
        right = reference.dequant_fp8(p.rows[rank], p.scales[rank], torch.float32)
    else:
        right = p.rows[rank] + p.rows[rank]
    assert bits(out[:n]) == bits(right)


def assert_counters(ex: Exchange, problems: Sequence[Problem], combined: bool = True) -> None:
    s = ex.shape
    for rank in range(s.ranks):
        sent = others = skipped = moved = 0
        for p in problems:
            offsets = p.plans[rank].offsets
            rows, own = int(offsets[-1]), int(offsets[(rank + 1) * s.local] - offsets[rank * s.local])
            sent, others = sent + rows, others + rows - own
            skipped += p.tokens[rank] * s.top_k - rows
            moved += (rows - own) * s.row_bytes + combined * (len(p.rows[rank]) - own) * 2 * s.hidden
        assert ex.counters(rank) == [sent, others, skipped, moved]

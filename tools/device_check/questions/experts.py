"""Does expert parallelism hold with several ranks on one GPU? Every rank has a stream, and a region of the GPU's own
memory. This shows counts, rows, flags, epochs and aborts on the chip, and nothing of links."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import longcat_ops
from device_check.expert_ranks import ExpertRanks, open_expert_ranks
from device_check.machine import Machine
from device_check.ranks import queued_us
from longcat_ops import Plan, Routing
from longcat_ops.comm import kernels
from longcat_ops.comm.experts.base import ExpertConfig
from longcat_ops.errors import LongcatTimeoutError

KINDS = ("mixed", "hot", "zero", "ffn")
LATE_S = 0.2  # what the host may add to a deadline


@dataclass(frozen=True)
class Model:
    experts: int
    zero: int
    top_k: int
    hidden: int

    def config(self, tokens: int, payload: str, timeout_s: float = 10.0) -> ExpertConfig:
        return ExpertConfig(1, "nvl", 1, 1, True, timeout_s, "auto", self.experts, self.top_k, self.hidden, tokens,
                            payload, 2)  # fmt: skip


def drawn(machine: Machine, model: Model, tokens: int, kind: str, seed: int) -> tuple[Tensor, Routing]:
    """kind: the router's own choice; one expert in every token; zero experts alone; FFN experts alone."""
    g = torch.Generator().manual_seed(seed)
    total, device = model.experts + model.zero, machine.device
    x = torch.randn(tokens, model.hidden, generator=g).bfloat16()
    logits = 2 * torch.randn(tokens, total, generator=g)
    if kind == "hot":
        logits[:, 1] += 20
    if kind in ("zero", "ffn"):
        logits[:, : model.experts] += -40 if kind == "zero" else 40
    routing = longcat_ops.moe_route(logits.to(device), torch.zeros(total, device=device), top_k=model.top_k,
                                    num_experts=total, num_zero_experts=model.zero, scale=6.0)  # fmt: skip
    return x.to(device), routing


def planned(model: Model, routing: Routing) -> Plan:
    return longcat_ops.moe_plan(routing.ids, model.experts, routing.weights)


def joined(parts: Sequence[tuple[Tensor, Routing]]) -> tuple[Tensor, Routing]:
    fields = {name: torch.cat([getattr(r, name) for _, r in parts]) for name in ("ids", "weights", "zero_weight")}
    return torch.cat([x for x, _ in parts]), parts[0][1]._replace(**fields)


def differ(got: Tensor, expected: Tensor) -> bool:
    return not torch.equal(got.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


def layer(group: ExpertRanks, model: Model, payload: str, parts: Sequence[Any], buffer: int) -> list[str]:
    """One dispatch and combine of all ranks beside one rank with all experts: what is wrong."""
    wrong, number = [], [buffer] * group.ranks
    x, routing = joined(parts)
    plan, own = planned(model, routing), [planned(model, r) for _, r in parts]
    rows, scales = (longcat_ops.moe_permute_quant(x, plan) if payload == "fp8"
                    else (longcat_ops.moe_permute(x, plan), None))  # fmt: skip
    y = torch.randn(len(rows), model.hidden, generator=torch.Generator().manual_seed(buffer)).bfloat16().to(x.device)
    group.synchronize()
    group.each("dispatch_send", number, [p[0] for p in parts], [p[1].ids for p in parts], own)
    own_rows = [way.buffers[buffer] for way in group.ways]
    group.each("dispatch_recv", number, *([getattr(b, name) for b in own_rows] for name in ("q", "s", "offsets")))
    group.synchronize()
    group.poll()
    sent = []
    for rank, way in enumerate(group.ways):
        first, last = (int(plan.offsets[r * way.shape.local]) for r in (rank, rank + 1))
        count, got = last - first, own_rows[rank]
        wrong += [f"rank {rank}: offsets"] * (int(got.offsets[-1]) != count)
        wrong += [f"rank {rank}: rows"] * differ(got.q[:count], rows[first:last])
        if scales is not None:
            wrong += [f"rank {rank}: scales"] * differ(got.s[:count], scales[first:last])
        sent.append(torch.full((way.caps.rows, model.hidden), torch.nan, dtype=torch.bfloat16, device=x.device))
        sent[-1][:count] = y[first:last]
    group.synchronize()
    group.each("combine_send", number, sent)
    group.each("combine_recv", number, [b.returned for b in own_rows])
    group.synchronize()
    group.poll()
    right = longcat_ops.moe_combine(y, plan, routing, x)
    outs = [longcat_ops.moe_combine(b.returned, own[r], parts[r][1], parts[r][0]) for r, b in enumerate(own_rows)]
    return wrong + ["combined"] * differ(torch.cat(outs), right)


def values(machine: Machine, ranks: int, tokens: Sequence[int], model: dict[str, int], payload: str) -> dict[str, Any]:
    """Every kind of routing, uneven tokens, the two buffers in turn. tokens: of each rank, from the first on."""
    sizes, calls = Model(**model), 0
    with open_expert_ranks(machine, ranks, sizes.config(max(tokens), payload)) as group:
        for turn, kind in enumerate((*KINDS, *KINDS[:2])):
            counts = [0] * ranks if turn == 4 else [tokens[(rank + turn) % len(tokens)] for rank in range(ranks)]
            parts = [drawn(machine, sizes, t, kind, 10 * turn + r) for r, t in enumerate(counts)]
            wrong = layer(group, sizes, payload, parts, turn % 2)
            assert not wrong, f"{ranks} ranks, {kind}, tokens {counts}: {wrong}"
            calls += 1
    return {"ranks": ranks, "payload": payload, "layers": calls}


def graphs(machine: Machine, ranks: int, tokens: int, model: dict[str, int], replays: int) -> dict[str, Any]:
    """Plan, dispatch, experts that return what they get, combine: a graph a rank, replayed with other tokens."""
    sizes = Model(**model)
    with open_expert_ranks(machine, ranks, sizes.config(tokens, "bf16")) as group:
        turns = [[drawn(machine, sizes, tokens, KINDS[turn % 4], 100 * turn + r) for r in range(ranks)]
                 for turn in range(replays)]  # fmt: skip
        held = [(x.clone(), routing._replace(**{n: getattr(routing, n).clone() for n in ("ids", "weights",
                                                                                         "zero_weight")}))
                for x, routing in turns[0]]  # fmt: skip
        group.synchronize()

        def run(rank: int) -> Tensor:
            x, routing = held[rank]
            way, plan = group.ways[rank], planned(sizes, routing)
            group.kept.append(plan)
            b = way.buffers[0]
            way.dispatch_send(0, x, routing.ids, plan)
            way.dispatch_recv(0, b.q, b.s, b.offsets)
            way.combine_send(0, b.q)
            way.combine_recv(0, b.returned)
            return plan

        replay, plans = group.captured(run)
        for parts in turns:
            for (x, routing), (new_x, new) in zip(held, parts, strict=True):
                x.copy_(new_x)
                for name in ("ids", "weights", "zero_weight"):
                    getattr(routing, name).copy_(getattr(new, name))
            group.synchronize()
            replay()
            group.synchronize()
            group.poll()
            x, routing = joined(parts)
            plan = planned(sizes, routing)
            right = longcat_ops.moe_combine(longcat_ops.moe_permute(x, plan), plan, routing, x)
            outs = [longcat_ops.moe_combine(group.ways[r].buffers[0].returned, plans[r], parts[r][1], parts[r][0])
                    for r in range(ranks)]  # fmt: skip
            assert not differ(torch.cat(outs), right)
    return {"ranks": ranks, "replays": replays}


def failures(machine: Machine, ranks: int, model: dict[str, int], timeout_s: float) -> dict[str, Any]:
    """A rank that does not come to a dispatch, or to a combine, is named by the others in time; new regions work."""
    sizes, absent, longest = Model(**model), ranks // 2, 0.0
    others = [rank for rank in range(ranks) if rank != absent]
    parts = [drawn(machine, sizes, 3, "mixed", rank) for rank in range(ranks)]
    plans = [planned(sizes, routing) for _, routing in parts]
    for stage in ("counts", "combine"):
        with open_expert_ranks(machine, ranks, sizes.config(3, "bf16", timeout_s)) as group:
            buffers = [way.buffers[0] for way in group.ways]
            given = [[0] * ranks, [p[0] for p in parts], [p[1].ids for p in parts], plans]
            start = time.monotonic()
            group.each("dispatch_send", *given, only=others if stage == "counts" else None)
            if stage == "combine":
                group.each("dispatch_recv", [0] * ranks, *([getattr(b, n) for b in buffers] for n in
                                                           ("q", "s", "offsets")))  # fmt: skip
                group.each("combine_send", [0] * ranks, [b.q for b in buffers], only=others)
                group.each("combine_recv", [0] * ranks, [b.returned for b in buffers], only=others)
            group.synchronize()
            longest = max(longest, time.monotonic() - start)
            named = set()
            for rank in others:
                record = group.ways[rank].region.record
                assert kernels.STAGES[record.stage] == stage, f"rank {rank}: stage {kernels.STAGES[record.stage]}"
                if kernels.STATUS[record.status] == "timeout":
                    named |= set(record.missing_ranks)
                    try:
                        group.ways[rank].poll()
                    except LongcatTimeoutError as error:
                        assert error.missing == (absent,)
            assert named == {absent}, f"{stage}: named {named}"
    late = longest - timeout_s
    assert not machine.real or 0 <= late < LATE_S, f"waits of {timeout_s} s ended after {longest:.3f} s"
    with open_expert_ranks(machine, ranks, sizes.config(3, "bf16")) as group:
        assert not layer(group, sizes, "bf16", parts, 0)
    return {"ranks": ranks, "timeout_s": timeout_s, "longest_s": round(longest, 3)}


def times(machine: Machine, ranks: int, tokens: Sequence[int], model: dict[str, int], count: int) -> dict[str, Any]:
    """us of a dispatch and of a combine among `count` in a row, FP8, all ranks on one GPU: no byte crosses a link, and
    all ranks share its memory."""
    sizes = Model(**model)
    found = {f"T {each}": _times(machine, ranks, each, sizes, count) for each in tokens}
    return {"ranks": ranks, "calls": count, "what": "one GPU, no links", "times": found}


def _times(machine: Machine, ranks: int, tokens: int, sizes: Model, count: int) -> dict[str, Any]:
    with open_expert_ranks(machine, ranks, sizes.config(tokens, "fp8")) as group:
        parts = [drawn(machine, sizes, tokens, "mixed", rank) for rank in range(ranks)]
        assert not (wrong := layer(group, sizes, "fp8", parts, 0)), wrong
        plans, zero = [planned(sizes, routing) for _, routing in parts], [0] * ranks
        buffers = [way.buffers[0] for way in group.ways]
        y = [torch.zeros(way.caps.rows, sizes.hidden, dtype=torch.bfloat16, device=machine.device)
             for way in group.ways]  # fmt: skip
        group.synchronize()

        def dispatch() -> None:
            group.each("dispatch_send", zero, [p[0] for p in parts], [p[1].ids for p in parts], plans)
            group.each("dispatch_recv", zero, *([getattr(b, n) for b in buffers] for n in ("q", "s", "offsets")))

        def both() -> None:
            dispatch()
            group.each("combine_send", zero, y)
            group.each("combine_recv", zero, [b.returned for b in buffers])

        found = {"dispatch and combine": _us(group, both, count), "dispatch": _us(group, dispatch, count)}
        group.poll()
    return found


def _us(group: ExpertRanks, run: Any, count: int) -> dict[str, Any]:
    if not group.streams:
        run()
        group.synchronize()
        return {"us": 0.0, "queued": False}
    return queued_us(group.streams, run, count, group.synchronize)

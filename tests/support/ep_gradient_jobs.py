"""Jobs of ranks: gradients through expert parallelism, beside one rank that has all experts."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

import longcat_ops
from longcat_ops import Routing
from longcat_ops.comm.row_exchange import RowExchange
from longcat_ops.testing.op_results import bits
from longcat_ops.training import functional
from support import ep_cases
from support.comm_faults import attempt
from support.comm_pool import World
from support.ep_cases import Shape
from support.ep_jobs import opened
from support.gradient_cases import leaf, relative

SHAPE = Shape()
CASES = ("uneven", "nobody", "hot", "extremes", "holes")


def gradients(run: Any, x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    """The output of a layer, and the gradients of sum(up * output)."""
    leaves = [leaf(t) for t in (x, routing.weights, routing.zero_weight, gate_up, down)]
    x, weights, zero_weight, gate_up, down = leaves
    out = run(x, routing._replace(weights=weights, zero_weight=zero_weight), gate_up, down)
    out.backward(up)
    names = "x", "weights", "zero_weight", "gate_up", "down"
    return {"out": out.detach()} | {name: t.grad for name, t in zip(names, leaves, strict=True)}


def alone(x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor) -> Tensor:
    """The pieces of the chain on one rank that has all experts and all tokens."""
    add = 2 * x  # first, as over ranks: it fixes the order in which torch adds the three parts of dx
    library = longcat_ops.reference if x.dtype == torch.float64 else longcat_ops
    plan = library.moe_plan(routing.ids, len(down), routing.weights.detach())
    y = functional.expert_rows(functional.moe_permute(x, plan), plan.offsets, gate_up, down)
    return functional.moe_combine(y, plan, routing, x, add)


def values(world: World, ranks: int, backend: str, dtype: torch.dtype) -> list[str]:
    """Every case: outputs and gradients of this rank's tokens and experts, in the bits of one rank; twice."""
    rank, wrong = world.rank, []
    gate_up, down = (w.to(dtype) for w in ep_cases.weights(SHAPE, "bf16"))
    with opened(world, ranks, SHAPE, payload="bf16", backend="torch") as ep:
        for case in CASES:
            parts = [(x.to(dtype), routing) for x, routing in ep_cases.inputs(case, SHAPE, ranks)]
            if dtype == torch.float64:
                parts = [
                    (x, r._replace(weights=r.weights.double(), zero_weight=r.zero_weight.double())) for x, r in parts
                ]
            x, routing = ep_cases.joined(parts)
            up = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)
            begin = sum(len(part) for part, _ in parts[:rank])
            own = slice(begin, begin + len(parts[rank][0]))
            right = gradients(alone, x, routing, gate_up, down, up)
            right = {name: ep_cases.local(t, rank, ranks) if name in ("gate_up", "down") else t[own]
                     for name, t in right.items()}  # fmt: skip
            mine = [ep_cases.local(w, rank, ranks) for w in (gate_up, down)]

            def layer(x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor) -> Tensor:
                return functional.fused_moe_over(ep, x, routing, gate_up, down, add=2 * x)

            found, again = (gradients(layer, *parts[rank], *mine, up[own]) for _ in range(2))
            for name, want in right.items():
                wrong += [f"{case}: {name} changes"] * (bits(found[name]) != bits(again[name]))
                wrong += [f"{case}: {name}"] * (bits(found[name]) != bits(want))
    return wrong


def transposes(world: World, ranks: int, backend: str) -> Any:
    """(this rank's share of <forth(a), b>, its share of <a, back(b)>, back(forth(a)) is a, bytes are counted). Small
    integers, so sums are exact."""
    g = torch.Generator().manual_seed(world.rank)
    with opened(world, ranks, SHAPE, payload="fp8", backend="torch") as ep:
        _, routing = ep_cases.inputs("uneven", SHAPE, ranks)[world.rank]
        plan = longcat_ops.moe_plan(routing.ids, SHAPE.experts, routing.weights)
        exchange, used = RowExchange(ep, plan), int(plan.offsets[-1])
        a = torch.randint(-9, 10, (len(plan.src_of), SHAPE.hidden), generator=g).float()
        a[used:] = 0
        there = exchange.forth(a)
        b = torch.randint(-9, 10, there.shape, generator=g).float()
        home = exchange.back(b)
        same = torch.equal(exchange.back(there), a) and len(there) == int(exchange.offsets[-1])
        remote, counted = ep.counts()["remote rows"], ep.counts()["bytes"]
        to_us = len(there) - int(plan.offsets.diff()[world.rank * (local := ep.caps.local_experts) :][:local].sum())
        same = same and counted == 4 * SHAPE.hidden * (remote + 2 * to_us)
        return float((there * b).sum()), float((a * home).sum()), same


def frozen(world: World, ranks: int, backend: str) -> list[bool]:
    """Only some arguments need a gradient: the bits that they have beside the others."""
    x, routing = ep_cases.inputs("uneven", SHAPE, ranks)[world.rank]
    mine = [ep_cases.local(w, world.rank, ranks) for w in ep_cases.weights(SHAPE, "bf16")]
    with opened(world, ranks, SHAPE, payload="bf16", backend="torch") as ep:
        everything = gradients(lambda *a: functional.fused_moe_over(ep, *a), x, routing, *mine, x)
        down = leaf(mine[1])
        functional.fused_moe_over(ep, x, routing, mine[0], down).backward(x)
        own = leaf(x)
        functional.fused_moe_over(ep, own, routing, *mine).backward(x)
        return [bits(down.grad) == bits(everything["down"]), bits(own.grad) == bits(everything["x"])]


def straight_through(world: World, ranks: int, backend: str) -> list[bool]:
    """An FP8 forward over ranks: the output of one rank, the gradients of the dense chain."""
    parts = ep_cases.inputs("uneven", SHAPE, ranks)
    gate_up, down = ep_cases.weights(SHAPE, "bf16")
    pairs = functional.quantise_experts(gate_up, down)
    x, routing = ep_cases.joined(parts)
    begin = sum(len(part) for part, _ in parts[: world.rank])
    right = longcat_ops.fused_moe(x, routing, *pairs)[begin:][: len(parts[world.rank][0])]
    mine, own_pairs = ([ep_cases.local(w, world.rank, ranks) for w in of] for of in ((gate_up, down), pairs))
    with opened(world, ranks, SHAPE, payload="bf16", backend="torch") as ep:
        own = parts[world.rank]
        dense = gradients(lambda *a: functional.fused_moe_over(ep, *a), *own, *mine, own[0])
        found = gradients(lambda *a: functional.fused_moe_over(ep, *a, fp8=tuple(own_pairs)), *own, *mine, own[0])
    same = [bits(found[name]) == bits(dense[name]) for name in ("x", "zero_weight", "gate_up", "down")]
    return [bits(found["out"]) == bits(right), *same]


def absent_backward(world: World, ranks: int, backend: str, bad: int) -> Any:
    """Rank `bad` makes no backward: what the others learn, and that a new one works."""
    x, routing = ep_cases.inputs("uneven", SHAPE, ranks)[world.rank]
    mine = [ep_cases.local(w, world.rank, ranks) for w in ep_cases.weights(SHAPE, "bf16")]
    with opened(world, ranks, SHAPE, payload="bf16", backend="torch", timeout_s=0.5) as ep:
        out = functional.fused_moe_over(ep, leaf(x), routing, *mine)
        if world.rank == bad:
            time.sleep(1.2)
            return attempt(ep.check)
        return attempt(lambda: out.sum().backward())


def refused(world: World, ranks: int, backend: str, bad: int) -> Any:
    """Rank `bad` has more tokens than max_tokens; then another width; then an x of other tokens than the dispatch."""
    x, routing = ep_cases.inputs("hot", SHAPE, ranks)[0]
    mine, texts = world.rank == bad, []
    more = ep_cases.inputs("hot", SHAPE, 4)[3] if mine else (x, routing)
    narrow, fewer = (x[:, :32].contiguous(), x[1:]) if mine else (x, x)
    for wrong in (
        lambda ep, rows, sent: functional.dispatch(ep, *more),
        lambda ep, rows, sent: functional.dispatch(ep, narrow, routing),
        lambda ep, rows, sent: functional.combine(ep, rows, sent, fewer, routing),
    ):
        with opened(world, ranks, SHAPE, payload="bf16", backend="torch", max_tokens=5) as ep:
            rows, _, sent = functional.dispatch(ep, x, routing)
            texts.append(attempt(lambda act=wrong, given=(ep, rows, sent): act(*given))["text"])
    return texts


def against_fp64(world: World, ranks: int, backend: str) -> list[str]:
    """bf16 over ranks beside one rank in fp64: dx through four roundings at most, the weights' through three."""
    rank = world.rank
    gate_up, down = ep_cases.weights(SHAPE, "bf16")
    parts = ep_cases.inputs("uneven", SHAPE, ranks)
    x, routing = ep_cases.joined(parts)
    wide = routing._replace(weights=routing.weights.double(), zero_weight=routing.zero_weight.double())
    right = gradients(alone, x.double(), wide, gate_up.double(), down.double(), x.double())
    begin = sum(len(part) for part, _ in parts[:rank])
    own = slice(begin, begin + len(parts[rank][0]))
    mine = [ep_cases.local(w, rank, ranks) for w in (gate_up, down)]
    with opened(world, ranks, SHAPE, payload="bf16", backend="torch") as ep:
        layer = lambda x, *rest: functional.fused_moe_over(ep, x, *rest, add=2 * x)  # noqa: E731
        found = gradients(layer, *parts[rank], *mine, parts[rank][0])
    wrong = []
    for name, roundings in (("x", 5), ("weights", 2), ("zero_weight", 0), ("gate_up", 3), ("down", 3)):
        want = ep_cases.local(right[name], rank, ranks) if name in ("gate_up", "down") else right[name][own]
        if relative(found[name], want) > 1e-6 + 1.3 * 1.7e-3 * roundings**0.5:
            wrong.append(f"{name}: {relative(found[name], want)}")
    return wrong

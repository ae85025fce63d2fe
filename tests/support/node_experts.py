"""Jobs of a node: expert parallelism beside one rank that has all experts."""

from __future__ import annotations

import time
from typing import Any

import torch

import longcat_ops
from longcat_ops.comm import ExpertParallel
from longcat_ops.testing.op_results import bits, to_device
from support import ep_cases
from support.ep_cases import Shape
from support.node import TIMEOUT_S, Node
from support.node_faults import LIMIT_S, SLACK_S, outcome


def shape_of(node: Node) -> Shape:
    """LongCat's token, 64 experts a rank; small ones on the host."""
    if node.fleet.on_gpus:
        return Shape(experts=64 * node.ranks, zero=32 * node.ranks, top_k=12, hidden=6144, width=256)
    return Shape(experts=6 * node.ranks, zero=3 * node.ranks, top_k=5, hidden=144, width=24)


def opened(node: Node, backend: str, payload: str, **options: Any) -> ExpertParallel:
    s = shape_of(node)
    given = {"max_tokens": 96, "timeout_s": TIMEOUT_S} | options
    return ExpertParallel(num_ffn_experts=s.experts, top_k=s.top_k, hidden=s.hidden, payload=payload, backend=backend,
                          **given)  # fmt: skip


def unavailable(node: Node, backend: str) -> str:
    """Why this node has not that backend. Collective."""
    _, reason = node.fleet.attempt(lambda: opened(node, backend, "fp8").close())
    return reason


def inputs(node: Node, case: str, seed: int) -> list[Any]:
    return [to_device(part, node.device) for part in ep_cases.inputs(case, shape_of(node), node.ranks, seed)]


def values(node: Node, backend: str, payload: str) -> list[str]:
    """Every case: rows that arrive, the chain of a layer, twice over two buffers."""
    shape, rank, wrong = shape_of(node), node.rank, []
    gate_up, down = to_device(ep_cases.weights(shape, payload), node.device)
    mine = [ep_cases.local(w, rank, node.ranks) for w in (gate_up, down)]
    with opened(node, backend, payload) as ep:
        for seed, case in enumerate((*ep_cases.CASES, "uneven")):
            parts = inputs(node, case, seed)
            x, routing = ep_cases.joined(parts)
            plan, rows, scales = ep_cases.dispatched(x, routing, shape.experts, payload)
            first, last = (int(plan.offsets[r * ep.caps.local_experts]) for r in (rank, rank + 1))
            q, s, offsets, handle = ep.dispatch(*parts[rank])
            wrong += [f"{case}: offsets"] * (int(offsets[-1]) != last - first)
            wrong += [f"{case}: rows"] * (bits(q[: last - first]) != bits(rows[first:last]))
            if s is not None:
                wrong += [f"{case}: scales"] * (bits(s[: last - first]) != bits(scales[first:last]))
            ep.combine(torch.zeros(handle.rows, shape.hidden, dtype=torch.bfloat16, device=node.device), handle,
                       *parts[rank])  # fmt: skip
            begin, most = sum(len(part) for part, _ in parts[:rank]), max(len(part) for part, _ in parts)
            right = longcat_ops.fused_moe(x, routing, gate_up, down, plan=plan)[begin:][: len(parts[rank][0])]
            got = ep.fused_moe(*parts[rank], *mine, most_tokens=most)
            wrong += [f"{case}: chain"] * (bits(got) != bits(right))
        ep.check()
    return wrong


def replays(node: Node, backend: str, count: int) -> list[str]:
    """A layer in a CUDA graph, replayed with other tokens; on the host it is called again."""
    shape, rank, wrong = shape_of(node), node.rank, []
    gate_up, down = to_device(ep_cases.weights(shape, "fp8"), node.device)
    mine = [ep_cases.local(w, rank, node.ranks) for w in (gate_up, down)]
    with opened(node, backend, "fp8") as ep:
        if node.fleet.on_gpus and not ep.caps.graphs:
            return []
        x, routing = inputs(node, "extremes", 0)[rank]
        out = torch.empty_like(x)
        replay = node.capture(lambda: out.copy_(ep.fused_moe(x, routing, *mine, most_tokens=len(x) or 1)))
        for seed in range(count):
            parts = inputs(node, "extremes", seed)
            x.copy_(parts[rank][0])
            for name in ("ids", "weights", "zero_weight"):
                getattr(routing, name).copy_(getattr(parts[rank][1], name))
            replay()
            node.synchronize()
            begin = sum(len(part) for part, _ in parts[:rank])
            right = longcat_ops.fused_moe(*ep_cases.joined(parts), gate_up, down)[begin:][: len(x)]
            wrong += [f"replay {seed}"] * (bits(out) != bits(right))
        ep.check()
    return wrong


def absent(node: Node, backend: str, where: str) -> list[str]:
    """The last rank comes to a dispatch, or to a combine, when the others have given up. They name it, in time."""
    last, wrong = node.ranks - 1, []
    x, routing = inputs(node, "uneven", 1)[node.rank]
    with opened(node, backend, "bf16", timeout_s=LIMIT_S) as ep:

        def late() -> None:
            if node.rank == last:
                time.sleep(LIMIT_S + 1.0)

        def call() -> None:
            if where == "dispatch":
                late()
            q, _, _, handle = ep.dispatch(x, routing)
            if where == "combine":
                node.synchronize()
                late()
            ep.combine(q, handle, x, routing)

        found = outcome(ep, call, LIMIT_S + SLACK_S)
        if node.rank != last:
            wrong += [str(found)] * ((found["kind"], found["missing"]) != ("LongcatTimeoutError", (last,)))
            wrong += [f"after {found['seconds']:.1f} s"] * (found["seconds"] > LIMIT_S + SLACK_S)
    return wrong

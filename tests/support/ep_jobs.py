"""Jobs of ranks: expert parallelism beside one rank that has all experts. Each returns what is wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

import longcat_ops
from longcat_ops.comm import ExpertParallel
from longcat_ops.comm.experts.rows import row_bytes
from longcat_ops.testing.op_results import bits
from support import ep_cases
from support.comm_pool import World
from support.ep_cases import Shape


def opened(world: World, ranks: int, shape: Shape, **options: Any) -> ExpertParallel:
    options = {"max_tokens": 9, "timeout_s": 20.0} | options
    return ExpertParallel(world.group(ranks), num_ffn_experts=shape.experts, top_k=shape.top_k, hidden=shape.hidden,
                          **options)  # fmt: skip


def values(world: World, ranks: int, backend: str, shape: str, payload: str) -> list[str]:
    """Every case: rows, scales and offsets that arrive, the combined output, what was counted."""
    size, rank, wrong = ep_cases.SHAPES[shape], world.rank, []
    gate_up, down = ep_cases.weights(size, payload)
    mine = [ep_cases.local(w, rank, ranks) for w in (gate_up, down)]
    with opened(world, ranks, size, payload=payload) as ep:
        wrong += ["backend"] * (ep.backend != "torch")
        expected = dict.fromkeys(ep.counts(), 0)
        for case in ep_cases.CASES:
            parts = ep_cases.inputs(case, size, ranks)
            x, routing = ep_cases.joined(parts)
            begin = sum(len(part) for part, _ in parts[:rank])
            own_x, own = parts[rank]
            plan, all_q, all_s = ep_cases.dispatched(x, routing, size.experts, payload)
            first, last = (int(plan.offsets[r * size.experts // ranks]) for r in (rank, rank + 1))
            q, s, offsets, handle = ep.dispatch(own_x, own)
            count = int(offsets[-1])
            here = plan.offsets[rank * ep.caps.local_experts :][: ep.caps.local_experts + 1] - first
            wrong += [f"{case}: offsets {offsets}"] * (not torch.equal(offsets, here))
            wrong += [f"{case}: rows"] * (bits(q[:count]) != bits(all_q[first:last]))
            if s is not None:
                wrong += [f"{case}: scales"] * (bits(s[:count]) != bits(all_s[first:last]))
            # Outputs of experts, of any values: what comes back is summed as on one rank.
            y = torch.randn(len(all_q), size.hidden, generator=torch.Generator().manual_seed(7)).bfloat16()
            add = torch.flip(own_x, [1])
            here_y = torch.full((handle.rows, size.hidden), torch.nan, dtype=torch.bfloat16)
            here_y[:count] = y[first:last]
            right = longcat_ops.moe_combine(y, plan, routing, x, torch.flip(x, [1]))[begin:][: len(own_x)]
            wrong += [f"{case}: combined"] * (bits(ep.combine(here_y, handle, own_x, own, add)) != bits(right))
            # The whole chain, in chunks of 9 tokens and of 2.
            right = longcat_ops.fused_moe(x, routing, gate_up, down, plan=plan)[begin:][: len(own_x)]
            most = max(len(part) for part, _ in parts)
            got = ep.fused_moe(own_x, own, *mine, most_tokens=most)
            wrong += [f"{case}: chain"] * (bits(got) != bits(right))
            to = [rows_to(own, size, ranks, other) for other in range(ranks)]
            remote = sum(to) - to[rank]
            came = sum(rows_to(part, size, ranks, rank) for r, (_, part) in enumerate(parts) if r != rank)
            expected["rows"] += 2 * sum(to)
            expected["remote rows"] += 2 * remote
            expected["slots saved"] += 2 * (own.ids.numel() - sum(to))
            expected["bytes"] += 2 * (remote * row_bytes(size.hidden, payload) + came * 2 * size.hidden)
        wrong += [f"counts {ep.counts()}, expected {expected}"] * (ep.counts() != expected)
    with opened(world, ranks, size, payload=payload, max_tokens=2, buffers=1) as ep:
        parts = ep_cases.inputs("uneven", size, ranks)
        x, routing = ep_cases.joined(parts)
        begin = sum(len(part) for part, _ in parts[:rank])
        right = longcat_ops.fused_moe(x, routing, gate_up, down)[begin:][: len(parts[rank][0])]
        got = ep.fused_moe(*parts[rank], *mine, most_tokens=max(len(part) for part, _ in parts))
        wrong += ["chunks"] * (bits(got) != bits(right))
    return wrong


def alone(world: World, ranks: int, backend: str, payload: str) -> bool:
    """The backend `torch` of one rank, which has fewer tokens than it may: q and y have room for the most."""
    size = Shape()
    x, routing = ep_cases.inputs("uneven", size, ranks)[0]
    gate_up, down = ep_cases.weights(size, payload)
    with opened(world, ranks, size, payload=payload, backend="torch") as ep:
        return bits(ep.fused_moe(x, routing, gate_up, down)) == bits(longcat_ops.fused_moe(x, routing, gate_up, down))


def rows_to(routing: longcat_ops.Routing, size: Shape, ranks: int, to: int) -> int:
    """Choices of FFN experts of one rank that have a weight, counted one by one."""
    choices = zip(routing.ids.flatten().tolist(), routing.weights.flatten().tolist(), strict=True)
    first, last = (size.experts * r // ranks for r in (to, to + 1))
    return sum(first <= expert < last and weight != 0.0 for expert, weight in choices)


def in_flight(world: World, ranks: int, backend: str) -> list[str]:
    """Two layers in flight, their combines in either order, halves apart; a third dispatch is refused by all."""
    size, rank, wrong = Shape(), world.rank, []
    with opened(world, ranks, size, payload="bf16") as ep:
        for order in ((0, 1), (1, 0)):
            layers = []
            for layer in range(2):
                parts = ep_cases.inputs("uneven", size, ranks, seed=layer)
                layers.append((parts, ep.dispatch_send(*parts[rank])))
            for parts, handle in layers:
                q, _, offsets, _ = ep.dispatch_recv(handle)
                plan, all_q, _ = ep_cases.dispatched(*ep_cases.joined(parts), size.experts, "bf16")
                first = int(plan.offsets[rank * ep.caps.local_experts])
                count = int(offsets[-1])
                wrong += ["rows"] * (bits(q[:count]) != bits(all_q[first : first + count]))
            try:
                ep.dispatch(*layers[0][0][rank])
                wrong.append("a third dispatch is served")
            except longcat_ops.LongcatCommError as error:
                wrong += [str(error)] * ("all 2 buffers hold a dispatch whose combine has not come" not in str(error))
            for i in order:
                parts, handle = layers[i]
                ep.combine_send(ep._ranks._buffers[handle.buffer].q, handle)
            for i in order:
                parts, handle = layers[i]
                out = ep.combine_recv(handle, *parts[rank])
                plan, all_q, _ = ep_cases.dispatched(*ep_cases.joined(parts), size.experts, "bf16")
                x, routing = ep_cases.joined(parts)
                right = longcat_ops.moe_combine(all_q, plan, routing, x)
                begin = sum(len(part) for part, _ in parts[:rank])
                wrong += ["combined"] * (bits(out) != bits(right[begin:][: len(out)]))
    return wrong


def disagreeing(world: World, ranks: int, backend: str, name: str, values: list[Any]) -> str:
    """The constructor where ranks differ, or one's arguments are not legal."""
    shape, options = Shape(), {}
    if name in ("experts", "top_k", "hidden"):
        shape = dataclasses.replace(shape, **{name: values[world.rank]})
    else:
        options[name] = values[world.rank]
    try:
        opened(world, ranks, shape, **options).close()
        return ""
    except longcat_ops.LongcatError as error:
        return f"{type(error).__name__}: {error}"

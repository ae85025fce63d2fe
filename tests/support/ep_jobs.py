"""Jobs of ranks: expert parallelism beside one rank that has all experts. Each returns what is wrong."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch

import longcat_ops
from longcat_ops.comm import ExpertParallel
from longcat_ops.comm.experts.rows import row_bytes
from longcat_ops.comm.sizes import expert_bytes
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
        kept = sum(t.nbytes for b in ep._ranks._buffers for t in (b.q, b.s, b.returned) if t is not None)
        planned = expert_bytes(ranks, size.experts, size.top_k, size.hidden, max_tokens=9, payload=payload)
        wrong += [f"{kept} bytes"] * (not kept == planned == ep.caps.memory_bytes)
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


def op_calls(ep: ExpertParallel, x: torch.Tensor, routing: longcat_ops.Routing) -> dict[str, tuple[Any, ...]]:
    """Arguments of each op, in the order in which they must be called."""
    handle, token = ep._ranks._handle, torch.zeros(1, dtype=torch.int64)
    plan = longcat_ops.moe_plan(routing.ids, ep._ranks.config.num_ffn_experts, routing.weights)
    q, s, offsets, returned = (None if t is None else t.clone() for t in ep._ranks._buffers[0])
    return {
        "dispatch_send": (handle, 0, x, routing.ids, *plan, token),
        "dispatch_recv": (handle, 0, q, s, offsets, token),
        "combine_send": (handle, 0, q.bfloat16(), token),
        "combine_recv": (handle, 0, returned, token),
    }


def opchecks(world: World, ranks: int, backend: str, payload: str) -> dict[str, Any]:
    """What torch.library.opcheck says of each op, and whether each writes what it marks, and nothing else. opcheck's
    test of the schema compares tensors in a way that torch has not for e4m3."""
    found = {}
    with opened(world, ranks, Shape(), payload=payload) as ep:
        x, routing = ep_cases.inputs("uneven", Shape(), ranks)[world.rank]
        for op, arguments in op_calls(ep, x, routing).items():
            overload = getattr(torch.ops.longcat_ops, f"comm_{op}")
            utils = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                results = torch.library.opcheck(overload, arguments, test_utils=utils[payload == "fp8" :])
            versions = {i: a._version for i, a in enumerate(arguments) if isinstance(a, torch.Tensor)}
            before = {i: bits(arguments[i]) for i in versions}
            overload(*arguments)
            marked = [i for i, spec in enumerate(overload.default._schema.arguments)
                      if spec.alias_info and spec.alias_info.is_write]  # fmt: skip
            wrong = [i for i in versions if (arguments[i]._version > versions[i]) != (i in marked)]
            wrong += [i for i in versions if bits(arguments[i]) != before[i] and i not in marked]
            found[op] = sorted(set(results.values())), wrong
    return found


def compiled(world: World, ranks: int, backend: str, compiler: str) -> list[bool]:
    """A layer as one graph of torch.compile: the bits of the eager one, twice over two buffers and other tokens."""
    shape, same = Shape(), []
    gate_up, down = (ep_cases.local(w, world.rank, ranks) for w in ep_cases.weights(shape, "fp8"))
    with opened(world, ranks, shape) as ep:
        layer = torch.compile(lambda x, routing: ep.fused_moe(x, routing, gate_up, down, most_tokens=9),
                              backend=compiler, fullgraph=True)  # fmt: skip
        for seed in range(4):
            x, routing = ep_cases.inputs("extremes", shape, ranks, seed)[world.rank]
            same.append(bits(layer(x, routing)) == bits(ep.fused_moe(x, routing, gate_up, down, most_tokens=9)))
    return same


def checkpoint(world: World, ranks: int, backend: str, folder: str, precision: str) -> list[str]:
    """Each MoE layer of a checkpoint on tokens of the usual size, with the experts of this rank alone."""
    model = longcat_ops.LongcatFlashForCausalLM.from_pretrained(folder, precision=precision)
    c, wrong = model.config, []
    for number, layer in enumerate(model.layers):
        moe = layer.mlp
        quantised = moe.gate_up_scale is not None
        gate_up = (moe.gate_up, moe.gate_up_scale) if quantised else moe.gate_up
        down = moe.down if moe.down_scale is None else (moe.down, moe.down_scale)
        x = torch.randn(29, c.hidden_size, generator=torch.Generator().manual_seed(number)).bfloat16()
        routing = longcat_ops.moe_route(
            longcat_ops.router_gemm(x, moe.router), moe.bias, top_k=c.moe_topk, num_experts=c.num_experts,
            num_zero_experts=c.zero_expert_num, scale=c.routed_scaling_factor,
        )  # fmt: skip
        right = longcat_ops.fused_moe(x, routing, gate_up, down)
        cuts = [0, 17, 29] if ranks == 2 else [0, 5, 5, 20, 29]
        own = slice(cuts[world.rank], cuts[world.rank + 1])
        fields = {name: getattr(routing, name)[own] for name in ("ids", "weights", "zero_weight", "num_real")}
        size = Shape(experts=c.n_routed_experts, top_k=c.moe_topk, hidden=c.hidden_size)
        with opened(world, ranks, size, max_tokens=8, payload="fp8" if quantised else "bf16") as ep:
            mine = [ep_cases.local(w, world.rank, ranks) for w in (gate_up, down)]
            got = ep.fused_moe(x[own], routing._replace(**fields), *mine, most_tokens=17)
        wrong += [f"layer {number}"] * (bits(got) != bits(right[own]))
        wrong += ["no zero expert was chosen"] * (not bool((routing.ids < 0).any()))
    return wrong

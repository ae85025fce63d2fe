"""Jobs of ranks: calls of an ExpertParallel in other orders, by other callers and in other modes than a layer makes."""

from __future__ import annotations

import gc
import os
import pickle
import weakref
from typing import Any

import torch

import longcat_ops
from longcat_ops import Routing
from longcat_ops.testing.op_results import bits
from support import ep_cases
from support.comm_faults import attempt
from support.comm_pool import World
from support.ep_cases import Shape
from support.ep_jobs import opened
from support.expert_faults import SHAPE, layer, right, works


def serves(ep: Any) -> bool:
    return bits(layer(ep)) == bits(right(ep.ranks, ep.rank))


def any_order(world: World, ranks: int, backend: str) -> bool:
    """Two dispatches, the later one combined first: its buffer then takes a third."""
    with opened(world, ranks, SHAPE, payload="bf16") as ep:
        x, routing = ep_cases.inputs("uneven", SHAPE, ranks)[world.rank]
        (_, _, _, first), (q, _, _, second) = ep.dispatch(x, routing), ep.dispatch(x, routing)
        ep.combine(q, second, x, routing)
        q, _, _, third = ep.dispatch(x, routing)
        same = bits(ep.combine(q, third, x, routing)) == bits(right(ranks, world.rank))
        ep.combine(ep._ranks._buffers[0].q if ranks > 1 else q, first, x, routing)
        return same and serves(ep)


def wrong_handles(world: World, ranks: int, backend: str) -> Any:
    """Handles of an earlier dispatch, of another ExpertParallel, and of a buffer that this one has not."""
    with (
        opened(world, ranks, SHAPE, payload="bf16", buffers=1) as ep,
        opened(world, ranks, SHAPE, payload="bf16") as other,
    ):
        x, routing = ep_cases.inputs("uneven", SHAPE, ranks)[world.rank]
        q, _, _, old = ep.dispatch(x, routing)
        ep.combine(q, old, x, routing)
        q, _, _, handle = ep.dispatch(x, routing)
        others = [other.dispatch(x, routing)[3] for _ in range(2)]
        texts = [attempt(lambda h=h: ep.combine(q, h, x, routing))["text"] for h in (old, *others)]
        return texts, bits(ep.combine(q, handle, x, routing)) == bits(right(ranks, world.rank))


def combines(world: World, ranks: int, backend: str) -> Any:
    """A dispatch whose combine all ranks get wrong, several times; then right."""
    with opened(world, ranks, SHAPE, payload="bf16") as ep:
        x, routing = ep_cases.inputs("hot", SHAPE, ranks)[0]
        q, _, _, handle = ep.dispatch(x, routing)
        texts = [
            attempt(lambda a=arguments: ep.combine(q, handle, *a))["text"]
            for arguments in (
                (x[1:], routing), (3, routing), (x.float(), routing), (x, tuple(routing)), (x, routing, x.float()),
                (x, routing, x[1:]), (x, routing._replace(zero_weight=None)),
                (x, routing._replace(weights=routing.weights[1:].contiguous())),
            )
        ]  # fmt: skip
        strided = torch.cat([x, x], 1)[:, :64]
        expected = right_with(x, routing, strided)
        return texts, bits(ep.combine(q, handle, x, routing, strided)) == bits(expected)


def right_with(x: torch.Tensor, routing: Routing, add: torch.Tensor) -> torch.Tensor:
    """The sums of experts that return what they get."""
    plan, rows, _ = ep_cases.dispatched(x, routing, SHAPE.experts, "bf16")
    return longcat_ops.moe_combine(rows, plan, routing, x, add)


def layers(world: World, ranks: int, backend: str, bad: int) -> Any:
    """`fused_moe` with arguments that rank `bad`, or all for -1, got wrong; then a right call."""
    x, routing = ep_cases.inputs("uneven", SHAPE, ranks)[world.rank]
    gate_up, down = (ep_cases.local(w, world.rank, ranks) for w in ep_cases.weights(SHAPE, "fp8"))
    short = tuple(part[:2] for part in down)
    calls = {
        "x": ((3, routing, gate_up, down), {}),
        "routing": ((x, tuple(routing), gate_up, down), {}),
        "payload": ((x, routing, gate_up[0].bfloat16(), down), {}),
        "pair": ((x, routing, gate_up, (3, down[1])), {}),
        "experts": ((x, routing, gate_up, short), {}),
        "width": ((x, routing, gate_up, (down[0][:, :32].contiguous(), down[1])), {}),
        "scales": ((x, routing, (gate_up[0], gate_up[1][:, :1]), down), {}),
        "most": ((x, routing, gate_up, down), {"most_tokens": len(x) - 1}),
        "most's type": ((x, routing, gate_up, down), {"most_tokens": 9.0}),
        "add": ((x, routing, gate_up, down), {"add": x.float()}),
    }
    found = {}
    if bad < 0:
        with opened(world, ranks, SHAPE) as ep:
            for name, (arguments, options) in calls.items():
                found[name] = attempt(lambda a=arguments, o=options: ep.fused_moe(*a, **{"most_tokens": 9} | o))["text"]
            whole_x, whole = ep_cases.joined(parts := ep_cases.inputs("uneven", SHAPE, ranks))
            expected = longcat_ops.fused_moe(whole_x, whole, *ep_cases.weights(SHAPE, "fp8"))
            begin = sum(len(part) for part, _ in parts[: world.rank])
            got = ep.fused_moe(x, routing, gate_up, down, most_tokens=9)
            return found, bits(got) == bits(expected[begin:][: len(x)])
    for name in ("experts", "width", "most", "add"):
        arguments, options = calls[name] if world.rank == bad else ((x, routing, gate_up, down), {})
        with opened(world, ranks, SHAPE) as ep:
            found[name] = attempt(lambda a=arguments, o=options: ep.fused_moe(*a, **{"most_tokens": 9} | o))
    return found, works(world, ranks)


def graphs(world: World, ranks: int, backend: str) -> int:
    """How many graphs of torch.compile serve every number of tokens."""
    torch._dynamo.reset()  # other jobs of this process have taught it which sizes change
    compiled = 0

    def count(module: Any, _: Any) -> Any:
        nonlocal compiled
        compiled += 1
        return module

    gate_up, down = (ep_cases.local(w, world.rank, ranks) for w in ep_cases.weights(SHAPE, "fp8"))
    g = torch.Generator().manual_seed(world.rank)
    with opened(world, ranks, SHAPE) as ep:
        run = torch.compile(
            lambda x, r: ep.fused_moe(x, r, gate_up, down, most_tokens=9), backend=count, fullgraph=True
        )
        for tokens in (5, 3, 7, 2, 9, 4, 8, 6, 1, 0):
            x, total = torch.randn(tokens, 64, generator=g).bfloat16(), SHAPE.experts + SHAPE.zero
            routing = longcat_ops.moe_route(torch.randn(tokens, total, generator=g), torch.zeros(total), top_k=5,
                                            num_experts=total, num_zero_experts=SHAPE.zero, scale=6.0)  # fmt: skip
            assert bits(run(x, routing)) == bits(ep.fused_moe(x, routing, gate_up, down, most_tokens=9))
    return compiled


def inference(world: World, ranks: int, backend: str) -> list[bool]:
    """Made in the mode and out of it, called in it and out of it."""
    found = []
    for inside in (True, False):
        with torch.inference_mode(inside):
            ep = opened(world, ranks, SHAPE, payload="bf16")
        for mode in (True, False):
            with torch.inference_mode(mode):
                found.append(serves(ep))
        ep.close()
    return found


def forked(world: World, ranks: int, backend: str) -> Any:
    """A process that this one forks can neither call nor end what it inherits."""
    with opened(world, ranks, SHAPE, payload="bf16") as ep:
        layer(ep)
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            calls = (lambda: layer(ep), lambda: ep.dispatch(3, None), ep.check)
            texts = [attempt(call)["text"] for call in calls]
            ep.abort("in the child")
            ep.close()
            os.write(write, pickle.dumps(texts))
            os._exit(0)
        os.close(write)
        with open(read, "rb") as file:
            texts = pickle.loads(file.read())
        os.waitpid(child, 0)
        ep.check()
        return texts, serves(ep)


def closed_memory(world: World, ranks: int, backend: str) -> list[str]:
    """Names of buffers that outlive `close`, while the object still lives; what calls then say."""
    ep = opened(world, ranks, SHAPE)
    x, routing = ep_cases.inputs("uneven", SHAPE, ranks)[world.rank]
    handle = ep.dispatch_send(x, routing)
    kept = {f"{name} {b}": weakref.ref(t.untyped_storage()) for b, buffer in enumerate(ep._ranks._buffers)
            for name, t in buffer._asdict().items()}  # fmt: skip
    ep.close()
    gc.collect()
    found = [name for name, ref in kept.items() if ref() is not None]
    return [*found, attempt(lambda: ep.dispatch_recv(handle))["text"], attempt(lambda: layer(ep))["text"]]


def named_twice(world: World, ranks: int, backend: str) -> Any:
    """Tokens with one expert as all their choices: more rows than the buffer of its rank has."""
    size = Shape(experts=12, zero=4, top_k=12, hidden=144, width=16)
    ids = torch.zeros(9, 12, dtype=torch.int32)
    routing = ep_cases.inputs("uneven", size, ranks)[0][1]
    routing = Routing(**routing._asdict() | {"ids": ids, "weights": torch.ones(9, 12), "zero_weight": torch.zeros(9)})
    with opened(world, ranks, size, payload="bf16") as ep:
        return attempt(lambda: ep.dispatch(torch.zeros(9, 144).bfloat16(), routing)), works(world, ranks)

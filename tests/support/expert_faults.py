"""Jobs of ranks: in expert parallelism one of them stalls, dies, aborts or calls it wrongly."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

import longcat_ops
from longcat_ops.comm import ExpertParallel
from longcat_ops.comm.experts import group
from longcat_ops.comm.rungs import gloo
from longcat_ops.testing.op_results import bits
from support import ep_cases
from support.comm_faults import Sleeping, attempt
from support.comm_pool import World
from support.ep_cases import Shape
from support.ep_jobs import opened

SHAPE = Shape()
# Where a rank stands still in a dispatch: before its counts, between counts and rows.
STALLS: dict[str, tuple[Any, str]] = {
    "counts": (gloo.GlooRung, "_frames"),
    "rows": (group, "permuted"),
}


def layer(ep: ExpertParallel, before_combine: Callable[[], Any] = lambda: None) -> Any:
    """One layer on this rank's tokens; what each rank must get, too."""
    parts = ep_cases.inputs("uneven", SHAPE, ep.ranks)
    x, routing = parts[ep.rank]
    q, _, _, handle = ep.dispatch(x, routing)
    before_combine()
    return ep.combine(q, handle, x, routing)


def right(ranks: int, rank: int) -> Any:
    """The result of `layer`: experts that return what they get."""
    x, routing = ep_cases.joined(parts := ep_cases.inputs("uneven", SHAPE, ranks))
    plan, rows, _ = ep_cases.dispatched(x, routing, SHAPE.experts, "bf16")
    begin = sum(len(part) for part, _ in parts[:rank])
    return longcat_ops.moe_combine(rows, plan, routing, x)[begin:][: len(parts[rank][0])]


def works(world: World, ranks: int) -> bool:
    """Whether a new one over the same group serves."""
    with opened(world, ranks, SHAPE, payload="bf16") as ep:
        return bits(layer(ep)) == bits(right(ranks, ep.rank))


def stalls(world: World, ranks: int, backend: str, where: str, bad: int, timeout_s: float) -> Any:
    """Rank `bad` stands still at `where`, and goes on when the others have given up."""
    seconds = timeout_s + 0.3 if world.rank == bad else 0.0

    def wait() -> None:
        time.sleep(seconds)

    with opened(world, ranks, SHAPE, payload="bf16", timeout_s=timeout_s) as ep:
        held = contextlib.nullcontext() if where == "combine" else Sleeping(*STALLS[where], wait)
        with held:
            found = attempt(lambda: layer(ep, wait if where == "combine" else lambda: None))
        again = attempt(lambda: layer(ep))
    return found, again, works(world, ranks)


def survive(world: World, ranks: int, backend: str, where: str, dies: int, limit_s: float) -> Any:
    """Rank `dies` is killed before its dispatch or its combine. The others then form a group and serve."""
    ep = opened(world, ranks, SHAPE, payload="bf16", timeout_s=limit_s)
    layer(ep)

    def die() -> None:
        if world.rank == dies:
            os.kill(os.getpid(), signal.SIGKILL)

    if where == "dispatch":
        die()
    found = attempt(lambda: layer(ep, die))
    ep.close()
    left = [r for r in range(ranks) if r != dies]
    smaller = dist.new_group(left, use_local_synchronization=True, timeout=timedelta(seconds=20))
    with ExpertParallel(smaller, num_ffn_experts=SHAPE.experts, top_k=SHAPE.top_k, hidden=SHAPE.hidden,
                        max_tokens=9, payload="bf16") as after:  # fmt: skip
        found["works"] = bits(layer(after)) == bits(right(len(left), after.rank))
    return found


def aborts(world: World, ranks: int, backend: str) -> Any:
    """The last rank does not come; a thread of rank 0 aborts."""
    with opened(world, ranks, SHAPE, payload="bf16") as ep:
        layer(ep)
        if world.rank == 0:
            threading.Timer(0.2, ep.abort, ["the operator"]).start()
        if world.rank == ranks - 1:
            time.sleep(0.5)
            found = attempt(ep.check)
        else:
            found = attempt(lambda: layer(ep))
    return found, works(world, ranks)


def closes(world: World, ranks: int, backend: str) -> Any:
    """The last rank closes, the others call once more."""
    ep = opened(world, ranks, SHAPE, payload="bf16")
    layer(ep)
    if world.rank == ranks - 1:
        ep.close()
    found = attempt(lambda: layer(ep))
    ep.close()
    ep.close()
    return found, works(world, ranks)


BAD: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "x is no tensor": lambda x, r: (3, r),
    "x of float32": lambda x, r: (x.float(), r),
    "x of another width": lambda x, r: (x[:, :32].contiguous(), r),
    "x that needs a gradient": lambda x, r: (x.clone().requires_grad_(), r),
    "x with strides": lambda x, r: (torch.cat([x, x], 1)[:, ::2], r),
    "no routing": lambda x, r: (x, r.ids),
    "another top_k": lambda x, r: (x, r._replace(ids=r.ids[:, :3].contiguous())),
    "weights of other tokens": lambda x, r: (x, r._replace(weights=r.weights[:, :3].contiguous())),
    "ids of int64": lambda x, r: (x, r._replace(ids=r.ids.long())),
    "too many tokens": lambda x, r: (torch.zeros(10, 64, dtype=x.dtype), r),
    "ids of other tokens": lambda x, r: (torch.zeros(8, 64, dtype=x.dtype), r),
}


def refused_by_all(world: World, ranks: int, backend: str) -> list[str]:
    """Each bad call on every rank; then this one serves."""
    with opened(world, ranks, SHAPE, payload="bf16") as ep:
        x, routing = ep_cases.inputs("uneven", SHAPE, ranks)[0]
        texts = [attempt(lambda make=make: ep.dispatch(*make(x, routing)))["text"] for make in BAD.values()]
        q, _, _, handle = ep.dispatch(x, routing)
        for y, used in ((q[1:], handle), (q.float(), handle), (3, handle), (q, None)):
            texts.append(attempt(lambda y=y, used=used: ep.combine(y, used, x, routing))["text"])
        ep.combine(q, handle, x, routing)
        texts.append(attempt(lambda: ep.combine(q, handle, x, routing))["text"])
        texts.append(attempt(lambda: ep.dispatch_recv(handle))["text"])
        texts.append(str(bits(layer(ep)) == bits(right(ranks, ep.rank))))
    return texts


def refused_by_one(world: World, ranks: int, backend: str, name: str, bad: int) -> Any:
    """The others call it right."""
    with opened(world, ranks, SHAPE, payload="bf16") as ep:
        x, routing = ep_cases.inputs("uneven", SHAPE, ranks)[0]
        given = BAD[name](x, routing) if world.rank == bad else (x, routing)
        found = attempt(lambda: ep.dispatch(*given))
    return found, works(world, ranks)


def in_a_capture(world: World, ranks: int, backend: str) -> list[str]:
    """What calls say while a CUDA graph is captured."""
    from longcat_ops.comm import expert_parallel, runner

    texts = []
    with opened(world, ranks, SHAPE, payload="bf16") as ep:
        usual = runner.is_capturing
        for place in (runner, expert_parallel):
            place.is_capturing = lambda: True
        try:
            texts += [attempt(call)["text"] for call in (lambda: layer(ep), lambda: opened(world, ranks, SHAPE))]
        finally:
            for place in (runner, expert_parallel):
                place.is_capturing = usual
    return texts

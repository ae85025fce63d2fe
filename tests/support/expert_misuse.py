"""Jobs of ranks: calls of an ExpertParallel in other orders, by other callers and in other modes than a layer makes."""

from __future__ import annotations

from typing import Any


import longcat_ops
from longcat_ops.testing.op_results import bits
from support import ep_cases
from support.comm_faults import attempt
from support.comm_pool import World
from support.ep_jobs import opened
from support.expert_faults import SHAPE, layer, right


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

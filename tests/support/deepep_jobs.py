"""Jobs of ranks: the backend `deepep` over the stand-in for DeepEP. Each returns what is wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import longcat_ops
from longcat_ops.comm.experts import deepep
from longcat_ops.comm.experts.rows import row_bytes
from longcat_ops.testing.op_results import bits
from support import ep_cases, fake_deep_ep
from support.comm_pool import World
from support.ep_cases import Shape
from support.ep_jobs import opened, rows_to

SHAPE = Shape(experts=12, zero=6, top_k=5, hidden=256, width=48)
U = 2.0**-8  # of one rounding to bf16


@contextmanager
def stand_in(module: object = fake_deep_ep) -> Iterator[None]:
    """DeepEP on the host."""
    before, devices = sys.modules.get("deep_ep"), deepep.DEVICES
    sys.modules["deep_ep"], deepep.DEVICES = module, ("cpu",)
    fake_deep_ep.calls.clear()
    try:
        yield
    finally:
        deepep.DEVICES = devices
        del sys.modules["deep_ep"]
        if before is not None:
            sys.modules["deep_ep"] = before


def bound(
    y: Tensor, plan: longcat_ops.Plan, routing: longcat_ops.Routing, x: Tensor, add: Tensor
) -> tuple[Tensor, Tensor]:
    """The combined output in float64, and how far `deepep` may be off: one rounding of each weighted row, of the zero
    experts' term and of the sum, and float32 sums of so many terms."""
    rows = y.double()[plan.row_of.clamp(min=0).long()] * routing.weights.double()[..., None]
    rows = rows.masked_fill((plan.row_of < 0)[..., None], 0)
    zero = x.double() * routing.zero_weight.double()[:, None]
    exact = rows.sum(1) + zero + add.double()
    parts = rows.abs().sum(1) + zero.abs()
    return exact, U * (parts + exact.abs()) * (1 + U) + 8 * 2.0**-24 * (parts + add.double().abs())


def values(world: World, ranks: int, backend: str, payload: str) -> list[str]:
    """Every case: the rows of each expert, as a set; the combined output against float64; the chain; the counts."""
    rank, wrong = world.rank, []
    gate_up, down = ep_cases.weights(SHAPE, payload)
    mine = [ep_cases.local(w, rank, ranks) for w in (gate_up, down)]
    with stand_in(), opened(world, ranks, SHAPE, payload=payload, backend="deepep") as ep:
        caps = ep.caps
        wrong += [str(caps)] * (
            (caps.backend, caps.graphs, caps.host_reads, caps.one_rank_bits) != ("deepep", False, 1, False)
        )
        expected = dict.fromkeys(ep.counts(), 0)
        for case in ep_cases.CASES:
            parts = ep_cases.inputs(case, SHAPE, ranks)
            x, routing = ep_cases.joined(parts)
            begin = sum(len(part) for part, _ in parts[:rank])
            own_x, own = parts[rank]
            part = slice(begin, begin + len(own_x))
            plan, all_q, all_s = ep_cases.dispatched(x, routing, SHAPE.experts, payload)
            first = int(plan.offsets[rank * caps.local_experts])
            here = plan.offsets[rank * caps.local_experts :][: caps.local_experts + 1] - first
            q, s, offsets, handle = ep.dispatch(own_x, own)
            wrong += [f"{case}: offsets {offsets}, {len(q)} rows"] * (
                not torch.equal(offsets, here) or offsets.dtype != torch.int32 or len(q) != here[-1] != handle.rows
            )
            order = []  # which row of one rank's each of ours is
            for e in range(caps.local_experts):
                wanted = {packed(all_q, all_s, first + i): first + i for i in range(here[e], here[e + 1])}
                order += [wanted.get(packed(q, s, i)) for i in range(offsets[e], offsets[e + 1])]
            if None in order or len(set(order)) != len(order):
                wrong, order = [*wrong, f"{case}: rows {order}"], [0] * len(order)
            y = torch.randn(len(all_q), SHAPE.hidden, generator=torch.Generator().manual_seed(7)).bfloat16()
            add = torch.flip(x, [1])
            got = ep.combine(y[order], handle, own_x, own, add[part])
            exact, most = (t[part] for t in bound(y, plan, routing, x, add))
            off = (got - exact).abs()
            wrong += [f"{case}: combined, off by {off[off > most]}, {most[off > most]} allowed"] * bool(
                (off > most).any()
            )
            wrong += [f"{case}: an order of its own"] * (not same_sum(got, y, plan, routing, x, add, part))
            right = longcat_ops.fused_moe(x, routing, gate_up, down, plan=plan)[part].double()
            chain = ep.fused_moe(own_x, own, *mine, most_tokens=max(len(p) for p, _ in parts)).double()
            far = (chain - right).norm() > 2 * U * right.norm()
            wrong += [f"{case}: chain"] * (bool(far) or chain.shape != right.shape)
            to = [rows_to(own, SHAPE, ranks, other) for other in range(ranks)]
            came = sum(rows_to(p, SHAPE, ranks, rank) for r, (_, p) in enumerate(parts) if r != rank)
            expected["rows"] += 2 * sum(to)
            expected["remote rows"] += 2 * (sum(to) - to[rank])
            expected["slots saved"] += 2 * (own.ids.numel() - sum(to))
            sent = sum(tokens_to(own, ranks, other) for other in range(ranks) if other != rank)
            expected["bytes"] += 2 * (sent * row_bytes(SHAPE.hidden, payload) + came * 2 * SHAPE.hidden)
        wrong += [f"counts {ep.counts()}, expected {expected}"] * (ep.counts() != expected)
    return wrong + called_wrong(ranks)


def packed(q: Tensor, s: Tensor | None, row: int) -> bytes:
    parts = [q[row]] if s is None else [q[row], s[row]]
    return b"".join(part.view(torch.uint8).numpy().tobytes() for part in parts)


def same_sum(got: Tensor, y: Tensor, plan: longcat_ops.Plan, routing: longcat_ops.Routing, x: Tensor, add: Tensor,
             part: slice) -> bool:  # fmt: skip
    """The bits that the docstring promises for any number of ranks: bias, add, then weighted rows in their order."""
    total = (x.float() * routing.zero_weight[:, None]).bfloat16().float() + add.float()
    for k in range(routing.ids.shape[1]):
        row = plan.row_of[:, k].clamp(min=0).long()
        term = (y[row].float() * routing.weights[:, k, None]).bfloat16().float()
        total += term.masked_fill(plan.row_of[:, k, None] < 0, 0)
    return bits(got) == bits(total[part].bfloat16())


def tokens_to(routing: longcat_ops.Routing, ranks: int, to: int) -> int:
    """Tokens that have a choice with a weight on a rank."""
    first, last = (SHAPE.experts * r // ranks for r in (to, to + 1))
    here = (routing.ids >= first) & (routing.ids < last) & (routing.weights != 0)
    return int(here.any(1).sum())


def called_wrong(ranks: int) -> list[str]:
    """What the calls lacked: one buffer of one reduction, alignment 1, -1 for choices without weight, a bias always."""
    calls = fake_deep_ep.calls
    wrong = [name for name, given in calls if name == "ElasticBuffer" and given["allow_multiple_reduction"]]
    wrong += ["alignment" for name, given in calls if name == "dispatch" and given["expert_alignment"] != 1]
    wrong += ["bias" for name, given in calls if name == "combine" and given["biases"] not in (1, 2)]
    names = [name for name, _ in calls]
    wrong += [f"calls {names}"] * (names[0] != "ElasticBuffer" or names[-1] != "destroy" or names.count("destroy") != 1)
    return wrong


def in_flight(world: World, ranks: int, backend: str) -> list[str]:
    """Two dispatches wait for their combines, which come in either order; a wrong combine is refused by its rank."""
    wrong = []
    with stand_in(), opened(world, ranks, SHAPE, payload="bf16", backend="deepep") as ep:
        for order in ((0, 1), (1, 0)):
            layers = []
            for seed in range(2):
                x, routing = ep_cases.inputs("uneven", SHAPE, ranks, seed=seed)[world.rank]
                layers.append((x, routing, *ep.dispatch(x, routing)))
            for i in order:
                x, routing, q, _, _, handle = layers[i]
                got = ep.combine(q, handle, x, routing).double()
                weight = routing.zero_weight + (routing.weights * (handle.plan.row_of >= 0)).sum(1)
                right = x.double() * weight.double()[:, None]
                wrong += [f"combined {i}"] * bool((got - right).norm() > 4 * U * right.norm())
    return wrong


def refused(world: World, ranks: int, backend: str, alone: bool) -> list[str]:
    """A combine that all ranks refuse can be called again. alone: one that this rank alone may refuse poisons."""
    found = []
    with stand_in(), opened(world, ranks, SHAPE, payload="bf16", backend="deepep") as ep:
        x, routing = ep_cases.inputs("hot", SHAPE, ranks)[0]
        q, _, _, handle = ep.dispatch(x, routing)
        ep.combine_send(q, handle)
        for add in (x[1:] if alone else x.float(), None):
            try:
                found.append(str(list(ep.combine_recv(handle, x, routing, add).shape)))
            except longcat_ops.LongcatError as error:
                found.append(f"{type(error).__name__}: {error}")
    return [*found, fake_deep_ep.calls[-1][0]]


def elsewhere(world: World, ranks: int, backend: str) -> list[str]:
    """The second half of a dispatch into memory that is not DeepEP's, as a compiled graph would keep it."""
    with stand_in(), opened(world, ranks, SHAPE, payload="bf16", backend="deepep") as ep:
        x, routing = ep_cases.inputs("hot", SHAPE, ranks)[0]
        handle = ep.dispatch_send(x, routing)
        q, s, offsets, _ = ep._ranks._buffers[handle.buffer]
        try:
            torch.ops.longcat_ops.comm_dispatch_recv(ep._ranks._handle, 0, q.clone(), s, offsets, ep._ranks._token)
        except longcat_ops.LongcatError as error:
            return [f"{type(error).__name__}: {error}"]
    return ["served"]


def constructed(world: World, ranks: int, backend: str, name: str, value: object, hidden: int = 256) -> list[str]:
    """The error of the constructor where an attribute of the module is another; then what "auto" takes, and why."""
    module = type("deep_ep", (), {n: getattr(fake_deep_ep, n) for n in ("__version__", "ElasticBuffer", "topk_idx_t")})
    if name:
        setattr(module, name, value) if value is not None else delattr(module, name)
    shape = Shape(hidden=hidden)
    found = []
    with stand_in(module):
        try:
            opened(world, ranks, shape, backend="deepep").close()
            found.append("served")
        except longcat_ops.LongcatError as error:
            found.append(f"{type(error).__name__}: {error}")
        with opened(world, ranks, shape) as ep:
            found += [ep.backend, ep.why_not.get("deepep", "")]
    return found

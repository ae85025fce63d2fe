"""Jobs of a node: replayed graphs, long mixed sequences, two channels at once. Values are integers: sums are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from support import comm_oracle as oracle
from support.node import Node
from support.node_oracle import integers, total

WIDTH = 96
BF16 = torch.bfloat16


def _sum(node: Node, shape: tuple[int, ...], seed: int) -> Tensor:
    return total(shape, seed, node.ranks, node.device, BF16)


def _mine(node: Node, shape: tuple[int, ...], seed: int) -> Tensor:
    return integers(shape, seed + node.rank, node.device)


def replays(node: Node, rung: str, count: int, symmetric: bool, rows: int) -> list[str]:
    """One captured all-reduce with other inputs each time, and eager calls in between."""
    comm, shape = node.comm(rung), (rows, WIDTH)
    x = node.symmetric(comm, shape, BF16) if symmetric else torch.empty(shape, dtype=BF16, device=node.device)
    x.zero_()
    replay, wrong = node.capture(lambda: comm.all_reduce_(x)), []
    for i in range(count):
        x.copy_(_mine(node, shape, 10 * i))
        replay()
        if not torch.equal(x, _sum(node, shape, 10 * i)):
            wrong.append(f"replay {i}")
        if i % 10 == 9 and not torch.equal(comm.all_reduce(_mine(node, shape, i)), _sum(node, shape, i)):
            wrong.append(f"the eager call after replay {i}")
    comm.check()
    return wrong


def counts_on_the_device(node: Node, rung: str, count: int) -> list[str]:
    """One captured reduce-scatter and all-gather, and other rows of each rank in each replay."""
    comm, cases = node.comm(rung), list(oracle.row_cases(node.ranks).values())
    most = max(sum(rows) for rows in cases)
    rows = torch.tensor(cases[0], dtype=torch.int32, device=node.device)
    x, own, gathered = (torch.zeros(most, WIDTH, dtype=BF16, device=node.device) for _ in range(3))

    def run() -> None:
        comm.reduce_scatter(x, own, rows)
        comm.all_gather(own, gathered, rows)

    replay, wrong = node.capture(run), []
    for i in range(count):
        case = cases[i % len(cases)]
        rows.copy_(torch.tensor(case, dtype=torch.int32))
        x.copy_(_mine(node, (most, WIDTH), i))
        own.fill_(7)
        gathered.fill_(7)
        replay()
        want, start = _sum(node, (most, WIDTH), i), sum(case[: node.rank])
        here, used = case[node.rank], sum(case)
        if not torch.equal(own[:here], want[start : start + here]) or not (own[here:] == 7).all():
            wrong.append(f"replay {i}, reduce_scatter, rows {case}")
        if not torch.equal(gathered[:used], want[:used]) or not (gathered[used:] == 7).all():
            wrong.append(f"replay {i}, all_gather, rows {case}")
    return wrong


def two_graphs(node: Node, rung: str, count: int) -> list[str]:
    """Two captured collectives of one channel, replayed in an order that all ranks share."""
    comm, shapes, wrong = node.comm(rung), ((2, WIDTH), (257, WIDTH)), []
    tensors = [torch.zeros(shape, dtype=BF16, device=node.device) for shape in shapes]
    graphs = [node.capture(lambda x=x: comm.all_reduce_(x)) for x in tensors]
    for i, which in enumerate(np.random.default_rng(5).integers(0, 2, count).tolist()):
        tensors[which].copy_(_mine(node, shapes[which], i))
        graphs[which]()
        if not torch.equal(tensors[which], _sum(node, shapes[which], i)):
            wrong.append(f"replay {i} of graph {which}")
    return wrong


def mixed(node: Node, rung: str, count: int) -> list[str]:
    """`count` operations drawn alike on all ranks, of any size from zero rows up, on two channels in turn."""
    comm, draw, wrong = node.comm(rung), np.random.default_rng(11), []
    channels, right = [comm.channel(0), comm.channel(1)], torch.ones(1, dtype=torch.bool, device=node.device)
    for i in range(count):
        channel, op = channels[i % 2], int(draw.integers(0, 5))
        shape = (int(draw.integers(0, 40)), int(draw.integers(1, 900)))
        right &= _one(node, channel, op, shape, i, draw)
        if i % 100 == 99:
            if not right.item():
                wrong.append(f"one of the calls {i - 99} .. {i}")
                right.fill_(True)
            if node.fleet.on_gpus:
                comm.check()
    return wrong if right.item() else [*wrong, "one of the last calls"]


def _one(node: Node, channel: Any, op: int, shape: tuple[int, int], seed: int, draw: np.random.Generator) -> Tensor:
    """Whether one operation gave what it should, as a bool on the device: nothing waits for it here."""
    rows = np.bincount(draw.integers(0, node.ranks, shape[0]), minlength=node.ranks).tolist()
    own = slice(sum(rows[: node.rank]), sum(rows[: node.rank + 1]))
    if op == 0:
        got, want = channel.all_reduce(_mine(node, shape, seed)), _sum(node, shape, seed)
    elif op == 1:
        got, want = channel.reduce_scatter(_mine(node, shape, seed), rows=rows), _sum(node, shape, seed)[own]
    elif op == 2:
        want = integers(shape, seed, node.device)
        got = channel.all_gather(want[own].clone(), rows=rows)
    elif op == 3:
        src = int(draw.integers(0, node.ranks))
        got, want = channel.broadcast_(_mine(node, shape, seed), src), integers(shape, seed + src, node.device)
    else:
        residual, weight = integers(shape, seed, node.device), torch.ones(shape[1], device=node.device)
        _, got = channel.all_reduce_residual_rmsnorm(_mine(node, shape, seed), residual, weight, 1e-5)
        want = _sum(node, shape, seed) + residual
    return (got == want).all()


def channels_at_once(node: Node, rung: str, count: int) -> list[str]:
    """Two channels on two streams, which nothing orders: their calls run side by side."""
    comm, wrong, results = node.comm(rung), [], []
    inputs = [[_mine(node, (300, WIDTH), 100 * c + i) for i in range(count)] for c in range(2)]
    node.synchronize()
    for c, stream in enumerate(node.streams(2)):
        channel = comm.channel(c)
        with stream:
            results.append([channel.all_reduce(x) for x in inputs[c]])
    node.synchronize()
    comm.check()
    for c, outs in enumerate(results):
        wrong += [f"channel {c}, call {i}" for i, out in enumerate(outs)
                  if not torch.equal(out, _sum(node, (300, WIDTH), 100 * c + i))]  # fmt: skip
    return wrong

"""Calls of expert parallelism that tests of values and tests of planted bugs share, with their right results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from longcat_ops.comm.expert_kernels import COMBINE, DISPATCH, Shape
from longcat_ops.testing.op_results import bits
from support import comm_machine as comm
from support.emulated_kernels import assert_gaps_untouched
from support.ep_calls import (
    Exchange,
    assert_counters,
    assert_read,
    assert_received,
    assert_returned,
    problem,
)

# ranks, experts, top_k, hidden; tokens of each rank
SHAPES = {
    "two ranks": (2, 16, 12, 272, (9, 4)),
    "four ranks, one without tokens": (4, 16, 4, 144, (5, 0, 7, 2)),
    "three experts each": (8, 24, 6, 16, (3, 1, 0, 4, 2, 5, 1, 3)),
    "one expert each": (4, 4, 12, 128, (3, 6, 1, 2)),
    "one choice": (2, 6, 1, 400, (5, 8)),
    "one rank": (1, 8, 3, 32, (5,)),
    "rows of two parts": (2, 4, 2, 1040, (3, 2)),
    "as many experts as threads": (4, 32, 8, 48, (4, 3, 0, 5)),
    "most experts and choices": (2, 1024, 32, 16, (2, 3)),
    "no tokens": (4, 8, 2, 64, (0, 0, 0, 0)),
    "more experts than a warp has lanes": (2, 70, 8, 48, (6, 3)),
}


def shape_of(name: str, payload: str) -> tuple[Shape, tuple[int, ...]]:
    ranks, experts, top_k, hidden, tokens = SHAPES[name]
    return Shape(ranks, experts, top_k, max(tokens) + 1, hidden, payload), tokens


@contextmanager
def opened(shape: Shape, buffers: int, epoch: int = 0) -> Iterator[Exchange]:
    """The emulator has no machine of one device: there a second one rests."""
    with comm.machine(max(shape.ranks, 2), bytes=Exchange.bytes(shape, buffers)) as m:
        for c in m.comms:
            c.ranks = shape.ranks
        yield Exchange(m, shape, buffers, epoch)


def ok(m: comm.Machine) -> None:
    m.synchronize()
    assert m.statuses() == ["ok"] * m.ranks


def one_call(name: str, payload: str, kind: str, seed: int) -> None:
    """Step by step: what each kernel leaves, and nothing else."""
    shape, tokens = shape_of(name, payload)
    p = problem(shape, tokens, seed, kind)
    with opened(shape, 2) as ex:
        m, buffer, ranks = ex.m, seed % 2, range(shape.ranks)
        offsets = [ex.counts(p, rank, buffer) for rank in ranks]
        ok(m)
        assert bits(offsets) == bits(p.offsets)
        for rank in ranks:
            ex.dispatch(p, rank, buffer)
            ex.wait(rank, buffer, DISPATCH)
        ok(m)
        for rank in ranks:
            assert_received(ex, p, rank, buffer)
            ex.combine(p, rank, buffer)
            ex.wait(rank, buffer, COMBINE)
        ok(m)
        outs = [ex.read_returned(p, rank, buffer) for rank in ranks]
        ok(m)
        for rank in ranks:
            assert_received(ex, p, rank, buffer)
            assert_returned(ex, p, rank, buffer)
            assert bits(outs[rank]) == bits(p.out[rank])
        assert_gaps_untouched(*(t.view(1, -1) for t in offsets), *outs)
        ex.assert_gaps_untouched()
        assert_counters(ex, [p])


def calls_in_a_row(name: str, payload: str, seed: int, *, calls: int, buffers: int, epoch: int = 0) -> None:
    """Calls that nothing but their own counts keeps apart: all are queued on all devices before any runs."""
    shape, tokens = shape_of(name, payload)
    ranks = range(shape.ranks)
    problems = [
        problem(shape, [tokens[(rank + i) % shape.ranks] for rank in ranks], seed + i, ("mixed", "hot", "full")[i % 3])
        for i in range(calls)
    ]
    with opened(shape, buffers, epoch) as ex:
        made = []
        for rank in ranks:
            for i, p in enumerate(problems):
                buffer = i % buffers
                offsets = ex.send(p, rank, buffer)
                rows = ex.read_rows(rank, buffer)
                ex.combine(p, rank, buffer)
                out = ex.read_returned(p, rank, buffer)
                # Also behind the combine, whose flag would tell the others that nobody reads the rows any more.
                late = ex.read_rows(rank, buffer, wait=False) if i % 2 == 0 else rows
                made += [(p, rank, offsets, r, out) for r in (rows, late)]
        ok(ex.m)
        check(ex, made)
        ex.assert_gaps_untouched()
        assert_counters(ex, problems)


def two_calls_in_flight(name: str, payload: str, seed: int, *, rounds: int = 2, epoch: int = 0) -> None:
    """Two layers: both are sent before either comes back, several times over, all queued before any runs."""
    shape, tokens = shape_of(name, payload)
    ranks = range(shape.ranks)
    problems = [[problem(shape, tokens, seed + 2 * i + b, "hot" if b else "mixed") for b in range(2)]
                for i in range(rounds)]  # fmt: skip
    with opened(shape, 2, epoch) as ex:
        made = []
        for rank in ranks:
            for pair in problems:
                offsets = [ex.send(p, rank, b) for b, p in enumerate(pair)]
                rows = [ex.read_rows(rank, b) for b in (1, 0)]
                for b, p in enumerate(pair):
                    ex.combine(p, rank, b)
                outs = [ex.read_returned(p, rank, b) for b, p in enumerate(pair)]
                made += [(pair[b], rank, offsets[b], rows[1 - b], outs[b]) for b in range(2)]
        ok(ex.m)
        check(ex, made)


def check(ex: Exchange, made: list) -> None:
    for p, rank, offsets, rows, out in made:
        assert bits(offsets) == bits(p.offsets[rank])
        assert_read(rows, p, rank)
        assert bits(out) == bits(p.out[rank])

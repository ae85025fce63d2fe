"""Calls of expert parallelism that cannot end, and plans that make no sense: what ranks report, and what is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from device_check.ranks import OP
from longcat_ops import Plan
from longcat_ops.comm import kernels
from longcat_ops.comm.expert_kernels import COMBINE, DISPATCH, Shape
from support.comm_machine import view
from support.emulated_kernels import FILLER
from support.ep_calls import Exchange, Problem, problem
from support.ep_checks import ok, opened

SHAPE = Shape(ranks=4, experts=8, top_k=3, max_tokens=4, hidden=144, payload="fp8")
TOKENS = (4, 2, 0, 3)
STAGES = ["counts", "dispatch", "combine"]


def until(ex: Exchange, p: Problem, rank: int, stage: str, buffer: int = 0) -> None:
    """The steps of a rank up to its wait at a stage."""
    if stage == "counts":
        ex.counts(p, rank, buffer)
    elif stage == "dispatch":
        ex.dispatch(p, rank, buffer)
        ex.wait(rank, buffer, DISPATCH)
    else:
        ex.combine(p, rank, buffer)
        ex.wait(rank, buffer, COMBINE)


def whole(ex: Exchange, p: Problem, ranks: Iterable[int], buffer: int = 0) -> None:
    for rank in ranks:
        for stage in STAGES:
            until(ex, p, rank, stage, buffer)


def before(ex: Exchange, p: Problem, stage: str, buffer: int = 0) -> None:
    """All ranks have come through the stages ahead."""
    for earlier in STAGES[: STAGES.index(stage)]:
        for rank in range(ex.shape.ranks):
            until(ex, p, rank, earlier, buffer)
        ok(ex.m)


def absent_ranks(stage: str, absent: Sequence[int], calls: int, epoch: int = 0) -> None:
    """`calls` calls went well; then `absent` stop ahead of a stage. Each rank whose own time is up names all of them,
    the others name such a rank."""
    p = problem(SHAPE, TOKENS)
    with opened(SHAPE, 1, epoch) as ex:
        for _ in range(calls):
            whole(ex, p, range(4))
        ok(ex.m)
        before(ex, p, stage)
        present = {0, 1, 2, 3} - set(absent)
        for rank in present:
            until(ex, p, rank, stage)
        ex.m.synchronize()
        assert "timeout" in ex.m.statuses()
        assert all(ex.m.records[rank].status == 0 for rank in absent)
        epochs = [epoch]
        for _ in range(calls + 1):
            epochs.append(epochs[-1] + 1 if epochs[-1] < 2**32 - 1 else 2)  # 0 is none, and even follows odd
        # Lines take turns: in the place of the next one stands that of the call before the last.
        done = [0] * 2 + epochs[1:-1]
        seen = done[-2] if stage == "counts" else done[-1]
        for rank in present:
            record = ex.m.records[rank]
            assert (record.op, kernels.STAGES[record.stage]) == (OP, stage)
            if kernels.STATUS[record.status] == "a peer aborted":
                assert record.missing_ranks and set(record.missing_ranks) <= present - {rank}
                assert all(kernels.STATUS[ex.m.records[r].status] == "timeout" for r in record.missing_ranks)
                continue
            assert kernels.STATUS[record.status] == "timeout" and record.missing_ranks == list(absent)
            assert (record.expected, record.seen) == (epochs[-1], seen)


def host_abort(stage: str) -> None:
    """The host of one rank ends the waits of all, where there is no timeout and rank 3 is missing for good."""
    p = problem(SHAPE, TOKENS)
    with opened(SHAPE, 1) as ex:
        before(ex, p, stage)
        for c in ex.m.comms:
            c.timeout_ns = 0
        ex.m.records[1].host_abort = 1
        for rank in range(3):
            until(ex, p, rank, stage)
        ex.m.synchronize()
        assert ex.m.statuses() == ["a peer aborted", "aborted by the host", "a peer aborted", "ok"]
        assert [ex.m.records[rank].missing_ranks for rank in (0, 2)] == [[1], [1]]


def abort_by_a_rank_in_no_call(stage: str) -> None:
    p = problem(SHAPE, TOKENS)
    with opened(SHAPE, 1) as ex:
        before(ex, p, stage)
        for c in ex.m.comms:
            c.timeout_ns = 0
        for rank in (1, 2, 3):
            until(ex, p, rank, stage)
        ex.m.launch(kernels.AbortArgs, 0)
        ex.m.synchronize()
        assert ex.m.statuses() == ["aborted by the host", *["a peer aborted"] * 3]
        assert [record.missing_ranks for record in ex.m.records] == [[0]] * 4


def part(ex: Exchange, rank: int, name: str) -> torch.Tensor:
    sizes = ex.shape.parts() | ex.shape.buffer_parts()
    return view(ex.m, rank, (ex.common | ex.at[0])[name], sizes[name], torch.uint8)


def assert_nothing_came(ex: Exchange, flags: int = 0) -> None:
    """No row, and no flag beyond `flags`, at any rank."""
    for rank in range(ex.shape.ranks):
        for name in ("rows", "scales", "returned"):
            assert bool((part(ex, rank, name) == FILLER).all())
        assert int((part(ex, rank, "flags") != 0).sum()) == flags
    ex.assert_gaps_untouched()


def calls_after_a_failure(stage: str) -> None:
    """Calls queued behind it end at once, as in a replayed graph, though all ranks come; they write nothing. The first
    report stays."""
    p = problem(SHAPE, TOKENS)
    with opened(SHAPE, 1) as ex:
        before(ex, p, stage)
        for rank in (0, 1):
            until(ex, p, rank, stage)
        ex.m.synchronize()
        reports = [bytes(record) for record in ex.m.records[:2]]
        for rank in range(4):
            for name in ("rows", "scales", "returned"):
                part(ex, rank, name).fill_(FILLER)
            part(ex, rank, "flags").zero_()
        for c in ex.m.comms:
            c.timeout_ns = 0
        tables = [table.clone() for table in ex.tables]
        for _ in range(2):
            whole(ex, p, range(4))
        offsets = [ex.counts(p, rank, 0) for rank in range(4)]
        ex.m.synchronize()
        assert all(bool((t.view(torch.uint8) == FILLER).all()) for t in offsets)
        assert all(map(torch.equal, tables, ex.tables))
        assert [bytes(record) for record in ex.m.records[:2]] == reports
        assert ex.m.statuses()[2:] == ["a peer aborted"] * 2
        assert_nothing_came(ex)


def sends_of_a_rank_that_was_told(stage: str) -> None:
    """All have counted, or come to their combine; then one gives up. The others send nothing and flag nobody, and each
    sender says why."""
    p = problem(SHAPE, TOKENS)
    with opened(SHAPE, 1) as ex:
        before(ex, p, stage)
        ex.m.launch(kernels.AbortArgs, 1)
        ex.m.synchronize()
        for rank in range(4):
            for name in ("rows", "scales", "returned"):
                part(ex, rank, name).fill_(FILLER)
            part(ex, rank, "flags").zero_()
        for rank in (0, 2, 3):
            ex.dispatch(p, rank, 0) if stage == "dispatch" else ex.combine(p, rank, 0)
        ex.m.synchronize()
        assert_nothing_came(ex)
        assert ex.m.statuses() == ["a peer aborted", "aborted by the host", "a peer aborted", "a peer aborted"]
        assert {kernels.STAGES[ex.m.records[rank].stage] for rank in (0, 2, 3)} == {stage}


def waits_of_a_rank_that_was_told() -> None:
    """All rows are there, but the exchange has ended."""
    p = problem(SHAPE, TOKENS)
    for stage, traffic in (("dispatch", DISPATCH), ("combine", COMBINE)):
        with opened(SHAPE, 1) as ex:
            whole(ex, p, range(4))
            ok(ex.m)
            ex.m.launch(kernels.AbortArgs, 1)
            ex.m.synchronize()
            ex.wait(0, 0, traffic)
            ex.m.synchronize()
            assert ex.m.statuses() == ["a peer aborted", "aborted by the host", "ok", "ok"]
            assert kernels.STAGES[ex.m.records[0].stage] == stage


def refused_counts(shape: Shape, p: Problem, named: int, expected: int) -> None:
    """All ranks find out. Nothing is written then or later, and nobody waits."""
    with opened(shape, 1) as ex:
        for rank in range(shape.ranks):
            for stage in STAGES:
                until(ex, p, rank, stage)
        ex.m.synchronize()
        assert set(ex.m.statuses()) <= {"bad row counts", "a peer aborted"}
        found = [r for r in ex.m.records if kernels.STATUS[r.status] == "bad row counts"]
        assert found
        for record in found:
            assert kernels.STAGES[record.stage] == "rows" and record.missing_ranks == [named]
            assert record.expected == expected
        assert_nothing_came(ex)
        assert all(not any(ex.counters(rank)) for rank in range(shape.ranks))


def an_expert_named_too_often(named: Sequence[int] = (9, 6, 3, 9)) -> None:
    """Tokens that name one expert in several choices, `named` of each rank, would need more rows than a rank has."""
    shape = replace(SHAPE, experts=4, max_tokens=3)
    p = problem(shape, (3, 2, 1, 3))
    for rank, tokens in enumerate((3, 2, 1, 3)):
        ids = torch.full((tokens, 3), 2, dtype=torch.int32)
        rows = torch.arange(3 * tokens, dtype=torch.int32)
        rows = rows.where(rows < named[rank], -1)
        offsets = torch.tensor([0, 0, 0, named[rank], named[rank]], dtype=torch.int32)
        p.plans[rank] = Plan(offsets, rows.view(tokens, 3), rows)
        p.routings[rank] = p.routings[rank]._replace(ids=ids)
    refused_counts(shape, p, named=2, expected=shape.received)


def offsets_that_make_no_sense(change: dict[int, int]) -> None:
    """Of rank 1: below 0, falling, or more than may come back."""
    p = problem(SHAPE, TOKENS)
    offsets = p.plans[1].offsets.clone()
    for i, value in change.items():
        offsets[i] = value
    p.plans[1] = p.plans[1]._replace(offsets=offsets)
    refused_counts(SHAPE, p, named=1, expected=SHAPE.returned)


def rows_outside_of_the_buffer() -> None:
    """A plan that is not the one whose offsets were sent writes nothing outside of the receivers' rows. Nor does a
    table that is damaged."""
    shape = Shape(ranks=2, experts=2, top_k=2, max_tokens=3, hidden=128, payload="bf16")
    p = problem(shape, (3, 3), kind="full")
    for rank, expert, row in ((1, 0, 5), (1, 0, 3), (0, 1, 0), (0, 2, 1), (1, -1, 1)):  # (1, 0, 3): just behind
        with opened(shape, 1) as ex:
            before(ex, p, "dispatch")
            ids, row_of = p.routings[rank].ids.clone(), torch.full((3, 2), -1, dtype=torch.int32)
            ids[0, 1], row_of[0, 1] = expert, row
            plans, routings = list(p.plans), list(p.routings)
            plans[rank], routings[rank] = plans[rank]._replace(row_of=row_of), routings[rank]._replace(ids=ids)
            ex.dispatch(replace(p, plans=plans, routings=routings), rank, 0)
            ok(ex.m)
            assert_nothing_came(ex, flags=1)
    for shift in (2**20, -(2**20), shape.returned):
        with opened(shape, 1) as ex:
            before(ex, p, "combine")
            ex.tables[0].view(torch.int32)[32 + 8 + 2 * shape.experts + 1 :][: shape.experts] = shift
            ex.combine(p, 0, 0)
            ok(ex.m)
            assert all(bool((part(ex, rank, "returned") == FILLER).all()) for rank in range(2))
            ex.assert_gaps_untouched()

"""Calls of the collectives that tests of values and tests of planted bugs share, with their right results."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from longcat_ops.comm import kernels
from support import comm_ranks as comm
from support.comm_ranks import LINES, MAX_LINE_BYTES, PAYLOAD, Machine, in_order, inputs
from support.emulated_kernels import FILLER

OP = 7  # of every call, for the record
TWO_MEETINGS = ["all_reduce", "reduce_scatter", "all_gather"]
WHATS = [*TWO_MEETINGS, "low_latency"]


def mixed(m: Machine, seed: int, count: int, rows: list[int], whats: Sequence[str] = WHATS) -> None:
    """Each collective, in any order, queued before any of them runs: their own meetings alone keep them apart."""
    ranks, width = m.ranks, 9
    order = random.Random(seed).sample(whats, len(whats))
    checks = []
    m.hold = True
    for what in order:
        tensors = inputs(ranks, count, torch.bfloat16, exact=True, seed=seed)
        by_rows = inputs(ranks, sum(rows) * width, torch.float32, exact=True, seed=seed)
        sizes = [r * width for r in rows]
        if what == "reduce_scatter":
            results = comm.reduce_scatter(m, by_rows, rows, width, staged=True)
            checks.append((results, list(in_order(by_rows).split(sizes))))
        elif what == "all_gather":
            results = comm.all_gather(m, list(by_rows[0].split(sizes)), rows, width, staged=True)
            checks.append((results, [by_rows[0]] * ranks))
        else:
            lines = what == "low_latency"
            results = comm.low_latency(m, tensors) if lines else comm.all_reduce(m, tensors, staged=True)
            checks.append((results, [in_order(tensors)] * ranks))
    m.hold = False
    m.synchronize()
    assert m.statuses() == ["ok"] * ranks
    for results, expected in checks:
        for out, right in zip(results, expected, strict=True):
            assert torch.equal(out, right)


def launch(m: Machine, what: str, rank: int) -> None:
    """A small collective on one rank."""
    values = dict(input=torch.full((64,), rank + 1, dtype=torch.float32), out=torch.empty(64))
    rows = dict(rows=[64 // m.ranks] * m.ranks, max_rows=64)
    if what == "all_reduce":
        m.launch(kernels.AllReduceArgs, rank, payload=PAYLOAD, elements=64, dtype=0, **values)
    elif what == "low_latency":
        m.launch(kernels.LowLatencyArgs, rank, lines=LINES, max_bytes=MAX_LINE_BYTES, elements=64, dtype=0, **values)
    elif what == "reduce_scatter":
        m.launch(kernels.ReduceScatterArgs, rank, payload=PAYLOAD, width=1, dtype=0, **rows, **values)
    else:
        m.launch(kernels.AllGatherArgs, rank, payload=PAYLOAD, row_bytes=4, **rows, **values)


def absent_rank(form: str, what: str, absent: Sequence[int], epoch: int = 0) -> None:
    """Ranks that never arrive are named by each rank whose own time is up; the others name that rank."""
    with comm.of_form(4, form) as m:
        m.start_epochs(epoch)
        present = {0, 1, 2, 3} - set(absent)
        for rank in present:
            launch(m, what, rank)
        m.synchronize()
        for rank in present:
            record = m.records[rank]
            assert record.op == OP
            if kernels.STATUS[record.status] == "a peer aborted":
                assert set(record.missing_ranks) < present
                continue
            assert kernels.STATUS[record.status] == "timeout"
            assert kernels.STAGES[record.stage] == ("lines" if what == "low_latency" else "entry")
            if what == "low_latency":
                assert record.missing and set(record.missing_ranks) <= set(absent)
            else:
                assert record.missing_ranks == list(absent) and (record.expected, record.seen) == (
                    (epoch + 1) % 2**32,
                    epoch,
                )
        assert "timeout" in m.statuses()
        assert all(m.records[rank].status == 0 for rank in absent)


def host_abort(form: str, what: str) -> None:
    """The host of one rank ends the waits of all, where there is no timeout and rank 3 is missing for good."""
    with comm.of_form(4, form) as m:
        for c in m.comms:
            c.timeout_ns = 0
        m.records[1].host_abort = 1
        for rank in range(3):
            launch(m, what, rank)
        m.synchronize()
        assert m.statuses() == ["a peer aborted", "aborted by the host", "a peer aborted", "ok"]
        assert [m.records[rank].missing_ranks for rank in (0, 2)] == [[1], [1]]


def calls_after_a_failure(form: str, what: str, first: str) -> None:
    """Calls queued behind it end at once, as in a replayed graph, though all ranks come. The first report stays."""
    with comm.of_form(3, form) as m:
        for rank in (0, 1):
            launch(m, first, rank)
        m.synchronize()
        reports = [bytes(record) for record in m.records[:2]]
        for c in m.comms:
            c.timeout_ns = 0
        for _ in range(2):
            for rank in range(3):
                launch(m, what, rank)
        m.synchronize()
        assert [bytes(record) for record in m.records[:2]] == reports
        assert m.statuses()[2] == "a peer aborted"


def flags_that_come_round_again(form: str) -> None:
    """A line that was last written 2^31 calls ago has the flag of this call. Every 2^30 calls all lines are sent."""
    start = 2**30 - 3
    with comm.of_form(2, form) as m:
        m.start_epochs(0, lines=start)
        late = start + 8  # the call that uses all lines
        for rank in range(2):
            lines = comm.view(m, rank, LINES, 2 * 2 * MAX_LINE_BYTES // 4 * 2, torch.int32)
            lines.fill_(late - 2**31)  # data and flag
        for call in range(start + 1, late + 1):
            tensors = inputs(2, MAX_LINE_BYTES // 4 if call == late else 8, torch.float32, exact=False, seed=call % 97)
            for out in comm.low_latency(m, tensors):
                assert torch.equal(out, in_order(tensors))


def rows_that_do_not_fit(form: str, rows: Sequence[int]) -> None:
    """Row counts on the device that are below 0, or more than 12 in all: nothing is written, and the ranks say so."""
    with comm.of_form(3, form) as m:
        out, source = comm.hollow(12 * 8, torch.float32), torch.ones(12 * 8)
        for rank in range(3):
            values = dict(payload=PAYLOAD, max_rows=12, device_rows=torch.tensor(rows, dtype=torch.int32), input=source)
            m.launch(kernels.ReduceScatterArgs, rank, width=8, dtype=0, out=out, **values)
            m.launch(kernels.AllGatherArgs, rank, row_bytes=32, out=out, **values)
        m.synchronize()
        assert bool((out.view(torch.uint8) == FILLER).all())
        assert set(m.statuses()) <= {"bad row counts", "a peer aborted"}
        first = next(record for record in m.records if kernels.STATUS[record.status] == "bad row counts")
        assert kernels.STAGES[first.stage] == "rows" and first.expected == 12

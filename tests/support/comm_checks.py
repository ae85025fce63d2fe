"""Calls of the collectives that tests of values and tests of planted bugs share, with their right results."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from device_check.collective_calls import PAYLOAD, in_order
from device_check.ranks import OP
from longcat_ops.comm import kernels
from longcat_ops.testing.op_results import bits
from support import comm_machine as comm
from support.comm_machine import LINES, MAX_LINE_BYTES, Machine, inputs
from support.emulated_kernels import FILLER, run

MIXED = ["all_reduce", "reduce_scatter", "all_gather", "low_latency"]
TWO_BARRIERS = ["all_reduce", "reduce_scatter", "all_gather"]
LINES_ALONE = ["low_latency", "low_latency_norm"]
WHATS = [*TWO_BARRIERS, "norm", *LINES_ALONE]


def mixed(m: Machine, seed: int, count: int, rows: list[int], whats: Sequence[str] = MIXED) -> None:
    """Each collective, in any order, queued before any of them runs: their own barriers alone keep them apart."""
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
    if what in ("norm", "low_latency_norm"):
        del values["out"]
        outs = {name: torch.empty(64) for name in ("residual_out", "y")}
        at = LINES if what == "low_latency_norm" else PAYLOAD
        m.launch(kernels.NormArgs, rank, payload=at, max_bytes=MAX_LINE_BYTES, rows=8, width=8, dtype=0, eps=1e-5,
                 lines=int(at == LINES), residual=torch.ones(64), weight=torch.ones(8), **values, **outs)  # fmt: skip
    elif what == "all_reduce":
        m.launch(kernels.AllReduceArgs, rank, payload=PAYLOAD, elements=64, dtype=0, **values)
    elif what == "low_latency":  # of more than one block
        values = dict(input=torch.full((256,), rank + 1, dtype=torch.float32), out=torch.empty(256))
        m.launch(kernels.LowLatencyArgs, rank, lines=LINES, max_bytes=MAX_LINE_BYTES, elements=256, dtype=0, **values)
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
                assert record.missing_ranks and set(record.missing_ranks) <= present - {rank}
                assert all(kernels.STATUS[m.records[first].status] == "timeout" for first in record.missing_ranks)
                continue
            assert kernels.STATUS[record.status] == "timeout"
            assert kernels.STAGES[record.stage] == ("lines" if what in LINES_ALONE else "entry")
            if what in LINES_ALONE:
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


def abort_by_a_rank_in_no_call(form: str, what: str) -> None:
    """Rank 0, which has refused a call, ends the waits of the others."""
    with comm.of_form(3, form) as m:
        for c in m.comms:
            c.timeout_ns = 0
        for rank in (1, 2):
            launch(m, what, rank)
        m.launch(kernels.AbortArgs, 0)
        m.synchronize()
        assert m.statuses() == ["aborted by the host", "a peer aborted", "a peer aborted"]
        assert [record.missing_ranks for record in m.records] == [[0]] * 3


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


def rows_that_do_not_fit(form: str, rows: Sequence[int], most: int = 12) -> None:
    """Row counts on the device that are below 0, more than 12 in all or more than `most` of a rank: nothing is written,
    and the ranks say so."""
    with comm.of_form(3, form) as m:
        outs = [comm.hollow(12 * 8, torch.float32) for _ in range(3)]
        for rank, out in enumerate(outs):
            counts = torch.tensor(rows, dtype=torch.int32)
            values = dict(payload=PAYLOAD, max_rows=12, max_own_rows=most, device_rows=counts, input=torch.ones(12 * 8))
            m.launch(kernels.ReduceScatterArgs, rank, width=8, dtype=0, out=out, **values)
            m.launch(kernels.AllGatherArgs, rank, row_bytes=32, out=out, **values)
        m.synchronize()
        assert all(bool((out.view(torch.uint8) == FILLER).all()) for out in outs)
        assert set(m.statuses()) <= {"bad row counts", "a peer aborted"}
        first = next(record for record in m.records if kernels.STATUS[record.status] == "bad row counts")
        assert kernels.STAGES[first.stage] == "rows" and first.expected == 12


def norm_of(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, ...]:
    """(q, s, y, residual_out) of the kernel of rms_norm_quant_fp8, in the emulator, while no machine is open."""
    codes, h, y = torch.empty(x.shape, dtype=torch.float8_e4m3fn), torch.empty_like(x), torch.empty_like(x)
    s = torch.empty(len(x), -(-x.shape[1] // 128))
    run("rms_norm_quant_fp8", x, weight, eps, residual, codes, s, y, h)
    return codes, s, y, h


def residual_norm(form: str, shape: tuple[int, int], dtype: torch.dtype, seed: int, *, ranks: int = 3,
                  threads: int = 32, **options: bool) -> None:  # fmt: skip
    """The bits of rms_norm_quant_fp8 of the sum, twice. Integers: the switch may add in any order."""
    rows, width = shape
    g = torch.Generator().manual_seed(seed)
    calls = []
    for call in range(2):
        x = [t.view(shape) for t in inputs(ranks, rows * width, dtype, exact=True, seed=seed + call)]
        residual, weight = torch.randn(shape, generator=g).to(dtype), torch.randn(width, generator=g)
        calls.append((x, residual, weight, norm_of(in_order(x), residual, weight, 1e-5)))
    with comm.of_form(ranks, form, threads=max(threads, 64 if width > 256 else 32)) as m:
        for x, residual, weight, right in calls:
            results = comm.residual_norm(m, x, residual, weight, 1e-5, **options)
            assert m.statuses() == ["ok"] * ranks
            for got in results:
                for out, expected in zip(got, right, strict=True):
                    assert out is None or bits(out) == bits(expected)

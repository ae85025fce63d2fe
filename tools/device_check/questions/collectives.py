"""Do the collectives' protocols hold with several ranks on one GPU? Every rank has a stream, and a region of the GPU's
own memory. This shows barriers, lines, epochs, parts and aborts on the chip. It shows nothing of links or switches."""

from __future__ import annotations

import functools
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from comm.cells import RAGGED
from device_check import collective_calls as calls
from device_check.collective_calls import DTYPES, Call, Sizes, sizes
from device_check.machine import Machine
from device_check.ranks import BEFORE_THE_WRAP, OP, Prepared, Ranks, StreamRanks, open_multicast, open_ranks
from longcat_ops.comm import kernels
from longcat_ops.comm.providers.faults import DriverError
from longcat_ops.errors import LongcatUnsupportedError

LATE_S = 0.2  # what the host may add to a deadline: launches and its own waking


def each_kernel(ranks: int, size: Sizes) -> list[Call]:
    """One small call of every compiled kernel."""
    found = [calls.all_gather([1] * ranks, 32, torch.bfloat16, staged=True, on_device=False, seed=0)]
    for seed, dtype in enumerate(DTYPES):
        found += [
            calls.all_reduce(ranks, 100, dtype, staged=True, seed=seed),
            calls.lines(ranks, 100, dtype, size, seed=seed),
            calls.reduce_scatter([1] * ranks, 32, dtype, staged=True, on_device=False, seed=seed),
            *(calls.residual_norm(ranks, 2, 64, dtype, size, seed=seed, by_lines=lines) for lines in (False, True)),
        ]
    return found


@functools.cache
def loaded(machine: Machine) -> None:
    """Loads every kernel. CUDA loads a kernel at its first launch, and that may wait for all kernels that run: for
    ever, if one of them waits for this launch. A single rank waits for nobody."""
    if machine.real:
        with open_ranks(machine, 1) as one:
            one.delay(0)
            for call in each_kernel(1, sizes(True)):
                one.run(call)
            one.launch(0, kernels.AbortArgs(comm=one.comms[0]))


@contextmanager
def opened(machine: Machine, ranks: int, **options: Any) -> Iterator[Ranks]:
    loaded(machine)
    with open_ranks(machine, ranks, **options) as found:
        yield found


def values(machine: Machine, ranks: int, sizes_of: Sequence[int], norms: Sequence[Sequence[int]]) -> dict[str, Any]:
    """All-reduce in two barriers and in lines, and all-reduce with residual and norm in both forms.

    sizes_of: bytes of a tensor; norms: rows and width of one."""
    size, found = sizes(machine.real), []
    for seed, (bytes, staged) in enumerate(itertools.product(sizes_of, (True, False))):
        dtype = DTYPES[seed % 3]
        count = bytes // dtype.itemsize - seed % 2
        found.append(calls.all_reduce(ranks, count, dtype, staged=staged, seed=seed, offset=seed % 4 // 2))
    few = [bytes for bytes in sizes_of if bytes <= size.line]
    for seed, (bytes, dtype) in enumerate(itertools.product(few, DTYPES)):
        found.append(calls.lines(ranks, bytes // dtype.itemsize - seed % 2, dtype, size, seed=seed))
    for seed, (shape, codes, form) in enumerate(itertools.product(norms, (True, False), ("staged", "place", "lines"))):
        dtype = DTYPES[seed % 2]
        if form == "lines" and shape[0] * shape[1] * dtype.itemsize > size.line:
            continue
        found.append(calls.residual_norm(ranks, shape[0], shape[1], dtype, size, seed=seed, codes=codes,
                                         by_lines=form == "lines", staged=form != "place"))  # fmt: skip
    return _run(machine, ranks, found)


def rows(machine: Machine, ranks: int, widths: Sequence[int]) -> dict[str, Any]:
    """Reduce-scatter and all-gather with the same rows for all, uneven ones, all on one rank, none; counts on the host
    and on the device; broadcasts from the first and the last rank."""
    lists = [[2] * ranks, RAGGED[:ranks], [0] * (ranks - 1) + [7], [0] * ranks]
    found = []
    for seed, (counts, width, staged, on_device) in enumerate(
        itertools.product(lists, widths, (True, False), (True, False))
    ):
        given: dict[str, Any] = dict(staged=staged, on_device=on_device, seed=seed)
        found.append(calls.reduce_scatter(counts, width, DTYPES[seed % 3], **given))
        found.append(calls.all_gather(counts, width, DTYPES[(seed + 1) % 3], **given))
    for source, staged in itertools.product((0, ranks - 1), (True, False)):
        counts = [int(rank == source) for rank in range(ranks)]
        found.append(calls.all_gather(counts, 9 * widths[0], DTYPES[0], staged=staged, on_device=False, seed=source))
    return _run(machine, ranks, found)


def _run(machine: Machine, ranks: int, found: Sequence[Call]) -> dict[str, Any]:
    with opened(machine, ranks) as group:
        for call in found:
            group.run(call)
    return {"ranks": ranks, "calls": len(found), "form": "peers"}


def in_a_row(machine: Machine, ranks: int, count: int, width: int) -> dict[str, Any]:
    """`count` mixed calls without a wait of the host, before each of which one rank is late, while the epochs wrap
    around. Each has outputs of its own."""
    size = sizes(machine.real)
    uneven, even = RAGGED[:ranks], [3] * ranks
    kinds = [
        *(calls.all_reduce(ranks, n, DTYPES[n % 3], staged=True, seed=n) for n in (7, width, 5 * width + 3)),
        *(calls.lines(ranks, n, DTYPES[n % 3], size, seed=n) for n in (3, 130)),
        *(make(counts, width, torch.bfloat16, staged=True, on_device=on_device, seed=len(counts))
          for make, counts, on_device in itertools.product((calls.reduce_scatter, calls.all_gather), (uneven, even),
                                                           (True, False))),
        *(calls.residual_norm(ranks, 1 + by_lines, 64, torch.bfloat16, size, seed=5, by_lines=by_lines)
          for by_lines in (False, True)),
    ]  # fmt: skip
    draw = random.Random(count)
    order = [draw.randrange(len(kinds)) for _ in range(count)]
    with opened(machine, ranks, epoch=BEFORE_THE_WRAP) as group:
        prepared = [group.prepare(call, order.count(kind)) for kind, call in enumerate(kinds)]
        done = [0] * len(kinds)
        for kind in order:
            group.delay(draw.randrange(ranks))
            group.call(prepared[kind], done[kind])
            done[kind] += 1
        group.synchronize()
        for each in prepared:
            group.compare(each)
    return {"ranks": ranks, "calls": count, "kinds": len(kinds), "epochs_from": BEFORE_THE_WRAP}


def graphs(machine: Machine, ranks: int, replays: int, width: int) -> dict[str, Any]:
    """A graph of one call for each rank, replayed with other inputs and other rows, between calls without a graph."""
    size = sizes(machine.real)

    def made(turn: int) -> list[Call]:
        rows = random.Random(turn).sample(RAGGED[:ranks], ranks)
        by_rows: dict[str, Any] = dict(staged=True, on_device=True, seed=turn)
        return [
            calls.all_reduce(ranks, 5 * width + 3, torch.bfloat16, staged=True, seed=turn),
            calls.lines(ranks, 130, torch.float32, size, seed=turn),
            calls.reduce_scatter(rows, width, torch.bfloat16, **by_rows),
            calls.all_gather(rows, width, torch.bfloat16, **by_rows),
            calls.residual_norm(ranks, 2, 64, torch.bfloat16, size, seed=2 * turn, by_lines=False),
        ]

    turns = [made(turn) for turn in range(replays)]
    with opened(machine, ranks) as group:
        prepared = [group.prepare(call) for call in turns[0]]
        captured = [group.captured(each) for each in prepared]
        for turn in turns:
            for each, replay, call in zip(prepared, captured, turn, strict=True):
                group.refill(each, call)
                replay()
                group.synchronize()
                group.compare(each)
            group.run(turn[0])
            group.run(turn[1])
    return {"ranks": ranks, "graphs": len(captured) * ranks, "replays": replays}


def failures(machine: Machine, ranks: int, timeout_s: float) -> dict[str, Any]:
    """A rank that does not come is named by all others in time. A host's abort ends waits, and so does that of a rank
    in no call. Each time new regions work afterwards."""
    size, absent = sizes(machine.real), ranks // 2
    counts, bf16 = [1] * ranks, torch.bfloat16
    by_rows: dict[str, Any] = dict(staged=True, on_device=False, seed=1)
    given = [
        calls.all_reduce(ranks, 1000, bf16, staged=True, seed=1),
        calls.reduce_scatter(counts, 64, bf16, **by_rows),
        calls.all_gather(counts, 64, bf16, **by_rows),
        calls.residual_norm(ranks, 2, 64, bf16, size, seed=1, by_lines=False),
        calls.lines(ranks, 100, bf16, size, seed=1),
        calls.residual_norm(ranks, 2, 64, bf16, size, seed=1, by_lines=True),
    ]
    others = [rank for rank in range(ranks) if rank != absent]
    longest = 0.0
    for call in given:
        with opened(machine, ranks, timeout_s=timeout_s) as group:
            prepared = group.prepare(call)
            start = time.monotonic()
            group.call(prepared, ranks=others)
            group.synchronize()
            longest = max(longest, time.monotonic() - start)
            _all_name(group, call, absent, others)
    late = longest - timeout_s
    assert not machine.real or 0 <= late < LATE_S, f"waits of {timeout_s} s ended after {longest:.3f} s"
    for way in ("host", "rank in no call"):
        with opened(machine, ranks) as group:
            _abort(machine, group, group.prepare(given[0]), others, way)
    with opened(machine, ranks) as group:
        for call in given:
            group.run(call)
    return {"ranks": ranks, "calls": len(given), "timeout_s": timeout_s, "longest_s": round(longest, 3)}


def _all_name(group: Ranks, call: Call, absent: int, others: Sequence[int]) -> None:
    """The record of each of the others names the absent rank, or the rank that told it, whose record does."""
    in_lines = call.given.get("lines", 0) != 0
    for rank in others:
        record = group.records[rank]
        if kernels.STATUS.get(record.status) == "a peer aborted":
            (told_by,) = record.missing_ranks
            record = group.records[told_by]
        assert kernels.STATUS.get(record.status) == "timeout", f"{call.name}: {group.reports()}"
        assert record.missing_ranks == [absent] and record.op == OP, f"{call.name}, rank {rank}: {group.reports()}"
        stage = kernels.STAGES[record.stage]
        assert stage == ("lines" if in_lines else "entry"), f"{call.name}, rank {rank}: stage {stage}"
        epochs = record.expected, record.seen
        assert in_lines or epochs == (1, 0), f"{call.name}, rank {rank}: epochs {epochs}, expected (1, 0)"
    assert group.records[absent].status == 0


def _abort(machine: Machine, group: Ranks, prepared: Prepared, others: Sequence[int], way: str) -> None:
    """While the others wait, with time left, for a rank that does not come."""
    aborting = others[-1] if way == "host" else min(set(range(group.ranks)) - set(others))

    def abort() -> None:
        if way == "host":
            group.records[aborting].host_abort = 1
        else:
            group.launch(aborting, kernels.AbortArgs(comm=group.comms[aborting]))

    group.call(prepared, ranks=others)
    if machine.real:  # the emulator runs what is queued only when it is waited for
        time.sleep(0.02)
        assert all(status == "ok" for status in group.statuses()), f"before the abort: {group.reports()}"
    abort()
    start = time.monotonic()
    group.synchronize()
    seconds = time.monotonic() - start
    assert not machine.real or seconds < LATE_S, f"waits ended {seconds:.3f} s after the abort"
    for rank in {*others, aborting}:
        status, named = group.statuses()[rank], group.records[rank].missing_ranks
        expected = "aborted by the host" if rank == aborting else "a peer aborted"
        assert status == expected, f"{way}: {group.reports()}"
        assert rank == aborting or named == [aborting], f"{way}: {group.reports()}"


def times(machine: Machine, ranks: int, count: int) -> dict[str, Any]:
    """us of a call of each form among `count` in a row. All ranks are on one GPU, so no byte crosses a link."""
    size, bf16 = sizes(machine.real), torch.bfloat16
    wide = 6144 if machine.real else 64
    most, even = (1 << 20 if machine.real else 1 << 13) // 2, [8] * ranks
    by_rows: dict[str, Any] = dict(staged=True, on_device=False, seed=1)
    forms = {
        "lines 4 KiB": calls.lines(ranks, size.line // 8, bf16, size, seed=1),
        "lines 16 KiB": calls.lines(ranks, size.line // 2, bf16, size, seed=1),
        "two-shot 16 KiB": calls.all_reduce(ranks, size.line // 2, bf16, staged=True, seed=1),
        "two-shot 1 MiB": calls.all_reduce(ranks, most, bf16, staged=True, seed=1),
        f"reduce-scatter {8 * ranks} rows": calls.reduce_scatter(even, wide, bf16, **by_rows),
        f"all-gather {8 * ranks} rows": calls.all_gather(even, wide, bf16, **by_rows),
        "norm 1 row, lines": calls.residual_norm(ranks, 1, wide, bf16, size, seed=1, by_lines=True),
        "norm 64 rows": calls.residual_norm(ranks, 64, wide, bf16, size, seed=1, by_lines=False),
    }
    found: dict[str, Any] = {}
    with opened(machine, ranks) as group:
        for name, call in forms.items():
            group.run(call)
            prepared = group.prepare(call)
            if isinstance(group, StreamRanks):
                found[name] = group.us_per_call(prepared, count)
            else:
                group.call(prepared)
            group.synchronize()
            group.compare(prepared)
    return {"ranks": ranks, "calls": count, "what": "one GPU, no links", "times": found}


def multicast(machine: Machine) -> dict[str, Any]:
    """The kernels for multicast memory, with one rank, if the driver makes a multicast object of one device. It cannot
    bind the memory of several ranks of one device, so with more ranks these kernels need more GPUs."""
    loaded(machine)
    ranks = 1 if machine.real else 2
    found = each_kernel(ranks, sizes(machine.real))
    found.append(calls.all_reduce(ranks, 500, torch.bfloat16, staged=False, seed=9))
    try:
        with open_multicast(machine) as group:
            for call in found:
                group.run(call)
    except (DriverError, LongcatUnsupportedError) as error:
        return {"multicast": f"not run: {error}"}
    return {"multicast": f"right, ranks: {ranks}", "calls": len(found)}

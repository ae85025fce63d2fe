"""A rank that does not come, stalls, fails, aborts or dies: the others say which, where and in what, in time, and a new
communicator then works."""

from __future__ import annotations

from typing import Any

import pytest

from support.comm_faults import OPS
from support.comm_pool import Pool
from support.comm_ranks import Ranks

LIMIT_S = 0.5
SLACK_S = 2.0  # on a loaded machine


def check_timeout(found: dict[str, Any], missing: tuple[int, ...], op: str, stage: str, seconds: float) -> None:
    assert found["kind"] == "LongcatTimeoutError", found
    assert (found["missing"], found["op"]) == (missing, op), found
    assert f"stage `{stage}`" in found["slot"], found
    assert f"rank {missing[0]}: " in found["text"], found
    assert found["seconds"] < seconds + SLACK_S, found


ALWAYS = ("all_reduce", "barrier")


@pytest.mark.parametrize("op", [pytest.param(op, marks=[] if op in ALWAYS else pytest.mark.slow) for op in OPS])
def test_a_rank_that_never_arrives(pair: Ranks, op: str) -> None:
    (found, again, works), (late, late_again, late_works) = pair.run(
        "comm_faults.absent", op=op, missing=1, timeout_s=LIMIT_S
    )
    check_timeout(found, (1,), op, "exchange", LIMIT_S)
    assert found["seconds"] >= LIMIT_S
    assert (found["rank"], found["expected"]) == (0, 2)
    assert "last seen in stage `exchange` of call 1, barrier" in found["seen"][1]
    assert again["text"].startswith("all_reduce: this communicator is poisoned. ") and "rank 1: " in again["text"]
    # Data that rank 0 had sent may still serve the call of the late rank. Its next one finds out.
    first = late if late["kind"] != "none" else late_again
    assert first["missing"] == (1,), first
    assert "rank 0 gave up before this rank came" in first["text"]
    assert late_again["kind"] != "none"
    assert works and late_works


def test_every_survivor_names_the_same_rank(keeper: Any, rung: str) -> None:
    results = Ranks(keeper, 4, rung).run("comm_faults.absent", op="all_gather", missing=2, timeout_s=LIMIT_S)
    for rank, (found, _, works) in enumerate(results):
        assert works
        if rank != 2:
            check_timeout(found, (2,), "all_gather", "exchange", LIMIT_S)
            assert found["rank"] == rank


@pytest.mark.parametrize(("where", "stage", "seen"), [
    ("entry", "exchange", "stands still, last seen in stage `exchange` of call 1, all_reduce float32 [60000]"),
    ("middle", "gather", "last seen in stage `exchange` of call 1, all_reduce float32 [60000]"),
])  # fmt: skip
def test_a_rank_that_stalls(keeper: Any, rung: str, where: str, stage: str, seen: str) -> None:
    results = Ranks(keeper, 3, rung).run("comm_faults.stalls", where=where, bad=1, timeout_s=LIMIT_S)
    for rank, (found, works) in enumerate(results):
        assert works
        if rank != 1:
            check_timeout(found, (1,), "all_reduce", stage, LIMIT_S)
            assert found["seen"][1] == seen


def test_a_rank_that_fails(peers: Ranks) -> None:
    results = peers.run("comm_faults.fails", bad=0)
    assert (results[0][0]["kind"], results[0][0]["text"]) == ("MemoryError", "no memory for the sum")
    for found, again, works in results:
        assert works
        assert "rank 0 failed in call 1: MemoryError: no memory for the sum" in again["text"]
        assert again["kind"] == "LongcatCommError"
        assert found["seconds"] < SLACK_S
    for found, *_ in results[1:]:
        assert (found["kind"], "rank 0 failed in call 1: MemoryError" in found["text"]) == ("LongcatCommError", True)


def test_abort_from_a_thread(keeper: Any, rung: str) -> None:
    for found, works in Ranks(keeper, 3, rung).run("comm_faults.aborts"):
        assert works
        assert found["kind"] == "LongcatCommError", found
        assert "abort() was called on rank 0: the operator" in found["text"]
        assert found["seconds"] < 0.3 + SLACK_S


def test_a_rank_that_has_closed(peers: Ranks) -> None:
    *others, (last, works) = peers.run("comm_faults.closes")
    assert works
    assert last["text"] == "barrier: this communicator is closed."
    for found, works in others:
        assert works
        text = f"rank {peers.ranks - 1} closed its communicator after call 1, and this is call 2"
        assert (found["kind"], text in found["text"]) == ("LongcatCommError", True), found


def test_close_from_a_thread(keeper: Any, rung: str) -> None:
    results = Ranks(keeper, 3, rung).run("comm_faults.closes_within")
    assert all(works for _, works in results)
    for found, _ in results[:2]:
        assert found["kind"] == "LongcatCommError", found
        assert "rank 0 closed its communicator" in found["text"] or "rank 2 closed its" in found["text"], found
        assert found["seconds"] < 0.2 + SLACK_S


def test_a_rank_that_does_not_construct(keeper: Any, rung: str) -> None:
    for rank, (found, works) in enumerate(Ranks(keeper, 3, rung).run("comm_faults.not_constructed", missing=1)):
        assert works
        assert (found["kind"], found["missing"]) == ("LongcatTimeoutError", (1,)), found
        if rank != 1:
            check_timeout(found, (1,), "Communicator", "hello", LIMIT_S)


# dies, idle: before it is killed the others wait, or they call after its death. Without a deadline, too.
@pytest.mark.parametrize(("op", "dies", "idle", "limit_s"), [
    ("all_reduce", 2, 0.0, 10.0), ("barrier", 0, 0.0, 0.0), ("all_gather", 1, 0.8, 10.0),
])  # fmt: skip
def test_a_killed_process(rung: str, op: str, dies: int, idle: float, limit_s: float) -> None:
    with Pool(3) as pool:
        for rank in range(3):
            pool.start(rank, "comm_faults.survive", ranks=3, backend=rung, op=op, dies=dies, limit_s=limit_s, idle=idle)
        left = [r for r in range(3) if r != dies]
        for found in [pool.result(r) for r in left]:
            check_timeout(found, (dies,), op, "exchange", 0.5)
            pid = pool.processes[dies].pid
            assert f"process {pid} on " in found["seen"][dies] and "has ended" in found["seen"][dies]
            assert found["sum"] == sum(r + 1.0 for r in left)


def test_a_killed_process_takes_the_store_along(rung: str) -> None:
    with Pool(2, store_in_rank=True) as pool:
        for rank in range(2):
            pool.start(rank, "comm_faults.survive", ranks=2, backend=rung, op="barrier", dies=0, limit_s=10.0, idle=0.0)
        found = pool.result(1)
        check_timeout(found, (0,), "barrier", "exchange", 5.0)
        assert "the store of the process group does not answer" in found["text"]


def test_a_process_that_ends_before_it_constructs(rung: str) -> None:
    with Pool(2) as pool:
        for rank in range(2):
            pool.start(rank, "comm_faults.die", ranks=2, backend=rung)
        check_timeout(pool.result(0), (1,), "Communicator", "hello", 0.6)


def test_a_forked_process_leaves_its_parent_alone(pair: Ranks) -> None:
    for text, total in pair.run("comm_faults.forked"):
        assert "this communicator belongs to process" in text
        assert total == 2.0


def test_threads(pair: Ranks) -> None:
    results = pair.run("comm_faults.threads")
    for mine, sums, _ in results:
        assert mine == sums == [2.0 * i for i in range(20)]
    found = results[0][2]
    assert found["kind"] == "LongcatCommError"
    assert "barrier: channel 0 runs barrier in another thread; use channel(i)" in found["text"]

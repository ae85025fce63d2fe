"""Exchanges over torch's stores: values, deadlines that name who is missing, keys that are cleaned; votes."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import FileStore, HashStore, Store, TCPStore

from longcat_ops.comm.providers import vmm
from longcat_ops.comm.providers.exchange import StoreExchange, Votes, together
from longcat_ops.comm.providers.faults import OUT_OF_MEMORY, SYSTEM_NOT_READY, DriverError
from longcat_ops.errors import LongcatShapeError, LongcatTimeoutError
from support.fake_driver import driver_of
from support.fake_machine import Machine
from support.rank_threads import Hub, on_each
from support.vmm_ranks import SIZE, assert_sound, close_all, outcome

RANKS = 3


def stores(kind: str, folder: Path) -> Callable[[int], Store]:
    """What gives each rank its store."""
    if kind == "tcp":
        server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))
        clients = [server] + [TCPStore("127.0.0.1", server.port, is_master=False) for _ in range(RANKS - 1)]
        return lambda rank: clients[rank]
    if kind == "file":
        return lambda rank: FileStore(str(folder / "store"), RANKS)
    store = HashStore()
    return lambda rank: store


@pytest.mark.parametrize("kind", ["hash", "file", "tcp"])
def test_values_come_by_rank_and_keys_are_cleaned(kind: str, tmp_path: Path) -> None:
    store_of = stores(kind, tmp_path)
    held = [store_of(rank) for rank in range(RANKS)]
    start = held[0].num_keys()

    def one(rank: int) -> list[list[bytes]]:
        exchange = StoreExchange(held[rank], rank, RANKS, "group", 10)
        got = [exchange.all_gather_bytes(bytes([rank]) * 3 * step, f"step {step}") for step in range(4)]
        inner = exchange.scope("smoke test")
        assert inner.timeout_s == 5
        got.append(inner.all_gather_bytes(b"\0" + b"x" * rank, "inside"))
        exchange.barrier("end")
        exchange.close()
        exchange.close()
        return got

    expected = [[bytes([rank]) * 3 * step for rank in range(RANKS)] for step in range(4)]
    expected.append([b"\0", b"\0x", b"\0xx"])
    for _ in range(2):  # the same name again: no value of the first use is seen
        assert on_each(RANKS, one) == [expected] * RANKS
        assert held[0].num_keys() - start == RANKS  # the count of uses of each rank


def test_a_missing_rank_is_named_within_the_deadline() -> None:
    store = HashStore()

    def one(rank: int) -> None:
        exchange = StoreExchange(store, rank, 4, "group", 1)
        exchange.barrier("first")
        if rank != 2:
            exchange.barrier("second")

    start = time.monotonic()
    answers = on_each(4, one)
    assert time.monotonic() - start < 5
    assert answers[2] is None
    texts = {str(answers[rank]) for rank in (0, 1, 3)}
    assert all(isinstance(answers[rank], LongcatTimeoutError) for rank in (0, 1, 3))
    first = "waited in step `second` for call 2, and missing is: rank 2: nothing in 1 s."
    assert all(first in text for text in texts), texts


def test_two_missing_ranks_are_named() -> None:
    exchange = StoreExchange(HashStore(), 1, 3, "group", 0.05)
    with pytest.raises(LongcatTimeoutError) as error:
        exchange.barrier("hello")
    assert str(error.value) == (
        "symmetric memory: rank 1 waited in step `hello` for call 1,"
        " and missing is: rank 0: nothing in 0.05 s; rank 2: nothing in 0.05 s."
    )
    assert error.value.missing == (0, 2)


def test_a_rank_that_leaves_is_not_waited_for() -> None:
    store = HashStore()

    def one(rank: int) -> None:
        exchange = StoreExchange(store, rank, 2, "group", 60)
        if rank:
            exchange.leave("out of cake")
        else:
            exchange.barrier("dinner")

    start = time.monotonic()
    error, _ = on_each(2, one)
    assert time.monotonic() - start < 5
    text = "symmetric memory: rank 0 waited in step `dinner` for call 1, and missing is: rank 1: has left: out of cake."
    assert (type(error), str(error)) == (LongcatTimeoutError, text)


def test_leaving_a_scope_is_not_leaving() -> None:
    store = HashStore()

    def one(rank: int) -> list[bytes]:
        exchange = StoreExchange(store, rank, 2, "group", 60)
        inner = exchange.scope("part")
        if rank:
            inner.leave("early")
        else:
            with pytest.raises(LongcatTimeoutError, match="rank 1: has left: early"):
                inner.barrier("inside")
        got = exchange.all_gather_bytes(b"%d" % rank, "after")
        exchange.close()
        return got

    assert on_each(2, one) == [[b"0", b"1"]] * 2
    assert store.num_keys() == 2


def test_different_calls_are_told_apart() -> None:
    store = HashStore()

    def one(rank: int) -> None:
        StoreExchange(store, rank, 2, "group", 10).barrier("torch" if rank else "vmm")

    errors = on_each(2, one)
    assert all(isinstance(error, LongcatShapeError) for error in errors)
    assert "`step` is `torch` on rank 1, expected `vmm`" in str(errors[0])
    assert "`step` is `vmm` on rank 0, expected `torch`" in str(errors[1])


@pytest.mark.parametrize(("rank", "timeout"), [(-1, 1), (2, 1), (0, -1)])
def test_arguments_of_an_exchange(rank: int, timeout: float) -> None:
    with pytest.raises(LongcatShapeError, match=r"`rank` is|`timeout_s` is -1"):
        StoreExchange(HashStore(), rank, 2, "group", timeout)


def vote(actions: list[Callable[[], bytes | None]], **options: float) -> list[Votes | BaseException]:
    exchanges = Hub(len(actions), 10).exchanges()
    return on_each(len(actions), lambda rank: together(exchanges[rank], "work", actions[rank], wait_s=0, **options))


def fail(error: Exception) -> Callable[[], bytes]:
    def action() -> bytes:
        raise error

    return action


def test_a_vote_has_the_answer_or_the_problem_of_each_rank() -> None:
    answers = vote([lambda: b"+-~", fail(ValueError("é")), lambda: None, fail(DriverError("cuX", OUT_OF_MEMORY, "N"))])
    expected = Votes([b"+-~", b"", b"", b""], {})
    expected.problems.update({1: "ValueError: é", 3: "cuX returned 2 (N): the device has not enough free memory"})
    assert answers == [expected] * 4
    assert expected.text.startswith("rank 1: ValueError: é; rank 3: cuX returned 2 (N)")


def test_a_problem_that_all_ranks_share_is_said_once() -> None:
    assert vote([fail(ValueError("no"))] * 3)[1].text == "ValueError: no"
    assert (
        vote([fail(ValueError("no")), fail(ValueError("yes"))])[0].text
        == "rank 0: ValueError: no; rank 1: ValueError: yes"
    )
    assert vote([lambda: None])[0].text == ""


def test_all_ranks_retry_together_and_a_rank_that_was_ready_keeps_its_result() -> None:
    runs = [0, 0]

    def ready() -> bytes:
        runs[0] += 1
        return b"%d" % runs[0]

    def later() -> bytes:
        runs[1] += 1
        if runs[1] < 3:
            raise DriverError("cuMulticastBindMem", SYSTEM_NOT_READY)
        return b"done"

    assert vote([ready, later]) == [Votes([b"1", b"done"], {})] * 2
    assert runs == [1, 3]


def test_no_rank_retries_once_another_has_failed_for_good() -> None:
    runs = []

    def not_ready() -> bytes:
        runs.append(0)
        raise DriverError("cuInit", SYSTEM_NOT_READY)

    answers = vote([not_ready, fail(ValueError("no"))])
    assert len(runs) == 1
    assert set(answers[0].problems) == {0, 1}
    vote([not_ready, lambda: None], retries=2)
    assert len(runs) == 1 + 3


def test_a_region_over_a_store() -> None:
    store, machine = HashStore(), Machine(RANKS)

    def one(rank: int) -> object:
        exchange = StoreExchange(store, rank, RANKS, "group", 20)
        try:
            return vmm.open_memory(exchange, rank, SIZE, driver=driver_of(machine, rank), smoke=lambda *given: None)
        finally:
            exchange.close()

    answers = on_each(RANKS, one)
    assert outcome(answers) == "multicast"
    close_all(answers)
    assert_sound(machine)
    assert store.num_keys() == RANKS

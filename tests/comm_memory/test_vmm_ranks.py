"""Ranks that die, leave, or send nothing; a smoke test that fails on one: no rank hangs, and all choose the same."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from longcat_ops.comm.providers import faults, vmm
from longcat_ops.comm.providers.base import SymmetricMemory
from longcat_ops.comm.providers.exchange import Exchange
from longcat_ops.comm.providers.faults import DriverError
from longcat_ops.comm.providers.sockets import Mailbox
from longcat_ops.errors import LongcatTimeoutError
from support.fake_driver import driver_of
from support.fake_machine import Killed, Machine
from support.rank_threads import Hub, Interrupted, ThreadExchange, on_each
from support.vmm_ranks import (
    SIZE,
    assert_holds_no_more_than,
    assert_sound,
    calls_without_errors,
    close_all,
    outcome,
    set_up,
)

RANKS = 3


class Noted(Mailbox):
    """Keeps a list of what it sent and of its closing."""

    made: list[Noted]

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self.sent: list[str] = []
        self.closed = 0
        self.made.append(self)

    def send(self, fd: int, to: bytes, kind: str, timeout_s: float) -> None:
        self.sent.append(kind)
        super().send(fd, to, kind, timeout_s)

    def close(self) -> None:
        self.closed += 1
        super().close()


@pytest.mark.parametrize(
    ("rank", "method", "error", "sent"),
    [
        (0, "init", [], 2),
        (2, "multicast_bind", [DriverError("cuMulticastBindMem", faults.ILLEGAL_STATE)], 2),
        (2, "tensor", [RuntimeError("a defect")], 2),
        (1, "set_access", [KeyboardInterrupt()], 0),
        (0, "multicast_add_device", [DriverError("cuMulticastAddDevice", faults.SYSTEM_NOT_READY)] * 2, 2),
    ],
)
def test_every_mailbox_is_closed_and_rank_0_sends_the_group_once(
    rank: int, method: str, error: list[BaseException], sent: int
) -> None:
    made, mailbox = Machine(RANKS), type("Listed", (Noted,), {"made": []})
    made.methods[rank, method] = error
    answers = set_up(made, options=lambda rank: {"mailbox": mailbox})
    assert all(box.closed for box in mailbox.made)
    groups = {box.rank: box.sent.count("multicast object") for box in mailbox.made}
    assert {who: count for who, count in groups.items() if count} == ({0: sent} if sent else {})
    close_all(answers)
    assert_sound(made)


def test_an_interrupt_between_two_calls_is_passed_on_and_the_others_hear_of_it_at_once() -> None:
    """The exchange of rank 1 is interrupted while it waits, outside of any step's own work."""
    made, hub = Machine(RANKS), Hub(RANKS, 60)
    exchanges = [Interrupted(hub, rank, "tensor") if rank == 1 else ThreadExchange(hub, rank) for rank in range(RANKS)]
    start = time.monotonic()
    answers = on_each(RANKS, lambda rank: vmm.open_memory(exchanges[rank], rank, SIZE, driver=driver_of(made, rank)))
    assert time.monotonic() - start < 5
    assert isinstance(answers[1], KeyboardInterrupt)
    assert all(str(answers[rank]).endswith("missing is: rank 1: has left: KeyboardInterrupt.") for rank in (0, 2))
    assert_sound(made)


class Forgetful(Mailbox):
    """Sends no descriptor of one kind."""

    kind = ""

    def send(self, fd: int, to: bytes, kind: str, timeout_s: float) -> None:
        if kind != self.kind:
            super().send(fd, to, kind, timeout_s)


@pytest.mark.parametrize(
    ("who", "kind", "want"), [(1, "memory", "nothing"), (0, "memory", "nothing"), (0, "multicast object", "peers")]
)
def test_a_descriptor_that_never_comes(who: int, kind: str, want: str) -> None:
    made = Machine(RANKS)
    mailbox = type("Mute", (Forgetful,), {"kind": kind})
    answers = set_up(made, timeout_s=2, options=lambda rank: {"mailbox": mailbox} if rank == who else {})
    assert outcome(answers) == want
    reason = answers[0].why_not["multimem" if want == "peers" else "p2p"]
    assert f"rank 2 waited in receipt of descriptors of the {kind} for call 1" in reason
    assert f"missing is: rank {who}: none in 1 s." in reason
    assert "multicast_bind" not in {method for _, method, _ in made.log}
    close_all(answers)
    assert_sound(made)


def test_a_rank_that_dies_at_any_call() -> None:
    """Its process ends without a word: the others name it within the deadline, and keep nothing."""
    points = [
        (rank, calls.index(method))
        for rank, calls in enumerate(calls_without_errors(RANKS, False))
        for method in dict.fromkeys(calls)
    ]
    assert len(points) >= 45
    for point in points:
        _die(*point)


def _die(rank: int, call: int) -> None:
    made = Machine(RANKS)
    made.fail(rank, call, Killed())
    answers = set_up(made)
    assert isinstance(answers[rank], Killed)
    for other in set(range(RANKS)) - {rank}:
        assert isinstance(answers[other], LongcatTimeoutError)
        assert answers[other].missing in {(rank,), (3 - rank - other,)}  # that one, or the one that left because of it
        assert f"rank {rank}: nothing in 20 s" in str(answers[other])
    assert_sound(made)


def test_a_rank_that_dies_before_its_device_is_added() -> None:
    made = Machine(RANKS)
    made.methods[1, "multicast_add_device"] = [Killed()]
    answers = set_up(made)
    assert str(answers[0]).startswith("symmetric memory: rank 0 ")
    assert "step `devices of the multicast object`" in str(answers[0]) + str(answers[2])
    assert "missing is: rank 1: nothing in 20 s." in str(answers[0]) + str(answers[2])
    assert "multicast_bind" not in {method for _, method, _ in made.log}
    assert_sound(made)


def test_an_interrupt_is_passed_on_and_the_others_hear_of_it_at_once() -> None:
    made = Machine(RANKS)
    made.methods[2, "set_access"] = [KeyboardInterrupt()]
    start = time.monotonic()
    answers = set_up(made, timeout_s=60)
    assert time.monotonic() - start < 5
    assert isinstance(answers[2], KeyboardInterrupt)
    for rank in (0, 1):
        assert str(answers[rank]).endswith("rank 2: has left: KeyboardInterrupt in step `own memory`.")
    assert_sound(made)


def smoke_that_fails(who: int, with_multicast: bool) -> Callable[[SymmetricMemory, Exchange], None]:
    def smoke(memory: SymmetricMemory, exchange: Exchange) -> None:
        memory.tensor[:8] = 1
        if memory.rank == who and bool(memory.multicast) >= with_multicast:
            raise RuntimeError("word 3 is 0, expected 7")
        exchange.barrier("after the stores")

    return smoke


@pytest.mark.parametrize(
    ("who", "with_multicast", "want"), [(9, False, "multicast"), (1, True, "peers"), (2, False, "nothing")]
)
def test_the_smoke_test_decides(who: int, with_multicast: bool, want: str) -> None:
    made = Machine(RANKS)
    start = time.monotonic()
    answers = set_up(made, timeout_s=60, options=lambda rank: {"smoke": smoke_that_fails(who, with_multicast)})
    assert time.monotonic() - start < 5
    assert outcome(answers) == want
    if want != "multicast":
        reason = answers[0].why_not["multimem" if want == "peers" else "p2p"]
        what = "multicast" if want == "peers" else "peer memory"
        assert reason.startswith(f"smoke test of {what}: ")
        assert f"rank {who}: RuntimeError: word 3 is 0, expected 7" in reason
    assert_holds_no_more_than(made, want)
    close_all(answers)
    assert_sound(made)

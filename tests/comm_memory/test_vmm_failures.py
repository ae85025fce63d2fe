"""Every error at every call of every rank: all ranks choose the same, give the reason, and keep nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import pytest

from longcat_ops.comm.providers import faults
from longcat_ops.comm.providers.base import SymmetricMemory
from longcat_ops.comm.providers.exchange import Exchange
from longcat_ops.comm.providers.faults import RETRIES, DriverError
from longcat_ops.comm.providers.sockets import Mailbox
from longcat_ops.errors import LongcatTimeoutError
from support.fake_machine import Killed, Machine, open_memfds
from support.rank_threads import on_each
from support.vmm_ranks import assert_sound, close_all, outcome, set_up

RANKS = 3
CALLS = {  # methods of the driver -> what the driver calls them
    "init": "cuInit",
    "create": "cuMemCreate",
    "multicast_create": "cuMulticastCreate",
    "multicast_add_device": "cuMulticastAddDevice",
    "multicast_bind": "cuMulticastBindMem",
    "multicast_granularity": "cuMulticastGetGranularity",
}
ERRORS = {
    "invalid value": (faults.INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"),
    "out of memory": (faults.OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"),
    "illegal state": (faults.ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE"),
    "illegal address": (faults.ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"),
    "not permitted": (faults.NOT_PERMITTED, "CUDA_ERROR_NOT_PERMITTED"),
    "not supported": (faults.NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED"),
}


def machine(fabric: bool) -> Machine:
    return Machine(RANKS, fabric=fabric)


@cache
def calls_without_errors(fabric: bool) -> list[list[str]]:
    """The methods that each rank calls until it has its region, in order."""
    made = machine(fabric)
    answers = set_up(made)
    calls = [[method for who, method, _ in made.log if who == rank] for rank in range(RANKS)]
    close_all(answers)
    return calls


def expected(rank: int, call: int, fabric: bool, code: int | None) -> str:
    """What all ranks end with if one call fails for good, told from the call's place in the sequence."""
    calls = calls_without_errors(fabric)[rank]
    method = calls[call]
    if method in ("create", "multicast_create", "export_fabric") and fabric and code in faults.FABRIC_REFUSED:
        return "multicast"  # the rank goes on without FABRIC
    if method == "multicast_granularity":
        return "peers" if code is not None else "nothing"
    start = calls.index("multicast_create") if rank == 0 else calls.index("multicast_add_device") - 1
    if fabric and calls.index("import_fabric") <= call < start:
        return "multicast"  # all ranks go on with descriptors
    return "peers" if start <= call < calls.index("tensor") else "nothing"


def fail_everywhere(fabric: bool, make: Callable[[str], BaseException], code: int | None, text: str, times: int) -> int:
    tried = 0
    for rank, calls in enumerate(calls_without_errors(fabric)):
        for call, method in enumerate(calls):
            made = machine(fabric)
            made.fail(rank, call, make(method), times)
            answers = set_up(made)
            got = outcome(answers)
            assert got == expected(rank, call, fabric, code), (rank, call, method, answers)
            if got != "multicast":
                reason = answers[0].why_not["multimem" if got == "peers" else "p2p"]
                assert f"rank {rank}: " in reason, reason
                assert text in reason, reason
                if method in CALLS and code is not None:
                    assert CALLS[method] in reason
            close_all(answers)
            assert_sound(made)
            tried += 1
    return tried


@pytest.mark.parametrize("name", ERRORS)
def test_a_driver_error_at_any_call(name: str) -> None:
    code, text = ERRORS[name]
    tried = fail_everywhere(False, lambda method: DriverError(CALLS.get(method, method), code, text), code, text, 1)
    assert tried == sum(map(len, calls_without_errors(False))) >= 90


def test_an_exception_at_any_call() -> None:
    fail_everywhere(False, lambda method: RuntimeError("a defect"), None, "RuntimeError: a defect", 1)


@pytest.mark.parametrize("name", ["not supported", "out of memory"])
def test_a_driver_error_at_any_call_with_fabric_handles(name: str) -> None:
    code, text = ERRORS[name]
    fail_everywhere(True, lambda method: DriverError(CALLS.get(method, method), code, text), code, text, 1)


@pytest.mark.parametrize("times", [1, RETRIES, RETRIES + 1])
def test_not_ready_at_any_call(times: int) -> None:
    """Up to RETRIES times all ranks try again, and it costs nothing; after that they fall back."""
    for rank, calls in enumerate(calls_without_errors(False)):
        for call, method in enumerate(calls):
            made = machine(False)
            error = DriverError(CALLS.get(method, method), faults.SYSTEM_NOT_READY, "CUDA_ERROR_SYSTEM_NOT_READY")
            # A method that the rank calls more than once would get the next errors in a later call of its own.
            made.fail(rank, call, error, times)
            answers = set_up(made)
            got = outcome(answers)
            if method == "multicast_granularity":
                assert got == "peers"
            elif times <= RETRIES:
                assert got == "multicast", (rank, call, method, answers)
            else:
                assert got == expected(rank, call, False, error.code)
                reason = answers[2].why_not["multimem" if got == "peers" else "p2p"]
                assert f"rank {rank}: {error}: still so after 3 retries: check nvidia-fabricmanager" in reason
            close_all(answers)
            assert_sound(made)


@pytest.mark.parametrize(
    ("method", "code", "cause"),
    [
        ("multicast_create", faults.INVALID_VALUE, "pass /dev/nvidia-caps into the container"),
        ("multicast_create", faults.ILLEGAL_STATE, "check nvidia-fabricmanager"),
        ("multicast_bind", faults.ILLEGAL_STATE, "check nvidia-fabricmanager"),
        ("multicast_create", faults.OUT_OF_MEMORY, "128 multicast slots"),
        ("multicast_bind", faults.OUT_OF_MEMORY, "128 multicast slots"),
        ("multicast_create", faults.NOT_SUPPORTED, "confidential computing"),
        ("create", faults.OUT_OF_MEMORY, "not enough free memory"),
    ],
)
def test_users_are_told_the_cause(method: str, code: int, cause: str) -> None:
    made = machine(False)
    made.methods[0, method] = [DriverError(CALLS[method], code)]
    answers = set_up(made)
    assert cause in answers[1].why_not["multimem"]
    close_all(answers)
    assert_sound(made)


def test_a_group_that_cannot_be_made_is_waited_for_by_nobody() -> None:
    made = machine(False)
    made.methods[0, "multicast_create"] = [DriverError("cuMulticastCreate", faults.ILLEGAL_STATE)]
    start = time.monotonic()
    answers = set_up(made, timeout_s=60)
    assert time.monotonic() - start < 5
    assert outcome(answers) == "peers"
    assert not any(method in ("multicast_add_device", "multicast_bind") for _, method, _ in made.log)
    close_all(answers)
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
    made = machine(False)
    mailbox = type("Mute", (Forgetful,), {"kind": kind})
    answers = set_up(made, timeout_s=0.6, options=lambda rank: {"mailbox": mailbox} if rank == who else {})
    assert outcome(answers) == want
    reason = answers[0].why_not["multimem" if want == "peers" else "p2p"]
    assert f"rank 2 waited 0.3 s for the file descriptor of the {kind} of rank {who}" in reason
    assert "multicast_bind" not in {method for _, method, _ in made.log}
    close_all(answers)
    assert_sound(made)


def test_a_rank_that_dies_at_any_call() -> None:
    """Its process ends without a word: the others name it within the deadline, and keep nothing."""
    points = [
        (rank, calls.index(method))
        for rank, calls in enumerate(calls_without_errors(False))
        for method in dict.fromkeys(calls)
    ]
    assert len(points) >= 45
    # All at once, since each waits for its deadline: three threads each, 48 at a time.
    for first in range(0, len(points), 16):
        batch = points[first : first + 16]
        assert on_each(len(batch), lambda i, batch=batch: _die(*batch[i])) == [None] * len(batch)
    assert open_memfds() == 0


def _die(rank: int, call: int) -> None:
    made = machine(False)
    made.fail(rank, call, Killed())
    answers = set_up(made, timeout_s=0.4)
    assert isinstance(answers[rank], Killed)
    for other in set(range(RANKS)) - {rank}:
        assert isinstance(answers[other], LongcatTimeoutError)
        assert f"rank {rank}" in str(answers[other])
    assert made.misuse == []
    assert not any(count for kind, count in made.leaks().items() if kind != "descriptors")  # others' are open, too


def test_a_rank_that_dies_before_its_device_is_added() -> None:
    made = machine(False)
    made.methods[1, "multicast_add_device"] = [Killed()]
    answers = set_up(made, timeout_s=0.3)
    assert str(answers[0]).startswith("symmetric memory: rank 0 ")
    assert "step `devices of the multicast object`" in str(answers[0]) + str(answers[2])
    assert "for rank 1: expected 3 ranks, seen 2." in str(answers[0]) + str(answers[2])
    assert "multicast_bind" not in {method for _, method, _ in made.log}
    assert_sound(made)


def test_an_interrupt_is_passed_on_and_the_others_hear_of_it_at_once() -> None:
    made = machine(False)
    made.methods[2, "set_access"] = [KeyboardInterrupt()]
    start = time.monotonic()
    answers = set_up(made, timeout_s=60)
    assert time.monotonic() - start < 5
    assert isinstance(answers[2], KeyboardInterrupt)
    for rank in (0, 1):
        assert str(answers[rank]).endswith("for rank 2, which has left: KeyboardInterrupt in step `own memory`")
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
    made = machine(False)
    start = time.monotonic()
    answers = set_up(made, timeout_s=60, options=lambda rank: {"smoke": smoke_that_fails(who, with_multicast)})
    assert time.monotonic() - start < 5
    assert outcome(answers) == want
    if want != "multicast":
        reason = answers[0].why_not["multimem" if want == "peers" else "p2p"]
        what = "multicast" if want == "peers" else "peer memory"
        assert reason.startswith(f"smoke test of {what}: ")
        assert f"rank {who}: RuntimeError: word 3 is 0, expected 7" in reason
    close_all(answers)
    assert_sound(made)

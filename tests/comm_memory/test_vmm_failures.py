"""Every error at every call of every rank: all ranks choose the same, give the reason, and keep nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from longcat_ops.comm.providers import faults
from longcat_ops.comm.providers.faults import RETRIES, DriverError
from support.fake_machine import Machine
from support.vmm_ranks import (
    assert_holds_no_more_than,
    assert_sound,
    calls_without_errors,
    close_all,
    outcome,
    set_up,
)

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
NAMES = [pytest.param(n, marks=pytest.mark.slow) if n == "illegal address" else n for n in ERRORS]  # in no row


def machine(fabric: bool) -> Machine:
    return Machine(RANKS, fabric=fabric)


def expected(rank: int, call: int, fabric: bool, code: int | None) -> str:
    """What all ranks end with if one call fails for good, told from the call's place in the sequence."""
    calls = calls_without_errors(RANKS, fabric)[rank]
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
    for rank, calls in enumerate(calls_without_errors(RANKS, fabric)):
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
            assert_holds_no_more_than(made, got)
            close_all(answers)
            assert_sound(made)
            tried += 1
    return tried


@pytest.mark.parametrize("name", NAMES)
def test_a_driver_error_at_any_call(name: str) -> None:
    code, text = ERRORS[name]
    tried = fail_everywhere(False, lambda method: DriverError(CALLS.get(method, method), code, text), code, text, 1)
    assert tried == sum(map(len, calls_without_errors(RANKS, False))) >= 90


def test_an_exception_at_any_call() -> None:
    fail_everywhere(False, lambda method: RuntimeError("a defect"), None, "RuntimeError: a defect", 1)


@pytest.mark.parametrize("name", ["not supported", pytest.param("out of memory", marks=pytest.mark.slow)])
def test_a_driver_error_at_any_call_with_fabric_handles(name: str) -> None:
    code, text = ERRORS[name]
    fail_everywhere(True, lambda method: DriverError(CALLS.get(method, method), code, text), code, text, 1)


@pytest.mark.parametrize("times", [RETRIES, RETRIES + 1])
def test_not_ready_at_any_call(times: int) -> None:
    """Up to RETRIES times all ranks try again, and it costs nothing; after that they fall back."""
    for rank, calls in enumerate(calls_without_errors(RANKS, False)):
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


def test_a_cause_is_named_only_where_it_is_known() -> None:
    assert faults.describe(DriverError("cuMemCreate", faults.NOT_SUPPORTED, "N")) == "cuMemCreate returned 801 (N)"
    assert faults.describe(DriverError("cuMemMap", faults.INVALID_VALUE)) == "cuMemMap returned 1"
    assert faults.describe(DriverError("cuMemCreate", faults.ILLEGAL_STATE)) == "cuMemCreate returned 401"
    assert faults.describe(ValueError("no")) == "ValueError: no"
    assert not faults.is_transient(DriverError("cuMemCreate", faults.NOT_SUPPORTED))
    assert not faults.is_transient(TimeoutError(802))


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


def test_a_fabric_handle_that_cannot_be_mapped_gives_way_to_descriptors() -> None:
    calls = calls_without_errors(RANKS, True)[1]
    made = machine(True)
    made.fail(1, calls.index("import_fabric") + 2, DriverError("cuMemMap", faults.INVALID_VALUE))
    assert calls[calls.index("import_fabric") + 2] == "map"
    answers = set_up(made)
    assert outcome(answers) == "multicast"
    for rank in range(RANKS):
        imports = [one[1:] for one in made.log if one[0] == rank and one[1].startswith("import")]
        assert imports[-3:] == [("import_fd", "peer")] * 2 + [("import_fd", "multicast")] or rank == 0
        assert imports.count(("import_fd", "peer")) == 2
        releases = [one for one in made.log if one == (rank, "release", "peer")]
        assert len(releases) == (1 if rank == 1 else 2)  # what had come by fabric handles
    assert_holds_no_more_than(made, "multicast")
    close_all(answers)
    assert_sound(made)

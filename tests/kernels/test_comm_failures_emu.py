"""Collectives that cannot end: who is missing, at which stage and in which operation, on every rank that waits; aborts;
row counts that do not fit; lines whose flags come round again."""

from __future__ import annotations

import ctypes

import pytest
import torch

from longcat_ops.comm import kernels
from longcat_ops.comm.providers.base import CONTROL_BYTES
from longcat_ops.errors import LongcatError
from longcat_ops.ops import emulated
from support import comm_checks as checks
from support import comm_machine as comm
from support.comm_checks import TWO_BARRIERS, WHATS, launch
from support.emulated_kernels import FILLER, library, schedule  # noqa: F401

every_form = pytest.mark.parametrize("form", comm.FORMS)


@every_form
@pytest.mark.parametrize("what", WHATS)
def test_a_rank_that_never_arrives_is_named(what: str, form: str) -> None:
    for absent, policy in (([2], "random"), ([0], "eager"), ([1, 3], "lazy")):
        emulated.configure(policy=policy)
        for epoch in (0, 0x7FFFFFFF, 0xFFFFFFFF):
            checks.absent_rank(form, what, absent, epoch)


@every_form
@pytest.mark.parametrize("what", [*TWO_BARRIERS, "norm"])
def test_a_rank_that_stops_before_the_exit_is_named(what: str, form: str) -> None:
    """Rank 1 has arrived at the first barrier and is never heard of again."""
    with comm.of_form(3, form) as m:
        for rank in range(3):
            words = m.memory[rank][: CONTROL_BYTES // 2].view(torch.int32).view(-1, 64)
            words[:, 0] = 1
            words[:, 8 + 1] = 1
            words[:, 35] = int(rank == 1)
        for rank in (0, 2):
            launch(m, what, rank)
        m.synchronize()
        assert "timeout" in m.statuses()
        for rank in (0, 2):
            record = m.records[rank]
            assert kernels.STAGES[record.stage] == "exit"
            if record.status == 1:
                assert record.missing_ranks == [1] and (record.expected, record.seen) == (2, 1)


@every_form
@pytest.mark.parametrize("what", WHATS)
def test_the_host_aborts_all_ranks(what: str, form: str) -> None:
    checks.host_abort(form, what)


@every_form
@pytest.mark.parametrize("what", WHATS)
def test_a_rank_in_no_call_aborts_the_others(what: str, form: str) -> None:
    checks.abort_by_a_rank_in_no_call(form, what)


@every_form
def test_without_a_timeout_a_collective_waits_for_ever(form: str) -> None:
    with comm.of_form(2, form) as m:
        m.comms[0].timeout_ns = 0
        launch(m, "all_reduce", 0)
        with pytest.raises(emulated.EmulatorError, match="no thread can go on"):
            m.synchronize()


@every_form
@pytest.mark.parametrize("what", WHATS)
def test_after_a_failure_nothing_waits(what: str, form: str) -> None:
    checks.calls_after_a_failure(form, what, first="all_reduce")


@every_form
@pytest.mark.parametrize("rows", [[3, -1, 2], [5, 5, 5], [2**31 - 1, 2**31 - 1, 2]], ids=str)
def test_row_counts_that_do_not_fit_are_refused_on_the_device(rows: list[int], form: str) -> None:
    checks.rows_that_do_not_fit(form, rows)


@every_form
def test_more_rows_than_a_tensor_holds_are_refused_on_the_device(form: str) -> None:
    """Of one rank alone; the others end with it."""
    checks.rows_that_do_not_fit(form, [1, 5, 2], most=4)


@every_form
def test_flags_that_come_round_again(form: str) -> None:
    checks.flags_that_come_round_again(form)


def test_what_no_kernel_can_run_with_is_refused() -> None:
    with comm.machine(2) as m:
        base = bytes(m.comms[0])
        for field, value, text in (
            ("ranks", 9, "rank 0 of 9, expected at most 8"),
            ("rank", 2, "rank 2 of 2"),
            ("channel", 4, "channel 4, expected below 4"),
            ("blocks", 33, "33 blocks, expected 1 to 32"),
            ("threads", 48, "48 threads, expected a multiple of 32 up to 1024"),
        ):
            ctypes.memmove(ctypes.addressof(m.comms[0]), base, len(base))
            setattr(m.comms[0], field, value)
            for what in WHATS:
                with pytest.raises(emulated.EmulatorError, match=text):
                    launch(m, what, 0)
        ctypes.memmove(ctypes.addressof(m.comms[0]), base, len(base))
        args = kernels.LowLatencyArgs(comm=m.comms[0], max_bytes=64, elements=17, dtype=0)
        with pytest.raises(LongcatError, match="68 bytes, expected at most 64"):
            kernels.call(m.library, args)
        args = kernels.AllReduceArgs(comm=m.comms[0], elements=17, dtype=3)
        with pytest.raises(LongcatError, match="dtype 3, expected f32, f16 or bf16"):
            kernels.call(m.library, args)
        args.struct_size = 8
        with pytest.raises(LongcatError, match="struct_size 8"):
            kernels.call(m.library, args)
        for text, values in (
            ("width 12, expected a multiple of 8", dict(width=12)),
            ("tensors on 16 bytes", dict(width=8, payload=8)),
            ("32 threads, expected at least 64 for rows of 264", dict(width=264)),
            ("64 bytes, expected at most 32", dict(width=16, rows=1, lines=1, max_bytes=32)),
        ):
            with pytest.raises(LongcatError, match=text):
                kernels.call(m.library, kernels.NormArgs(comm=m.comms[0], **values))

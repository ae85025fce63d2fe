"""Expert parallelism that cannot end: who is missing, at which stage, on every rank that waits; aborts; plans that make
no sense; arguments that no kernel can run with."""

from __future__ import annotations

from typing import Any

import pytest

from longcat_ops.comm import expert_kernels as ek
from longcat_ops.errors import LongcatError
from longcat_ops.ops import emulated
from support import ep_faults as faults
from support.emulated_kernels import library, schedule  # noqa: F401
from support.ep_calls import problem
from support.ep_checks import opened

every_stage = pytest.mark.parametrize("stage", faults.STAGES)
every_policy = pytest.mark.parametrize("policy", emulated.POLICIES)


@every_stage
@pytest.mark.parametrize("calls, epoch", [(0, 0), (1, 0), (2, 2**32 - 3), (3, 2**32 - 3)])
def test_ranks_that_never_come_are_named(stage: str, calls: int, epoch: int) -> None:
    for absent, policy in (([2], "random"), ([0], "eager"), ([1, 3], "lazy")):
        emulated.configure(policy=policy)
        faults.absent_ranks(stage, absent, calls, epoch)


@every_stage
@every_policy
def test_the_host_aborts_all_ranks(stage: str, policy: str) -> None:
    emulated.configure(policy=policy)
    faults.host_abort(stage)


@every_stage
@every_policy
def test_a_rank_in_no_call_aborts_the_others(stage: str, policy: str) -> None:
    emulated.configure(policy=policy)
    faults.abort_by_a_rank_in_no_call(stage)


@every_stage
@every_policy
def test_after_a_failure_nothing_waits_and_nothing_is_sent(stage: str, policy: str) -> None:
    emulated.configure(policy=policy)
    faults.calls_after_a_failure(stage)


@pytest.mark.parametrize("stage", ["dispatch", "combine"])
@every_policy
def test_a_rank_that_was_told_to_give_up_sends_nothing(stage: str, policy: str) -> None:
    emulated.configure(policy=policy)
    faults.sends_of_a_rank_that_was_told(stage)


def test_a_rank_that_was_told_to_give_up_receives_nothing() -> None:
    faults.waits_of_a_rank_that_was_told()


@every_policy
def test_an_expert_named_too_often(policy: str) -> None:
    emulated.configure(policy=policy)
    for named in ((9, 6, 3, 9), (4, 6, 0, 3)):  # far more than 12 rows, and one more
        faults.an_expert_named_too_often(named)


@pytest.mark.parametrize("change", [{3: -1}, {0: 1}, {8: 10**6}, {8: 13}, {4: 2**31 - 1}, {2: 6, 3: 1}], ids=str)
def test_offsets_that_make_no_sense(change: dict[int, int]) -> None:
    faults.offsets_that_make_no_sense(change)


def test_rows_outside_of_the_buffer() -> None:
    faults.rows_outside_of_the_buffer()


def test_without_a_timeout_a_call_waits_for_ever() -> None:
    p = problem(faults.SHAPE, faults.TOKENS)
    with opened(faults.SHAPE, 1) as ex:
        ex.m.comms[0].timeout_ns = 0
        ex.counts(p, 0, 0)
        with pytest.raises(emulated.EmulatorError, match="no thread can go on"):
            ex.m.synchronize()


@pytest.mark.parametrize(
    "field, value, text",
    [
        ("num_experts", 6, "6 experts, expected a multiple of 4 ranks up to 1024"),
        ("num_experts", 1028, "1028 experts"),
        ("num_experts", 0, "0 experts"),
        ("top_k", 33, "top_k 33, expected 1 to 32"),
        ("buffer", 4, "buffer 4, expected below 4"),
        ("payload", 1, "payload 1, expected e4m3 or bf16"),
        ("hidden", 136, "hidden 136, expected a multiple of 16"),
        ("max_tokens", -1, "max_tokens -1, expected 0 or more"),
        ("max_tokens", 2**40, "max_tokens 1099511627776"),
        ("rows", 65544, "does not begin on 16 bytes"),
        ("tables", 12, "or the table not on 8"),
    ],
)
def test_what_no_kernel_can_run_with_is_refused(field: str, value: int, text: str) -> None:
    with opened(faults.SHAPE, 1) as ex:
        for args in (ek.CountsArgs, ek.DispatchArgs, ek.WaitArgs, ek.CombineArgs):
            experts = ex.experts(0, 0)
            setattr(experts, field, value)
            with pytest.raises(emulated.EmulatorError, match=text):
                ex.m.start(0, args(experts=experts), None)


def test_what_one_kernel_cannot_run_with_is_refused() -> None:
    with opened(faults.SHAPE, 1) as ex:
        x = ek.Matrix(64, 2, 2, 144, 144, 1)
        y = ek.Matrix(64, 2, faults.SHAPE.received, 144, 144, 1)

        def refused(text: str, args: type, **values: Any) -> None:
            with pytest.raises(emulated.EmulatorError, match=text):
                ex.start(args, 0, 0, **values)

        def changed(matrix: ek.Matrix, **fields: int) -> ek.Matrix:
            made = ek.Matrix.from_buffer_copy(matrix)
            for name, value in fields.items():
                setattr(made, name, value)
            return made

        refused("5 tokens, expected at most 4", ek.CountsArgs, tokens=5)
        refused("traffic 2, expected", ek.WaitArgs, traffic=2)
        for fields in (dict(dtype=0), dict(columns=128), dict(rows=5), dict(data=8), dict(row=148), dict(column=2)):
            refused("x .*, expected at most 4 rows of 144 columns", ek.DispatchArgs, x=changed(x, **fields))
            if "rows" not in fields:
                refused("y .*, expected at most 32 rows", ek.CombineArgs, y=changed(y, **fields))
        refused("y has 31 rows, expected all 32", ek.CombineArgs, y=changed(y, rows=31))
        args = ek.WaitArgs(experts=ex.experts(0, 0))
        args.struct_size = 8
        with pytest.raises(LongcatError, match="struct_size 8"):
            ex.m.start(0, args, None)

"""The scheduler over a device that is as late as it may be: tokens, order, rows ahead, pages, and that all of it ends.
What each run checks is in support/scheduler_runs.py and support/fake_engine_device.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings

from longcat_ops.engine.scheduler import Outcome
from support.fake_engine_device import NOT_FINITE, FakeDevice, Pace, Ticket
from support.scheduler_cases import ALL, NONE, OWN_STOP, Case, Spec, any_case, short_of_pages, without_failures
from support.scheduler_runs import Run, run


@settings(max_examples=200)
@given(without_failures())
def test_every_request_has_its_own_tokens(case: Case) -> None:
    run(case)


@settings(max_examples=200)
@given(any_case())
def test_with_aborts_and_failures(case: Case) -> None:
    run(case)


@settings(max_examples=200)
@given(short_of_pages())
def test_where_pages_are_short(case: Case) -> None:
    run(case)


@pytest.mark.slow
@pytest.mark.parametrize("cases", [without_failures, any_case, short_of_pages], ids=lambda f: f.__name__)
def test_in_many_runs(cases) -> None:
    settings(max_examples=3000)(given(cases())(lambda case: run(case) and None))()


def reserved(result: Run) -> set[int]:
    """Rows beyond a text when iterations began that followed another one of it, without those of the last drafts."""
    begins, drafts = result.device.begins, result.device.most_drafts
    return {b.limit - 1 - b.length - drafts for b in begins if b.before == b.iteration - 1}


@pytest.mark.parametrize(("steps", "drafts"), [(1, 0), (1, 1), (4, 1), (3, 3)])
def test_both_ends_of_the_rows_ahead_are_reached(steps: int, drafts: int) -> None:
    """Each step accepts all: no row is left over; each accepts none: m n are."""
    most = (drafts + 1) * steps
    case = Case((Spec(70, 8 * most + 1),), steps=steps, drafts=drafts)
    full = reserved(run(replace(case, specs=(replace(case.specs[0], accepts=ALL),))))
    none = reserved(run(replace(case, specs=(replace(case.specs[0], accepts=NONE),))))
    assert max(none) == most + drafts * steps
    assert most in full


@pytest.mark.parametrize("drafts", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_each_step_has_all_its_drafts(steps: int, drafts: int) -> None:
    """All are right, so each step but the last has m + 1 tokens: no limit is so near that it chooses fewer."""
    result = run(Case((Spec(64, 1 + 30 * (drafts + 1), accepts=ALL),), steps=steps, drafts=drafts))
    assert result.device.counts["steps"] == 30


def test_a_text_ends_in_the_iterations_that_its_tokens_take() -> None:
    """One for the prompt and its first 8 tokens behind the first, one for each 8 more, one that is thrown away."""
    case = Case((Spec(1100, 1 + 4 * 5, accepts=NONE),), steps=4, drafts=1, prefill_tokens=2048)
    assert run(case).steps == 5 + 1 + 1
    assert run(replace(case, prefill_tokens=512)).steps == 2 + 5 + 1 + 1


def test_a_stop_id_that_does_not_count_costs_one_iteration() -> None:
    """The host reads of it while the next iteration runs without the text; then it goes on."""
    spec = Spec(10, 17, accepts=NONE, ignore_eos=True)
    case = Case((spec,), steps=4, drafts=0)
    plain, stopped = run(case), run(replace(case, specs=(replace(spec, special=((4, 1),)),)))
    assert stopped.steps == plain.steps + 1


@pytest.mark.parametrize("at", [0, 1, 5, 8])
@pytest.mark.parametrize("token", [1, OWN_STOP, NOT_FINITE])
def test_what_a_device_makes_behind_the_end_is_passed_over(at: int, token: int) -> None:
    """The next request in the slot has nothing of it, and nothing of its pages."""
    first = Spec(60, 30, special=((at, token),), own_stop=True)
    result = run(Case((first, Spec(3, 12), Spec(64, 1)), max_batch=1, extra=0, steps=4))
    assert len(result.requests[0].tokens) == at + (token != NOT_FINITE)


def test_requests_of_the_whole_pool_come_one_after_another() -> None:
    result = run(Case(tuple(Spec(500, 141, accepts=ALL) for _ in range(4)), max_batch=4, extra=0, steps=2))
    assert result.scheduler.pool.total == 10
    assert len(result.device.opened) == 4


def test_texts_that_have_no_pages_stop_and_go_on() -> None:
    result = run(Case(tuple(Spec(60, 190, accepts=ALL) for _ in range(3)), max_batch=2, extra=2, steps=3))
    assert result.device.stops and result.denied


@pytest.mark.parametrize("count", [5, 60])
def test_a_text_that_waits_for_pages_is_not_overtaken_for_ever(count: int) -> None:
    """A pool of 4 pages. One text comes to need them all; those behind it need 2, and one of them always waits."""
    old = Spec(64, 190, accepts=NONE)
    result = run(Case((old, *(Spec(65, 60, arrival=3 * i, accepts=NONE) for i in range(count))), extra=0))
    closed = result.device.closed
    assert closed.index(0) <= 3


def test_an_iteration_that_fails_ends_who_was_in_it_and_nobody_else() -> None:
    specs = (Spec(5, 40), Spec(5, 2), Spec(700, 40), Spec(5, 40, arrival=8))
    for pace in Pace:
        result = run(Case(specs, max_batch=3, fails=(3,), pace=pace))
        assert [r.error is not None for r in result.requests.values()] == [True, False, True, False]


def test_a_callback_cannot_drive_the_engine() -> None:
    """It would read the next iteration while the tokens of this one are given out. Its request fails, no other does."""
    result = run(Case((Spec(5, 20, calls=(2, "step", 0)), Spec(5, 20))))
    assert "cannot drive it" in str(result.requests[0].error)
    assert len(result.requests[0].tokens) == 3


def test_aborted_while_it_waits_in_its_prompt_and_while_it_decodes() -> None:
    specs = (Spec(5, 40, abort=4), Spec(1100, 9, abort=3), Spec(9, 9, abort=1), Spec(5, 9))
    result = run(Case(specs, max_batch=2))
    assert [len(r.tokens) > 0 for r in result.requests.values()] == [True, False, False, True]
    assert result.device.opened == [0, 1, 3]


@pytest.mark.parametrize("at", [0, 1, 4])
def test_an_interrupted_wait_loses_nothing(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while `step` waits for the device; whoever calls it again goes on where it was."""
    collect, left = FakeDevice.collect, [at]

    def interrupted(device: FakeDevice, ticket: Ticket) -> Outcome:
        left[0] -= 1
        if left[0] == -1:
            raise KeyboardInterrupt
        return collect(device, ticket)

    monkeypatch.setattr(FakeDevice, "collect", interrupted)
    result = run(Case((Spec(5, 40), Spec(600, 30), Spec(3, 12, arrival=3)), max_batch=2), interrupts=True)
    assert left[0] < -1 and result.steps > 6

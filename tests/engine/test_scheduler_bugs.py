"""Bugs planted in the scheduler and in its pool: the runs of test_scheduler.py and test_pages.py catch each."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from longcat_ops.engine import pages, scheduler
from support.page_search import MOVES, compare
from support.scheduler_cases import Case, Spec, any_case, short_of_pages, without_failures
from support.scheduler_runs import run

ENGINE = Path(scheduler.__file__).parent


class Bug(NamedTuple):
    """Texts, each once in the module, and what takes their places."""

    name: str
    old: str
    new: str
    also: tuple[tuple[str, str], ...] = ()


SCHEDULER = [
    Bug("rows_without_the_iteration_in_flight", "one.behind + self._most())", "self._most())"),
    Bug("what_was_in_flight_stays_counted", "one.behind -= most", "one.behind -= 0"),
    Bug("a_stale_iteration_reaches_the_next_request", "in iteration.live:\n            request",
        "in iteration.live:\n            one = self.live.get(one.slot, one)\n            request"),
    Bug("ended_requests_go_on", "if request.done:\n                continue", "if False:\n                continue"),
    Bug("a_limit_of_one_less", "limit=rows + 1", "limit=rows"),
    Bug("a_limit_of_one_more", "one.limit = rows + 1", "one.limit = rows + 2"),
    Bug("pages_given_out_before_the_slot_is_closed", "self.device.close(slot, self.pool.leave(request))",
        "self._late = [*self.__dict__.get('_late', []), (slot, self.pool.leave(request))]",
        (("        self._launched += 1", "        self._launched += 1\n"
          "        for late in self.__dict__.pop('_late', []):\n            self.device.close(*late)"),)),
    Bug("the_next_one_enters_in_place_of_one_that_waits", "if pages is None:\n                return",
        "if pages is None:\n                self.waiting.rotate(-1)\n                return"),
    Bug("younger_requests_enter_while_a_text_waits", "if self._reserve():", "if self._reserve() or True:"),
    Bug("requests_enter_before_texts_reserve", "if self._reserve():\n            self._admit()",
        "self._admit()\n        self._reserve()"),
    Bug("stopped_texts_stay_so", "self.device.resume(one.slot)", "pass"),
    Bug("an_iteration_from_before_it_went_on_stops_it", " and iteration.number >= one.awake", ""),
    Bug("a_stop_id_that_does_not_count_ends_it", " or request.tokens[-1] in self.eos", ""),
    Bug("texts_at_their_limit_are_not_noticed", "request.length >= limit or ", ""),
    Bug("the_limit_of_now_in_place_of_then", "request.length >= limit or", "request.length >= one.limit or"),
    Bug("the_token_of_the_prompt_not_counted", "most += 1", "most += 0"),
    Bug("the_last_slot_is_left_out", "slots = 1 + max(", "slots = 0 + max("),
    Bug("a_chunk_is_cut_at_the_budget", "(one.filled // CHUNK + 1) * CHUNK)",
        "(one.filled // CHUNK + 1) * CHUNK, one.filled + max(1, left))"),
    Bug("prompts_without_a_budget", " > left and served", " > left and False"),
    Bug("no_chunk_where_none_fits", " > left and served", " > left"),
    Bug("younger_prompts_first", "key=lambda one: one.request.number", "key=lambda one: -one.request.number"),
    Bug("failed_prompts_go_on", "outcome.error or outcome.failed.get(one.slot)", "outcome.error"),
    Bug("failed_iterations_go_on", "outcome.error or outcome.failed", "outcome.failed"),
    Bug("the_host_waits_for_the_newest", "self._read(int(launched))", "self._read(0)"),
    Bug("the_host_is_two_behind", "self._read(int(launched))", "self._read(2 * launched)"),
    Bug("no_rows_for_the_last_drafts", "tokens + self.drafts, request", "tokens, request"),
    Bug("a_limit_beyond_the_pages", "rows, enough = min(rows, one.rows), False", "enough = False"),
    Bug("rows_of_a_page_less", "min(rows, one.rows), False", "min(rows, one.rows - 64), False"),
    Bug("aborted_ones_stay_in_the_queue", "self.waiting.remove(request)", "pass"),
    Bug("sampled_by_the_first", "> 0 for one in decoding)", "> 0 for one in decoding[:1])"),
    Bug("a_row_for_the_last_token", "_pages(request.limit - 1)", "_pages(request.limit + 64)"),
]  # fmt: skip
PAGES = [
    Bug("unsafe_grants", "if self._is_safe():", "if True:"),
    Bug("those_that_miss_most_first", "key=lambda h: h.missing", "key=lambda h: -h.missing"),
    Bug("holders_in_their_own_order", "key=lambda h: h.missing", "key=lambda h: 0"),
    Bug("what_is_missing_comes_back_too", "there += len(one.pages)", "there += one.most"),
    Bug("denied_pages_are_lost", "self._free.extend(reversed(taken))", "pass"),
    Bug("denied_pages_are_kept", "del one.pages[len(one.pages) - pages :]", "pass"),
    Bug("pages_of_who_leaves_are_lost", "self._free.extend(reversed(pages))", "pass"),
    Bug("who_has_to_wait_is_in", "del self._holders[holder]", "pass"),
    Bug("one_page_is_kept_back", "if pages > len(self._free):", "if pages >= len(self._free):"),
]  # fmt: skip
DIRECTED = (
    Case((Spec(70, 40),), steps=4),
    Case(tuple(Spec(60, 190, accepts="all") for _ in range(3)), max_batch=2, extra=2, steps=3),
    Case((Spec(64, 190, accepts="none"), *(Spec(65, 60, "none", arrival=3 * i) for i in range(9))), extra=0),
    Case((Spec(5, 2), Spec(5, 40), Spec(700, 40, fails=1)), fails=(1,)),
    Case((Spec(5, 40), Spec(700, 40, fails=0), Spec(5, 40, arrival=6)), fails=(4,), max_batch=2),
)


def imported(name: str, file: str, text: str) -> ModuleType:
    """A module of the engine with another text. It is known by its name while the block of `planted` runs."""
    spec = importlib.util.spec_from_loader(f"longcat_ops.engine.{name}", loader=None)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    exec(compile(text, f"{file} with a bug", "exec"), vars(module))
    return module


@contextmanager
def planted(bug: Bug, of: ModuleType) -> Iterator[ModuleType]:
    path = Path(of.__file__)
    text = path.read_text(encoding="utf-8")
    for old, new in ((bug.old, bug.new), *bug.also):
        assert text.count(old) == 1, f"{bug.name}: {path.name} has {text.count(old)} times `{old}`"
        text = text.replace(old, new)
    module = imported(f"with_{bug.name}", path.name, text)
    try:
        yield module
    finally:
        del sys.modules[module.__name__]


def check_scheduler(module: ModuleType, examples: int) -> None:
    for case in DIRECTED:
        run(case, module)
    for cases in (short_of_pages, any_case, without_failures):
        drawn(examples, lambda case: run(case, module) and None, cases())


def check_pages(module: ModuleType, examples: int) -> None:
    drawn(examples, lambda total, moves: compare(total, moves, module.PagePool), st.integers(1, 12), MOVES)


def drawn(examples: int, check: Callable[..., None], *strategies: st.SearchStrategy) -> None:
    """The first failure is enough: it is not made small."""
    quick = settings(max_examples=examples, phases=[Phase.generate], database=None, report_multiple_bugs=False)
    quick(given(*strategies)(check))()


def in_tiers(bugs: list[Bug], quick: int) -> list:
    return [*bugs[:quick], *(pytest.param(bug, marks=pytest.mark.slow) for bug in bugs[quick:])]


@pytest.mark.parametrize("bug", in_tiers(SCHEDULER, 13), ids=lambda bug: bug.name)
def test_a_bug_of_the_scheduler_is_caught(bug: Bug) -> None:
    with planted(bug, scheduler) as module, pytest.raises(Exception):  # noqa: B017  (whatever ends a test)
        check_scheduler(module, 400)


@pytest.mark.parametrize("bug", in_tiers(PAGES, 3), ids=lambda bug: bug.name)
def test_a_bug_of_the_pool_is_caught(bug: Bug) -> None:
    with planted(bug, pages) as module, pytest.raises(Exception):  # noqa: B017
        check_pages(module, 2000)


def test_without_a_bug_nothing_is_caught() -> None:
    """The copies are the modules, so what is caught is the bug."""
    with planted(Bug("nothing", "class Scheduler:", "class Scheduler:"), scheduler) as module:
        check_scheduler(module, 30)
    with planted(Bug("nothing", "class PagePool:", "class PagePool:"), pages) as module:
        check_pages(module, 30)


def test_every_text_is_there_once() -> None:
    for of, bugs in ((scheduler, SCHEDULER), (pages, PAGES)):
        text = Path(of.__file__).read_text(encoding="utf-8")
        assert [b.name for b in bugs for old, _ in ((b.old, b.new), *b.also) if text.count(old) != 1] == []

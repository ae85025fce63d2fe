"""A device of the scheduler without a model: it obeys `Device`, runs jobs in order, and checks each as it runs.

What a text becomes is a fixed function of its request's seed and of the position, whatever else runs, as on the real
device. Nothing here reads what the host has learned of a request: only its number, its seed and its prompt's length.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, Protocol

from longcat_ops import LongcatError
from longcat_ops.engine.request import Request
from longcat_ops.engine.scheduler import Made, Outcome
from longcat_ops.model.cache import PAGE_SIZE

NOT_FINITE = -1
EMPTY, REJECTED = 0, -1  # values of rows; one that belongs to a text has _value


class Pace(Enum):
    """How much of the queue is done when the host looks away."""

    LATE = "only what `collect` asks for, when it asks"
    EAGER = "everything at once"
    RANDOM = "some of it at each call"


class Texts(Protocol):
    """What the device computes, by the seed of a request."""

    def token(self, seed: int, position: int) -> int:
        """The token there; NOT_FINITE for logits that are not."""

    def accepts(self, seed: int, position: int, most: int) -> int:
        """How many drafts, 0 .. most, are right where the text's next token is this one."""

    def prompt_fails(self, seed: int, start: int) -> bool:
        """Whether the chunk from there on fails."""


@dataclass
class Begin:
    """A text at the begin of an iteration in which it runs, as the device sees it. before: the iteration in which it
    last ran, and tokens: what the steps of that one made for it; this one if its prompt has just ended."""

    iteration: int
    request: int
    length: int
    limit: int
    rows: int  # for which it has pages
    before: int
    tokens: int


@dataclass
class _Slot:
    """drafts: -1 where it is idle. ended: its prompt has. broken: a chunk of it failed, so its rows are not whole."""

    request: Request
    pages: list[int] = field(default_factory=list)
    limit: int = 0
    filled: int = 0
    length: int = 0
    drafts: int = -1
    ended: bool = False
    broken: bool = False
    before: int = -1
    tokens: int = 0


@dataclass
class Ticket:
    """An iteration. steps, slots, sampled: as launched."""

    number: int
    first: dict[int, Made] = field(default_factory=dict)
    made: list[dict[int, Made]] = field(default_factory=list)
    failed: dict[int, LongcatError] = field(default_factory=dict)
    error: LongcatError | None = None
    done: bool = False


class FakeDevice:
    """drafts: m. fails: iterations that raise in the middle. What happened, in order: begins, opened, closed, stops and
    cuts. These two are (iteration, number of the request) of a text that met a limit below its own, or drafts less
    because of it. counts: of steps and drafts.
    """

    def __init__(self, texts: Texts, *, max_batch: int, num_pages: int, drafts: int, stop_ids: frozenset[int],
                 pace: Pace, seed: int = 0, fails: Sequence[int] = ()) -> None:  # fmt: skip
        self.texts, self.most_drafts, self.stop_ids, self.pace = texts, drafts, stop_ids, pace
        self.max_batch, self.fails = max_batch, frozenset(fails)
        self.rows = [[EMPTY] * PAGE_SIZE for _ in range(num_pages)]
        self.owner: dict[int, int] = {}  # slot of a page
        self.slots: dict[int, _Slot] = {}
        self.begins: list[Begin] = []
        self.stops: list[tuple[int, int]] = []
        self.cuts: list[tuple[int, int]] = []
        self.opened: list[int] = []
        self.closed: list[int] = []
        self.launched = self.collected = 0  # what the host did
        self.run = 0  # iterations that the device has begun
        self.counts: Counter[str] = Counter()
        self._chance = random.Random(seed)
        self._jobs: deque[Callable[[], None]] = deque()
        self._now = Ticket(0)

    # What the host calls: nothing of it waits but `collect`.

    def open(self, slot: int, request: Request) -> None:
        self._do(self._open, slot, request)

    def add_pages(self, slot: int, pages: list[int]) -> None:
        self._do(self._add_pages, slot, pages)

    def set_limit(self, slot: int, limit: int) -> None:
        self._do(self._set_limit, slot, limit)

    def prefill(self, slot: int, start: int, end: int) -> None:
        self._do(self._prefill, self._now, slot, start, end)

    def resume(self, slot: int) -> None:
        self._do(self._resume, slot)

    def close(self, slot: int, pages: list[int]) -> None:
        self._do(self._close, slot, pages)

    def launch(self, steps: int, slots: int, sampled: bool) -> Ticket:
        ticket, self._now = self._now, Ticket(self.launched + 1)
        assert self.launched - self.collected <= 1, "a third iteration in flight"
        self.launched += 1
        self._do(self._launch, ticket, steps, slots, sampled)
        return ticket

    def collect(self, ticket: Ticket) -> Outcome:
        assert ticket.number == self.collected, "iterations are read out of order"
        while not ticket.done:
            self._jobs.popleft()()
        self.collected += 1
        return Outcome(ticket.first, ticket.made, ticket.failed, ticket.error)

    def finish(self) -> None:
        """Runs what is left, and checks that nothing is left behind."""
        self._work(len(self._jobs))
        assert not self.slots and not self.owner, "a slot or a page was never given back"
        assert all(row == EMPTY for page in self.rows for row in page)

    def _do(self, job: Callable[..., None], *arguments: Any) -> None:
        self._jobs.append(partial(job, *arguments))
        if self.pace is Pace.EAGER:
            self._work(len(self._jobs))
        elif self.pace is Pace.RANDOM and self._chance.random() < 0.3:
            self._work(self._chance.randint(0, len(self._jobs)))

    def _work(self, jobs: int) -> None:
        for _ in range(jobs):
            self._jobs.popleft()()

    # What the device does when it comes to it.

    def _open(self, slot: int, request: Request) -> None:
        assert slot not in self.slots, "a slot that has a request already"
        assert slot < self.max_batch
        stopped = [one for one in self.slots.values() if one.ended and one.length == one.limit < one.request.limit]
        assert not stopped, "a request enters while a text that has stopped waits for pages"
        self.slots[slot] = _Slot(request)
        self.opened.append(request.number)

    def _add_pages(self, slot: int, pages: list[int]) -> None:
        for page in pages:
            assert page not in self.owner, "a page of two slots"
            assert not any(self.rows[page]), "a page that is not empty"
            self.owner[page] = slot
        self.slots[slot].pages.extend(pages)

    def _set_limit(self, slot: int, limit: int) -> None:
        one = self.slots[slot]
        assert limit > one.limit, "a limit that does not rise: drafts were counted by the higher one"
        assert limit - 1 <= len(one.pages) * PAGE_SIZE, "a limit beyond the pages"
        one.limit = limit

    def _resume(self, slot: int) -> None:
        one = self.slots[slot]
        assert one.ended and one.drafts < 0, "a text goes on that had not stopped"
        assert one.length < one.limit, "a text goes on that has no room"
        one.drafts = 0

    def _close(self, slot: int, pages: list[int]) -> None:
        one = self.slots.pop(slot)
        self.closed.append(one.request.number)
        assert pages == one.pages, "other pages than the slot has"
        if one.ended and not one.broken:
            have = [row for page in pages for row in self.rows[page]][: one.length - 1]
            first = _value(one.request, 0)
            assert have == list(range(first, first + one.length - 1)), "rows of a text were lost"
        for page in pages:
            del self.owner[page]
            self.rows[page] = [EMPTY] * PAGE_SIZE

    def _prefill(self, ticket: Ticket, slot: int, start: int, end: int) -> None:
        one = self.slots[slot]
        assert start == one.filled and not one.ended, "chunks are out of order"
        one.filled, last = end, end == len(one.request.prompt)
        try:
            if self.texts.prompt_fails(one.request.seed, start):
                raise LongcatError(f"the prompt of request {one.request.number}")
            for position in range(start, end):
                self._write(slot, position, _value(one.request, position))
            if last:
                one.length, one.ended, one.drafts, one.before = end, True, 0, ticket.number
                ticket.first[slot] = self._advance(slot, 0, ticket.number)
        except LongcatError as error:
            ticket.failed[slot], one.broken, one.drafts = error, True, -1

    def _launch(self, ticket: Ticket, steps: int, slots: int, sampled: bool) -> None:
        ticket.done, self.run = True, ticket.number + 1
        live = {slot: one for slot, one in sorted(self.slots.items()) if one.drafts >= 0}
        assert all(slot < slots for slot in live), "a text that the step does not reach"
        assert steps or not live
        assert sampled or not any(one.request.temperature for one in live.values()), "sampled texts in greedy steps"
        for one in live.values():
            rows = len(one.pages) * PAGE_SIZE
            now = ticket.number, one.request.number, one.length, one.limit, rows, one.before, one.tokens
            self.begins.append(Begin(*now))
            one.before, one.tokens = ticket.number, 0
        for step in range(max(steps, 1)):
            awake = [slot for slot, one in live.items() if one.drafts >= 0]
            made = {slot: self._step(slot, ticket.number) for slot in awake}
            if ticket.number in self.fails and step == steps // 2:
                ticket.error = LongcatError(f"iteration {ticket.number}")  # what the step has made is lost
                return
            ticket.made.append(made)
            self.counts["idle"] += len(live) - len(awake)

    def _step(self, slot: int, iteration: int) -> Made:
        one = self.slots[slot]
        accepted = self.texts.accepts(one.request.seed, one.length, one.drafts)
        for i in range(one.drafts + 1):
            position = one.length - 1 + i
            self._write(slot, position, _value(one.request, position) if i <= accepted else REJECTED)
        self.counts["steps"] += 1
        self.counts["drafts"] += one.drafts
        made = self._advance(slot, accepted, iteration)
        one.tokens += len(made.tokens)
        return made

    def _advance(self, slot: int, accepted: int, iteration: int) -> Made:
        """As the op `advance_lengths`: tokens up to the limit and up to one that ends the text, then idle or drafts."""
        one, drafted, tokens = self.slots[slot], self.slots[slot].drafts, []
        room = one.limit - one.length
        for position in range(one.length, one.length + min(accepted + 1, room)):
            tokens.append(self.texts.token(one.request.seed, position))
            if tokens[-1] == NOT_FINITE or tokens[-1] in self.stop_ids:
                break
        assert tokens, "a text that runs without room"
        one.length += len(tokens)
        if tokens[-1] == NOT_FINITE or tokens[-1] in self.stop_ids:
            one.drafts = -1
        else:
            one.drafts, own = (min(self.most_drafts, at - 1 - one.length) for at in (one.limit, one.request.limit))
            if one.drafts < own:
                (self.stops if one.drafts < 0 else self.cuts).append((iteration, one.request.number))
        return Made(tokens, accepted, drafted)

    def _write(self, slot: int, position: int, value: int) -> None:
        pages = self.slots[slot].pages
        assert position < len(pages) * PAGE_SIZE, "a row without a page"
        page = pages[position // PAGE_SIZE]
        assert self.owner[page] == slot, "a row in a page of another slot"
        self.rows[page][position % PAGE_SIZE] = value


def _value(request: Request, position: int) -> int:
    return (request.number + 1) * 10**6 + position

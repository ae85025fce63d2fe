"""Which requests an engine serves when: admission, pages, iterations of several steps, the host one iteration behind.

Pure host logic. What it decides goes to a `Device`, which runs everything in the order in which it is given, and
answers later. So the scheduler never waits but in `collect`, for the iteration before the one that it has just given.

A text grows by 1 to m + 1 tokens a step, m drafts, and the host learns by how many one iteration late. Rows are
reserved so that no step runs out of them: R_0 = (m + 1) n rows beyond a text for its first n steps, then
R_i = 2 (m + 1) n - U, with U the tokens of the iteration before, which the host does not know yet (LongCat-Flash
technical report, arXiv:2509.01322, section 6.2.1, for m = 1). The host knows the text as it was ahead of that
iteration, so it reserves 2 (m + 1) n rows beyond that. To these it adds m, for the drafts that the last step chooses:
a step chooses no more than there are rows for. Where pages are short, the device is told a lower limit, at
which a text stops by itself; it goes on when there are pages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import LongcatError
from ..model.cache import PAGE_SIZE
from ..model.passes import CHUNK
from .pages import PagePool
from .request import FinishReason, Request, State


@dataclass(frozen=True)
class Made:
    """What one step, or the end of a prompt, made for one slot. tokens: those that stay; a negative one marks logits
    that were not finite. accepted: how many of them were drafts; drafted: how many were verified. ffn_experts: chosen
    by the rows behind them. is_step: no end of a prompt."""

    tokens: list[int]
    accepted: int = 0
    drafted: int = 0
    ffn_experts: int = 0
    is_step: bool = True


class Device(Protocol):
    """Runs what it is given, in order. Slots are places in the step's batch."""

    def open(self, slot: int, request: Request) -> None:
        """A request begins in a slot: its sampling, no pages, an empty text."""

    def add_pages(self, slot: int, pages: list[int]) -> None:
        """More pages behind those that the slot has."""

    def set_limit(self, slot: int, limit: int) -> None:
        """The tokens at which its text stops."""

    def prefill(self, slot: int, start: int, end: int) -> None:
        """A chunk of the prompt; the last one chooses the first token."""

    def resume(self, slot: int) -> None:
        """A text that had stopped goes on."""

    def close(self, slot: int, pages: list[int]) -> None:
        """The slot is idle, and its pages are empty."""

    def launch(self, steps: int, slots: int, sampled: bool) -> Any:
        """`steps` steps of the first `slots` slots. Returns what `collect` takes."""

    def collect(self, ticket: Any) -> Outcome:
        """Waits for everything up to the launch."""


@dataclass(frozen=True)
class Outcome:
    """Of an iteration: what prompts that ended in it made, by slot, then what each step made, by slot; or the error
    that ended it. failed: errors of prompts, by slot."""

    first: dict[int, Made] = field(default_factory=dict)
    steps: Sequence[dict[int, Made]] = ()
    failed: dict[int, LongcatError] = field(default_factory=dict)
    error: LongcatError | None = None


@dataclass(eq=False)
class _Live:
    """A request in a slot. limit: what the device was told. behind: the most tokens that it may have beyond those which
    the host knows. stopped: the device has stopped it, and it must be resumed. awake: the first iteration in which it
    runs since then."""

    request: Request
    slot: int
    limit: int = 0
    rows: int = 0  # for which it has pages
    filled: int = 0  # rows of its prompt that were given to the device
    behind: int = 0
    stopped: bool = False
    awake: int = 0


@dataclass
class _Iteration:
    number: int
    ticket: Any
    live: list[tuple[_Live, int, int]]  # who was there, its limit, the most tokens that it may get


class Scheduler:
    """See the module. steps: n. drafts: m. eos: at which the device stops a text. take: gives a request what was made
    for it, and says why it has ended, or None. done: called with each request that has ended.
    """

    def __init__(self, device: Device, *, max_batch: int, num_pages: int, prefill_tokens: int, steps: int, drafts: int,
                 eos: frozenset[int], take: Callable[[Request, Made], FinishReason | None],
                 done: Callable[[Request], object] = lambda request: None) -> None:  # fmt: skip
        self.device, self.pool, self.eos = device, PagePool(num_pages), eos
        self.max_batch, self.prefill_tokens, self.steps, self.drafts = max_batch, prefill_tokens, steps, drafts
        self.waiting: deque[Request] = deque()
        self.live: dict[int, _Live] = {}
        self.in_flight: deque[_Iteration] = deque()
        self._take, self._done, self._launched, self._inside = take, done, 0, False

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.live or self.in_flight)

    def pages_of(self, request: Request) -> int:
        """What a request may need: its last token has no row."""
        return _pages(request.limit - 1)

    def abort(self, request: Request) -> None:
        """Ends a request that is not done."""
        if request in self.waiting:
            self.waiting.remove(request)
        self._finish(request, FinishReason.ABORTED)

    def step(self) -> None:
        """One iteration: gives the device the next one, if there is one, and reads the one before.

        Raises: LongcatError within another call, from a callback: a text would have later tokens ahead of earlier ones.
        """
        if self._inside:
            raise LongcatError("Engine: a callback cannot drive it; `submit` and `abort` are allowed there.")
        self._inside = True
        try:
            self._step()
        finally:
            self._inside = False

    def _step(self) -> None:
        self._read(1)  # there is more where a call was interrupted while it waited
        if self._reserve():
            self._admit()
        prompts = self._prefill()
        decoding = [one for one in self.live.values() if one.filled == len(one.request.prompt) and not one.stopped]
        launched = bool(prompts or decoding)
        if launched:
            self._launch(decoding)
        self._read(int(launched))

    def _admit(self) -> None:
        """Requests in their order: nobody overtakes one that waits for pages, in a slot or ahead of one."""
        while self.waiting and len(self.live) < self.max_batch:
            request = self.waiting[0]
            rows = self._rows_for(request, 1 + self._most())
            pages = self.pool.enter(request, self.pages_of(request), _pages(rows))
            if pages is None:
                return
            self.waiting.popleft()
            slot = next(s for s in range(self.max_batch) if s not in self.live)
            one = self.live[slot] = _Live(request, slot, limit=rows + 1, rows=len(pages) * PAGE_SIZE)
            request.state = State.PREFILL
            self.device.open(slot, request)
            self.device.add_pages(slot, pages)
            self.device.set_limit(slot, one.limit)

    def _most(self) -> int:
        """Tokens that a text may get in an iteration."""
        return (self.drafts + 1) * self.steps

    def _rows_for(self, request: Request, tokens: int) -> int:
        """Rows of a text that gets so many more tokens than the host knows: its newest one has none, drafts behind it
        have theirs."""
        return min(request.length + tokens + self.drafts, request.limit - 1)

    def _reserve(self) -> bool:
        """Rows for the next iteration; a text that had stopped for want of them goes on. Returns whether all have
        theirs. If not, no request enters: one after another they could take the pages that this one waits for."""
        enough = True
        for one in self.live.values():
            if one.filled < len(one.request.prompt):
                continue
            rows = self._rows_for(one.request, one.behind + self._most())
            missing = _pages(rows) - one.rows // PAGE_SIZE
            if missing > 0:
                pages = self.pool.take(one.request, missing)
                if pages is None:
                    rows, enough = min(rows, one.rows), False
                else:
                    self.device.add_pages(one.slot, pages)
                    one.rows += len(pages) * PAGE_SIZE
            if rows + 1 > one.limit:
                one.limit = rows + 1
                self.device.set_limit(one.slot, one.limit)
            if one.stopped and one.limit > one.request.length:
                one.stopped, one.awake = False, self._launched
                self.device.resume(one.slot)
        return enough

    def _prefill(self) -> list[_Live]:
        """Chunks of prompts, oldest first: as many as fit into `prefill_tokens` rows, one at least. A chunk is never
        cut, so its rows have the bits that they have in any other run. Returns whose prompts went on."""
        left, served = self.prefill_tokens, []
        for one in sorted(self.live.values(), key=lambda one: one.request.number):
            length = len(one.request.prompt)
            while one.filled < length:
                end = min(length, (one.filled // CHUNK + 1) * CHUNK)
                if end - one.filled > left and served:
                    return served
                self.device.prefill(one.slot, one.filled, end)
                left -= end - one.filled
                one.filled = end
                served.append(one)
                if end == length:
                    one.request.state = State.DECODE
        return served

    def _launch(self, decoding: list[_Live]) -> None:
        slots = 1 + max((one.slot for one in decoding), default=-1)
        live = []
        for one in self.live.values():
            most = self._most() if one in decoding else 0
            if most and not one.request.tokens and not one.behind:
                most += 1  # the prompt has just ended, with a token
            one.behind += most
            live.append((one, one.limit, most))
        sampled = any(one.request.temperature > 0 for one in decoding)
        ticket = self.device.launch(self.steps if decoding else 0, slots, sampled)
        self.in_flight.append(_Iteration(self._launched, ticket, live))
        self._launched += 1

    def _read(self, left: int) -> None:
        """All iterations but the newest `left`. One that could not be waited for stays, so that no token is lost."""
        while len(self.in_flight) > left:
            outcome = self.device.collect(self.in_flight[0].ticket)
            self._give(self.in_flight.popleft(), outcome)

    def _give(self, iteration: _Iteration, outcome: Outcome) -> None:
        """What an iteration made. Slots that have another request since are passed over."""
        for one, limit, most in iteration.live:
            request = one.request
            if request.done:
                continue
            error = outcome.error or outcome.failed.get(one.slot)
            if error is not None:
                request.error = error
                self._finish(request, FinishReason.ERROR)
                continue
            for made in (outcome.first, *outcome.steps):
                if one.slot in made and not request.done:
                    reason = self._take(request, made[one.slot])
                    if reason is not None and not request.done:
                        self._finish(request, reason)
            one.behind -= most
            if not request.done and most and iteration.number >= one.awake:
                # The device stopped the text for want of pages, or at a stop id that does not count: it goes on.
                one.stopped = request.length >= limit or request.tokens[-1] in self.eos

    def _finish(self, request: Request, reason: FinishReason) -> None:
        """Whatever the device still makes of it is passed over. It runs things in order, so pages can be given out at
        once: no step that was launched before reaches them once their next owner has them."""
        request.finish_reason, request.state = reason, State.FINISHED
        slot = next((slot for slot, one in self.live.items() if one.request is request), None)
        if slot is not None:
            del self.live[slot]
            self.device.close(slot, self.pool.leave(request))
        self._done(request)


def _pages(rows: int) -> int:
    return -(-rows // PAGE_SIZE)

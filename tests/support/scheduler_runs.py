"""Whole runs of a scheduler over a fake device, and what must hold of each."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, cast

from longcat_ops import LongcatFlashConfig
from longcat_ops.engine import scheduler as real
from longcat_ops.engine.engine import Engine
from longcat_ops.engine.request import FinishReason, Request, State, Stops
from longcat_ops.engine.statistics import Statistics
from longcat_ops.model.passes import CHUNK

from .fake_engine_device import Begin, FakeDevice, Ticket
from .scheduler_cases import ALL, NONE, OWN_STOP, STOP_IDS, Case, Spec, drawn


@dataclass
class Run:
    """denied: (request, iteration) for which the pool gave no pages. aborted: as `requests`. steps: calls of `step`."""

    scheduler: Any
    device: _Watched
    requests: dict[int, Request] = field(default_factory=dict)  # by number of the spec
    denied: set[tuple[int, int]] = field(default_factory=set)
    aborted: set[int] = field(default_factory=set)
    steps: int = 0

    def abort(self, i: int) -> None:
        """As `Engine.abort`."""
        if i in self.requests and not self.requests[i].done:
            self.aborted.add(i)
            self.scheduler.abort(self.requests[i])


class _Texts:
    """The device's texts; a request's seed is the number of its spec."""

    def __init__(self, case: Case) -> None:
        self._specs, self._seed = case.specs, case.seed

    def token(self, seed: int, position: int) -> int:
        spec = self._specs[seed]
        return spec.token(seed, position - spec.prompt)

    def accepts(self, seed: int, position: int, most: int) -> int:
        kind = self._specs[seed].accepts
        chance = drawn(seed + self._seed, position) >> 10
        return most if kind == ALL else 0 if kind == NONE else min(most, chance % 4)

    def prompt_fails(self, seed: int, start: int) -> bool:
        return self._specs[seed].fails == start // CHUNK


class _Watched(FakeDevice):
    """Checks what the host does between two launches: chunks of prompts, admission, which iteration it waits for."""

    def watch(self, run: Run, case: Case) -> None:
        self.of, self.case, self.fresh = run, case, False
        self._chunks: list[int] = []  # rows, since the last launch
        self._filled: dict[int, int] = {}

    def open(self, slot: int, request: Request) -> None:
        live = (one.request.number for one in self.of.scheduler.live.values())
        assert not any((n, self.launched) in self.of.denied for n in live), "it overtakes a text that has no pages"
        self._filled[request.number] = 0
        super().open(slot, request)

    def prefill(self, slot: int, start: int, end: int) -> None:
        live = {one.request.number: len(one.request.prompt) for one in self.of.scheduler.live.values()}
        number = self.of.scheduler.live[slot].request.number
        assert start % CHUNK == 0 and end == min(live[number], start + CHUNK), "a chunk that is cut"
        assert all(self._filled[n] == live[n] for n in live if n < number), "a younger prompt goes first"
        self._chunks.append(end - start)
        self._filled[number] = end
        super().prefill(slot, start, end)

    def launch(self, steps: int, slots: int, sampled: bool) -> Ticket:
        assert steps in (0, self.case.steps) and not self.fresh
        self._check_chunks()
        scheduler = self.of.scheduler
        if scheduler.waiting and len(scheduler.live) < self.case.max_batch:
            assert any(at == self.launched for _, at in self.of.denied), "a free slot, pages, and nobody enters"
        self.fresh = True
        return super().launch(steps, slots, sampled)

    def collect(self, ticket: Ticket) -> Any:
        assert ticket.number == self.launched - 1 - self.fresh, "the host waits for what it has just given"
        outcome = super().collect(ticket)
        self.fresh = False
        return outcome

    def _check_chunks(self) -> None:
        """As many rows of prompts as fit, or one chunk; and no fewer."""
        rows, chunks, self._chunks = sum(self._chunks), len(self._chunks), []
        assert rows <= self.case.prefill_tokens or chunks == 1, "more rows of prompts than an iteration may have"
        live = sorted((one.request.number, len(one.request.prompt)) for one in self.of.scheduler.live.values())
        rest = [length - self._filled[number] for number, length in live if self._filled[number] < length]
        if rest:
            assert chunks and rows + min(rest[0], CHUNK) > self.case.prefill_tokens, "a chunk that would have fitted"


def run(case: Case, module: ModuleType = real, *, interrupts: bool = False) -> Run:
    """A run to its end, with everything checked that must hold. module: with a scheduler to try in place of ours.
    interrupts: calls of `step` may be interrupted while they wait."""
    result = Run(None, _Watched(_Texts(case), max_batch=case.max_batch, num_pages=case.num_pages, drafts=case.drafts,
                                stop_ids=STOP_IDS, pace=case.pace, seed=case.seed, fails=case.fails))  # fmt: skip
    counts = Statistics(LongcatFlashConfig(), case.max_batch, case.num_pages)
    engine = SimpleNamespace(eos=STOP_IDS, tokenizer=None, statistics=counts)
    scheduler = result.scheduler = module.Scheduler(
        result.device, max_batch=case.max_batch, num_pages=case.num_pages, prefill_tokens=case.prefill_tokens,
        steps=case.steps, drafts=case.drafts, eos=STOP_IDS, take=lambda *made: Engine._take(cast(Any, engine), *made),
        done=counts.done,
    )  # fmt: skip
    scheduler.pool = _noting(module.PagePool, result)(case.num_pages)
    result.device.watch(result, case)
    arrivals = [spec.arrival for spec in case.specs if spec.arrival is not None]
    while scheduler.busy or result.steps <= max(arrivals, default=0):
        for i, spec in enumerate(case.specs):
            if spec.arrival == result.steps:
                _submit(result, case, i)
            if spec.abort == result.steps:
                result.abort(i)
        result.steps += 1
        with suppress(*[KeyboardInterrupt] * interrupts):
            scheduler.step()
            result.device.fresh = False
        assert result.steps <= _bound(case), "no end"
    check(case, result)
    return result


def _noting(pool: type, result: Run) -> type:
    """A pool that notes whom it denies pages."""

    class Noting(pool):  # type: ignore[misc, valid-type]
        def take(self, holder: Hashable, pages: int) -> list[int] | None:
            taken = super().take(holder, pages)
            if taken is None:
                result.denied.add((cast(Request, holder).number, result.device.launched))
            return taken

    return Noting


def _submit(result: Run, case: Case, i: int) -> None:
    spec = case.specs[i]

    def on_token(request: Request, token: int) -> None:
        at = len(request.tokens) - 1
        if at == 0 and i + 1 < len(case.specs) and case.specs[i + 1].arrival is None:
            _submit(result, case, i + 1)
        if spec.calls is not None and spec.calls[0] == at:
            _, what, other = spec.calls
            if what == "raise":
                raise ValueError(i)
            if what == "step":
                result.scheduler.step()
            result.abort(other)

    stops = Stops(frozenset({OWN_STOP} if spec.own_stop else ()), ignore_eos=spec.ignore_eos)
    number = len(result.requests)
    result.requests[i] = Request(number, [0] * spec.prompt, spec.new, spec.temperature, seed=i, stops=stops,
                                 on_token=on_token)  # fmt: skip
    result.scheduler.waiting.append(result.requests[i])


def _bound(case: Case) -> int:
    """A chunk, a token or the end of a request in each three calls: a text that stopped runs again in the second
    iteration behind, and the host reads that one call later."""
    work = sum(2 + spec.new + -(-spec.prompt // CHUNK) for spec in case.specs)
    return 3 * work + max((spec.arrival or 0) for spec in case.specs) + 3


def check(case: Case, result: Run) -> None:
    """The tokens of each request, the pages, and the rows ahead of each text."""
    device, scheduler = result.device, result.scheduler
    assert not scheduler.in_flight and not scheduler.live and not scheduler.waiting
    assert device.launched == device.collected and scheduler.pool.free == case.num_pages
    device.finish()
    assert device.opened == sorted(device.opened), "a request overtook another one"
    for i, request in result.requests.items():
        check_request(case.specs[i], request, i in result.aborted)
    begins: dict[int, Begin] = {}
    limits = {request.number: request.limit for request in result.requests.values()}
    for begin in device.begins:
        short = (begin.request, begin.iteration) in result.denied
        check_rows(case, begin, limits[begin.request], short)
        begins[begin.request] = begin
    for iteration, number in device.stops:
        assert (number, iteration) in result.denied, "a text stopped for want of pages that were there"
    for iteration, number in device.cuts:
        assert (number, iteration) in result.denied, "drafts left out for want of pages that were there"
    if case.ample:
        assert not result.denied


def check_request(spec: Spec, request: Request, aborted: bool) -> None:
    """Its own tokens, up to its own end, to where it was aborted, or to an iteration that failed ahead of its end."""
    tokens, reason = spec.alone(request.seed)
    assert request.done and request.state is State.FINISHED
    failed = "iteration" in str(request.error)
    if aborted:
        reason = FinishReason.ABORTED
    elif failed:
        assert reason is FinishReason.ERROR or len(request.tokens) < len(tokens), "it failed behind its end"
        reason = FinishReason.ERROR
    assert request.tokens == (tokens[: len(request.tokens)] if aborted or failed else tokens)
    assert request.finish_reason is reason
    assert (request.error is not None) == (reason is FinishReason.ERROR)


def check_rows(case: Case, begin: Begin, limit: int, short: bool) -> None:
    """Rows reserved beyond a text when an iteration begins. A text of T tokens has T - 1 rows, and it stops at its
    limit, so it goes on behind n steps that write R rows if limit - 1 - T = R. m more are for the drafts that the last
    of these steps chooses:

    limit - 1 - T = R + m, R_0 = (m + 1) n, R_i = 2 (m + 1) n - U: U tokens in the iteration before, 0 if the text had
    stopped ahead of it. The host learns of that when it has given the device one more, so a text that has been idle for
    two or more iterations begins with R_0. Fewer only at the request's own limit, or where the pool had no pages."""
    most = (case.drafts + 1) * case.steps
    idle = begin.iteration - begin.before  # 0: the prompt has just ended
    tokens = begin.tokens if idle == 1 else 0
    wanted = 2 * most - tokens if idle in (1, 2) else most
    reserved = begin.limit - 1 - begin.length - case.drafts
    assert begin.limit - 1 <= begin.rows and begin.limit <= limit and begin.length < begin.limit
    wanted = min(wanted, limit - 1 - begin.length - case.drafts)
    if short:
        assert reserved <= wanted
        assert reserved == wanted or begin.limit - 1 == begin.rows, "pages that the text has and may not use"
        return
    assert reserved == wanted
    if idle == 1 and begin.before not in case.fails:
        assert case.steps <= tokens <= most
        near = limit - 1 - begin.length - case.drafts
        assert min(most, near) <= reserved <= most + case.drafts * case.steps

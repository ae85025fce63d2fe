"""The device of a scheduler: a model, its cache, and captured steps for each number of slots."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import LongcatError
from ..model import LatentCache, LongcatFlashForCausalLM
from .c2t import DraftFilter
from .observer import Unobserved
from .request import Request
from .scheduler import Made, Outcome
from .step import DecodeStep, Sampling, Tokens, in_float32
from .step_graph import StepGraph, capture

GREEDY = Sampling(0.0, 0, 1.0, False)


@dataclass
class _Ticket:
    """An iteration on its way. first: the first token of prompts that ended, by slot; steps: numbers of each step."""

    done: Future[None]
    first: dict[int, Tensor] = field(default_factory=dict)
    steps: list[tuple[Tensor, ...]] = field(default_factory=list)
    failed: dict[int, LongcatError] = field(default_factory=dict)
    error: LongcatError | None = None
    copied: Any = None  # an event of CUDA: the numbers are in the host's memory


class Runner:
    """Runs jobs in their order on a thread of its own, which on a GPU only issues them. Nothing it is given waits;
    `collect` does, on a GPU for the event behind an iteration's copies, while the next one runs.
    """

    def __init__(self, model: LongcatFlashForCausalLM, *, max_batch: int, num_pages: int, max_length: int,
                 speculative: bool, eos: Iterable[int], replays: bool,
                 draft_filter: DraftFilter | None) -> None:  # fmt: skip
        self.model, self.replays = model, replays
        model.follow_weights()
        with torch.inference_mode():
            self.cache: LatentCache = model.new_cache(max_batch, max_length, num_pages=num_pages)
            self.whole = DecodeStep(model, self.cache, GREEDY, [0] * max_batch, [1] * max_batch, sorted(eos),
                                    speculative=speculative, around=Unobserved().around,
                                    draft_filter=draft_filter)  # fmt: skip
        self.sizes = sorted({min(1 << i, max_batch) for i in range(max_batch.bit_length() + 1)})
        self._steps: dict[tuple[int, bool], _Step] = {}
        self._requests: dict[int, Request] = {}
        self._now = _Ticket(Future())
        self.waited = 0.0  # seconds of the host in `collect`
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="longcat_ops.engine")

    def _do(self, job: Callable[..., Any], *arguments: Any) -> Future[None]:
        return self._thread.submit(self._inside, self._now, job, *arguments)

    @torch.inference_mode()
    def _inside(self, ticket: _Ticket, job: Callable[..., Any], *arguments: Any) -> None:
        """An order that fails ends the iteration that it is for."""
        try:
            job(*arguments)
        except Exception as error:
            ticket.error = _as_ours(error, "an order to the device")

    def open(self, slot: int, request: Request) -> None:
        self._do(self._open, slot, request)

    def _open(self, slot: int, request: Request) -> None:
        self._requests[slot] = request
        whole = self.whole
        whole.num_drafts[slot] = -1
        whole.seeds[slot] = request.seed
        whole.temperature[slot], whole.top_p[slot] = in_float32(request.temperature), request.top_p
        whole.top_k[slot] = min(request.top_k, self.model.config.vocab_size)

    def add_pages(self, slot: int, pages: list[int]) -> None:
        self._do(self.cache.add_pages, slot, pages)

    def set_limit(self, slot: int, limit: int) -> None:
        self._do(self.whole.limits[slot].fill_, limit)

    def resume(self, slot: int) -> None:
        self._do(self.whole.num_drafts[slot].fill_, 0)

    def close(self, slot: int, pages: list[int]) -> None:
        self._do(self._close, slot)

    def _close(self, slot: int) -> None:
        self.whole.num_drafts[slot] = -1
        self.cache.clear(slot)
        self._requests.pop(slot, None)

    def prefill(self, slot: int, start: int, end: int) -> None:
        self._do(self._prefill, self._now, slot, start, end)

    def _prefill(self, ticket: _Ticket, slot: int, start: int, end: int) -> None:
        request = self._requests[slot]
        try:
            ids = torch.tensor(request.prompt[start : end + 1])
            step, last = self._step_of(request.temperature > 0, self.sizes[-1]).step, end == len(request.prompt)
            made = self.model.prefill(self.cache, slot, ids[: end - start], last_only=True, start=start)
            if last:
                first = step.begin(slot, end, made.logits[-1:])
                experts = made.num_real[-1:].sum(1)
                ticket.first[slot] = _on_host(torch.cat([first.tokens[0, :1], experts]))
                ids = torch.cat([ids, first.tokens[0, :1].to(ids.device)])
            if step.speculative:
                hidden = self.model.draft_prefill(self.cache, slot, ids[1:], made.hidden, start=start)
                if last:
                    step.draft(self.model.head(hidden[-1:]), slice(slot, slot + 1))
        except Exception as error:
            self.whole.num_drafts[slot] = -1
            ticket.failed[slot] = _as_ours(error, f"the prompt of request {request.number}")

    def _step_of(self, sampled: bool, slots: int) -> _Step:
        size = next(size for size in self.sizes if size >= slots)
        if (size, sampled) not in self._steps:
            self._steps[size, sampled] = _Step(self.whole.first(size, greedy=not sampled), self.replays)
        return self._steps[size, sampled]

    def launch(self, steps: int, slots: int, sampled: bool) -> _Ticket:
        ticket = self._now
        ticket.done = self._do(self._launch, ticket, steps, slots, sampled)
        self._now = _Ticket(Future())
        return ticket

    def _launch(self, ticket: _Ticket, steps: int, slots: int, sampled: bool) -> None:
        try:
            for _ in range(steps):
                step = self._step_of(sampled, slots)
                drafted = step.step.num_drafts.clone()
                made = step.run()
                numbers = made.tokens, made.num_tokens, made.kept, drafted, made.first_row, made.num_real.sum(1)
                ticket.steps.append(tuple(map(_on_host, numbers)))
        except Exception as error:
            ticket.error = _as_ours(error, "a step")
        if self.model.device.type == "cuda":
            ticket.copied = torch.cuda.Event()
            ticket.copied.record()

    def collect(self, ticket: _Ticket) -> Outcome:
        start = time.perf_counter()
        ticket.done.result()
        if ticket.copied is not None:
            ticket.copied.synchronize()
        self.waited += time.perf_counter() - start
        first = {slot: Made([int(t[0])], ffn_experts=int(t[1]), is_step=False) for slot, t in ticket.first.items()}
        return Outcome(first, [_by_slot(numbers) for numbers in ticket.steps], ticket.failed, ticket.error)

    def shut_down(self) -> None:
        """Ends the thread once everything that it was given is done."""
        self._thread.shutdown()


class _Step:
    """A step of the first slots, captured when it first runs where it can be."""

    def __init__(self, step: DecodeStep, replays: bool) -> None:
        self.step, self._replays = step, replays
        self._graph: StepGraph | None = None

    def run(self) -> Tokens:
        if not self._replays:
            return self.step()
        if self._graph is None:
            self._graph = capture(self.step, device=self.step.model.device)
            return self._graph.outputs
        return self._graph.replay()


def _by_slot(numbers: tuple[Tensor, ...]) -> dict[int, Made]:
    """What a step made, read on the host."""
    tokens, num_tokens, kept, drafted, first_row, experts = (t.tolist() for t in numbers)
    return {
        slot: Made(tokens[slot][:count], num_tokens[slot] - 1, max(0, drafted[slot]),
                   sum(experts[first_row[slot] :][:count]))
        for slot, count in enumerate(kept)
        if count
    }  # fmt: skip


def _on_host(t: Tensor) -> Tensor:
    """A copy, in pinned memory of the host; it may still be on its way."""
    if t.device.type == "cpu":
        return t.clone()
    return torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True)


def _as_ours(error: Exception, what: str) -> LongcatError:
    if isinstance(error, LongcatError):
        return error
    found = LongcatError(f"Engine: {what} failed: {type(error).__name__}: {error}")
    found.__cause__ = error
    return found

"""An engine: many requests at once over one model, each with the tokens that it would have alone."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import _environment
from ..errors import LongcatError, LongcatShapeError, LongcatUnsupportedError, message
from ..model import LongcatFlashForCausalLM
from ..model.cache import PAGE_SIZE
from ..model.checks import described, is_integer, require
from .c2t import DraftFilter, check_draft_filter
from .checks import check_prompts, check_sampling, check_stop_ids
from .generate import seed_of
from .request import Decoder, FinishReason, OnToken, Request, State, Stops
from .runner import Runner
from .scheduler import Made, Scheduler
from .statistics import Statistics
from .step_graph import obstacle_to_capture
from .text import TextStream

if TYPE_CHECKING:
    from typing_extensions import Self


class Engine:
    """Continuous batching: requests join and leave between steps, prompts are read in chunks beside the decoding of
    others, and drafts of the MTP head are verified in the step that makes the next ones. The tokens of a request are
    those of `generate` for its prompt alone, bit for bit, whatever else runs.

    The engine keeps nothing running by itself: `step`, `run` and the iterators drive it. It is a context manager that
    closes. One thread drives it; `submit` and `abort` are for that thread, too.

    Args:
        model: on one rank.
        max_batch: requests that decode at once.
        max_tokens: tokens that the cache holds, of all live requests together, rounded up to pages of 64.
        prefill_tokens: rows of prompts beside an iteration. A chunk of a prompt, up to 512 rows, is never cut.
        steps_per_schedule: n, decode steps for each iteration; the host reads an iteration while the next one runs.
        speculative: whether the MTP head drafts a token a step; models without one decode plainly.
        tokenizer: has decode(ids) -> str; for `text` and stop strings.
        eos_token_id: as for `generate`.
        graph: whether steps are captured once for each padded number of requests; None: where they can be.
        draft_filter: which drafts are verified (engine/c2t.py), as for `generate`; None: all.

    Raises: LongcatShapeError for an argument out of range; LongcatUnsupportedError for a model of several ranks, or
        graph=True where a step cannot be captured.
    """

    def __init__(self, model: LongcatFlashForCausalLM, *, max_batch: int, max_tokens: int, prefill_tokens: int = 512,
                 steps_per_schedule: int = 4, speculative: bool = True, tokenizer: Decoder | None = None,
                 eos_token_id: int | Sequence[int] | None = None, graph: bool | None = None,
                 draft_filter: DraftFilter | None = None) -> None:  # fmt: skip
        require(isinstance(model, LongcatFlashForCausalLM) and model.device.type != "meta", "Engine", "model",
                type(model).__name__, "a LongcatFlashForCausalLM with weights")  # fmt: skip
        for name, value, most in (("max_batch", max_batch, 4096), ("max_tokens", max_tokens, 2**31),
                                  ("prefill_tokens", prefill_tokens, 2**31),
                                  ("steps_per_schedule", steps_per_schedule, 64)):  # fmt: skip
            legal = is_integer(value) and 1 <= value <= most
            require(legal, "Engine", name, described(value), f"an integer in 1 .. {most}")
        check_draft_filter("Engine", draft_filter)
        if model.parallel is not None:
            raise LongcatUnsupportedError(message("Engine", "model", "a model of several ranks", "one on one rank"))
        obstacle = obstacle_to_capture(model)
        if obstacle is None and model.device.type == "cpu" and _environment.backend() == "emu":
            obstacle = "the emulator keeps one recorded step, an engine has one for each size"
        if graph and obstacle is not None:
            raise LongcatUnsupportedError(message("Engine", "graph", True, "None or False", context=obstacle))
        self.model, self.tokenizer = model, tokenizer
        self.eos = frozenset(check_stop_ids(model.config, eos_token_id))
        speculative = speculative and model.mtp is not None
        pages = -(-max_tokens // PAGE_SIZE)
        self.max_length = min(model.config.max_position_embeddings, pages * PAGE_SIZE + 1)
        self.statistics = Statistics(model.config, max_batch, pages)
        self._runner = Runner(model, max_batch=max_batch, num_pages=pages, max_length=self.max_length,
                              speculative=speculative, eos=self.eos,
                              replays=obstacle is None and graph is not False,
                              draft_filter=draft_filter)  # fmt: skip
        self._scheduler = Scheduler(self._runner, max_batch=max_batch, num_pages=pages, prefill_tokens=prefill_tokens,
                                    steps=steps_per_schedule, drafts=int(speculative), eos=self.eos,
                                    take=self._take, done=self.statistics.done)  # fmt: skip
        self._submitted = 0
        self._closed = False

    def submit(self, prompt: Tensor | Sequence[int], max_new_tokens: int, *, temperature: float = 0.0, top_k: int = 0,
               top_p: float = 1.0, seed: int | None = None, stop: str | int | Iterable[str | int] = (),
               ignore_eos: bool = False, on_token: OnToken | None = None) -> Request:  # fmt: skip
        """Queues a prompt. It waits for a slot and for pages, in the order of submission, and is never lost.

        Args:
            prompt: i64 [S] or ids. temperature, top_k, top_p, seed: as for `generate`.
            stop: token ids and strings that end it. A string is left out of the text.
            ignore_eos: the engine's stop ids do not end it.
            on_token: called as on_token(request, token) when the host learns a token.

        Raises: LongcatShapeError for a prompt, or numbers, that are not legal, or a request that can never fit.
        """
        self._require_open()
        ids = prompt if isinstance(prompt, Tensor) else torch.tensor(list(prompt), dtype=torch.int64)
        (ids,) = check_prompts(self.model.config, [ids], max_new_tokens, self.model.device)
        check_sampling(temperature, top_k, top_p, "argmax", seed)
        stops = _stops([stop] if isinstance(stop, str | int) else list(stop), ignore_eos, self.tokenizer)
        request = Request(
            self._submitted, ids.tolist(), int(max_new_tokens), float(temperature), int(top_k), float(top_p),
            seed_of(secrets.randbits(62) if seed is None else int(seed), 0), stops, on_token,
        )  # fmt: skip
        need, pool = self._scheduler.pages_of(request), self._scheduler.pool
        got = f"{len(ids)} tokens and {max_new_tokens} new ones, {need} pages of {PAGE_SIZE}"
        require(need <= pool.total, "submit", "max_new_tokens", got, f"at most the {pool.total} pages of max_tokens")
        if self.tokenizer is not None:
            request.stream = TextStream(self.tokenizer.decode, request.prompt)
        self._submitted += 1
        self.statistics.submitted(request)
        if max_new_tokens == 0:
            request.state, request.finish_reason = State.FINISHED, FinishReason.LENGTH
            self.statistics.done(request)
        else:
            self._scheduler.waiting.append(request)
        return request

    def abort(self, request: Request) -> None:
        """Ends a request; one that is done stays as it is. Its tokens so far stay."""
        if not request.done:
            self._scheduler.abort(request)

    @property
    def busy(self) -> bool:
        """Whether a request is not done."""
        return self._scheduler.busy

    def step(self) -> bool:
        """One iteration; returns `busy`."""
        self._require_open()
        with self.statistics.iteration(self._scheduler, self._runner):
            self._scheduler.step()
        return self.busy

    def run(self) -> None:
        """Until all requests are done."""
        while self.busy:
            self.step()

    async def stream(self, request: Request) -> AsyncIterator[int]:
        """The tokens of a request, as they are learned. Several may be awaited at once: each drives the engine.

        Raises: the error of a request that failed.
        """
        given = 0
        while True:
            while given < len(request.tokens):
                given += 1
                yield request.tokens[given - 1]
            if request.done:
                break
            self.step()
            await asyncio.sleep(0)
        if request.error is not None:
            raise request.error

    def close(self) -> None:
        """Aborts what is not done, and ends the engine's thread."""
        if not self._closed:
            for request in [*self._scheduler.waiting, *(one.request for one in self._scheduler.live.values())]:
                self.abort(request)
            self._closed = True
            self._runner.shut_down()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self.close()

    def _take(self, request: Request, made: Made) -> FinishReason | None:
        """Gives a request what was made for it; why it has ended, or None."""
        request.steps += made.is_step
        request.drafted += made.drafted
        request.accepted += made.accepted
        request.ffn_experts += made.ffn_experts
        self.statistics.made(made)
        for token in made.tokens:
            if token < 0:
                request.error = LongcatError(
                    f"Engine: the logits of request {request.number} at token {request.length} are not finite; "
                    "the weights or the precision policy overflow."
                )
                return FinishReason.ERROR
            reason = request.take(token, self.eos)
            self.statistics.token(request)
            try:
                if request.on_token is not None:
                    request.on_token(request, token)
            except Exception as error:
                request.error = LongcatError(f"Engine: on_token of request {request.number} raised {error!r}.")
                request.error.__cause__ = error
                return FinishReason.ERROR
            if reason is not None or request.done:
                return reason
        return None

    def _require_open(self) -> None:
        if self._closed:
            raise LongcatError("Engine: it is closed.")


def _stops(given: list[object], ignore_eos: bool, tokenizer: Decoder | None) -> Stops:
    for one in given:
        require(isinstance(one, str) or is_integer(one), "submit", "stop", described(one), "token ids and strings")
    strings = tuple(one for one in given if isinstance(one, str))
    if strings and tokenizer is None:
        fix = "Engine(tokenizer=...)"
        raise LongcatShapeError(message("submit", "stop", strings, "ids, since the engine has no tokenizer", fix=fix))
    require(all(strings), "submit", "stop", "an empty string", "strings with a character")
    return Stops(frozenset(int(one) for one in given if not isinstance(one, str)), strings, bool(ignore_eos))

"""What an engine has done: speed, waits, acceptance, use of slots, pages and zero experts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..model.config import LongcatFlashConfig
from .request import FinishReason, Request

if TYPE_CHECKING:
    from .runner import Runner
    from .scheduler import Scheduler


@dataclass(frozen=True)
class Summary:
    """tokens_per_second: over the time in which the engine worked. first_token_ms: from `submit`. between_tokens_ms: of
    one request; tokens of one iteration come together, so many of these are 0. accepted: of the drafts that were
    verified. occupancy: of max_batch, mean over iterations; pages: of the cache, likewise, and the most at once.
    zero_experts: share of a token's choices that were zero experts. host_ms: of an iteration without its wait for the
    device, p50 and p99. None: nothing to say yet.
    """

    requests: int
    finished: dict[str, int]
    prompt_tokens: int
    tokens: int
    seconds: float
    iterations: int
    tokens_per_second: float | None
    first_token_ms: tuple[float, float] | None  # p50, p99
    between_tokens_ms: tuple[float, float] | None  # p50, p99
    accepted: float | None
    occupancy: float | None
    pages: float | None
    most_pages: int
    zero_experts: float | None
    host_ms: tuple[float, float] | None


class Statistics:
    """Counts as an engine runs; `summary` is what they say."""

    def __init__(self, config: LongcatFlashConfig, max_batch: int, num_pages: int) -> None:
        self._choices, self._batch, self._pages = config.moe_topk * config.num_layers, max_batch, num_pages
        self._requests: list[Request] = []
        self._seconds, self._iterations = 0.0, 0
        self._slots = self._held = self._most = self._tokens = 0
        self.host_ms: list[float] = []  # of each iteration

    def submitted(self, request: Request) -> None:
        self._requests.append(request)

    def token(self, request: Request) -> None:
        self._tokens += 1

    @contextmanager
    def iteration(self, scheduler: Scheduler, runner: Runner) -> Iterator[None]:
        start, waited = time.perf_counter(), runner.waited
        yield
        seconds = time.perf_counter() - start
        self._seconds += seconds
        self.host_ms.append(1e3 * (seconds - (runner.waited - waited)))
        held = self._pages - scheduler.pool.free
        self._iterations += 1
        self._slots += len(scheduler.live)
        self._held += held
        self._most = max(self._most, held)

    def summary(self) -> Summary:
        requests, n = self._requests, self._iterations
        finished = {reason.value: sum(r.finish_reason is reason for r in requests) for reason in FinishReason}
        tokens = sum(len(r.tokens) for r in requests)
        drafted = sum(r.drafted for r in requests)
        between = [1e3 * (b - a) for r in requests for a, b in zip(r.token_times, r.token_times[1:], strict=False)]
        chosen = sum(r.ffn_experts for r in requests)
        return Summary(
            len(requests), {k: v for k, v in finished.items() if v}, sum(len(r.prompt) for r in requests), tokens,
            self._seconds, n, self._tokens / self._seconds if self._seconds else None,
            _percentiles([1e3 * (r.token_times[0] - r.submitted) for r in requests if r.token_times]),
            _percentiles(between), sum(r.accepted for r in requests) / drafted if drafted else None,
            self._slots / n / self._batch if n else None, self._held / n / self._pages if n else None, self._most,
            1 - chosen / (tokens * self._choices) if tokens and self._choices else None, _percentiles(self.host_ms),
        )  # fmt: skip


def _percentiles(values: list[float]) -> tuple[float, float] | None:
    if not values:
        return None
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else [values[0]] * 99
    return cuts[49], cuts[98]

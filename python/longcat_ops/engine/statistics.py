"""What an engine has done: speed, waits, acceptance, use of slots, pages and zero experts."""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..model.config import LongcatFlashConfig
from .request import Request

if TYPE_CHECKING:
    from .runner import Runner
    from .scheduler import Made, Scheduler

KEPT = 100_000  # the newest times that percentiles are taken of


@dataclass(frozen=True)
class Summary:
    """requests: submitted; finished: by reason. tokens_per_second: over the time in which the engine worked.
    first_token_ms: from `submit`. between_tokens_ms: of one request; tokens of one iteration come together, so many of
    these are 0. accepted: of the drafts that were verified. rows_per_token: rows of the target's decode passes for each
    token of theirs. occupancy: of max_batch, mean over iterations; pages: of the cache, likewise, and the most at once.
    zero_experts: share of a token's choices that were zero experts. host_ms: of an iteration without its wait for the
    device. Pairs are p50 and p99. None: nothing to say yet.
    """

    requests: int
    finished: dict[str, int]
    prompt_tokens: int
    tokens: int
    seconds: float
    iterations: int
    tokens_per_second: float | None
    first_token_ms: tuple[float, float] | None
    between_tokens_ms: tuple[float, float] | None
    accepted: float | None
    rows_per_token: float | None
    occupancy: float | None
    pages: float | None
    most_pages: int
    zero_experts: float | None
    host_ms: tuple[float, float] | None


class Statistics:
    """Counts as an engine runs, and keeps no request; `summary` is what they say."""

    def __init__(self, config: LongcatFlashConfig, max_batch: int, num_pages: int) -> None:
        self._choices, self._batch, self._pages = config.moe_topk * config.num_layers, max_batch, num_pages
        self.finished: Counter[str] = Counter()
        self.requests = self.prompt_tokens = self.tokens = self.iterations = self.most_pages = 0
        self.drafted = self.accepted = self._rows = self._stepped = self._ffn_experts = self._slots = self._held = 0
        self.seconds = 0.0
        self.host_ms, self.first_ms, self.between_ms = (deque[float](maxlen=KEPT) for _ in range(3))

    def submitted(self, request: Request) -> None:
        self.requests += 1
        self.prompt_tokens += len(request.prompt)

    def made(self, made: Made) -> None:
        self.drafted += made.drafted
        self.accepted += made.accepted
        if made.is_step:
            self._rows += 1 + made.drafted
            self._stepped += len(made.tokens)
        self._ffn_experts += made.ffn_experts

    def token(self, request: Request) -> None:
        """A request has one more."""
        self.tokens += 1
        *_, last = times = request.token_times[-2:]
        if len(times) > 1:
            self.between_ms.append(1e3 * (last - times[0]))
        else:
            self.first_ms.append(1e3 * (last - request.submitted))

    def done(self, request: Request) -> None:
        assert request.finish_reason is not None
        self.finished[request.finish_reason.value] += 1

    @contextmanager
    def iteration(self, scheduler: Scheduler, runner: Runner) -> Iterator[None]:
        start, waited = time.perf_counter(), runner.waited
        yield
        seconds = time.perf_counter() - start
        self.seconds += seconds
        self.host_ms.append(1e3 * (seconds - (runner.waited - waited)))
        held = self._pages - scheduler.pool.free
        self.iterations += 1
        self._slots += len(scheduler.live)
        self._held += held
        self.most_pages = max(self.most_pages, held)

    def summary(self) -> Summary:
        n, choices = self.iterations, self.tokens * self._choices
        return Summary(
            self.requests, dict(self.finished), self.prompt_tokens, self.tokens, self.seconds, n,
            self.tokens / self.seconds if self.seconds else None, _percentiles(self.first_ms),
            _percentiles(self.between_ms), self.accepted / self.drafted if self.drafted else None,
            self._rows / self._stepped if self._stepped else None,
            self._slots / n / self._batch if n else None, self._held / n / self._pages if n else None, self.most_pages,
            1 - self._ffn_experts / choices if choices else None, _percentiles(self.host_ms),
        )  # fmt: skip


def _percentiles(values: Sequence[float]) -> tuple[float, float] | None:
    if not values:
        return None
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else [values[0]] * 99
    return cuts[49], cuts[98]

"""Ranks as threads of one process, and an Exchange between them whose deadlines do not depend on the load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from longcat_ops.comm.providers.exchange import left, missed

Result = TypeVar("Result")
_POOL = ThreadPoolExecutor(max_workers=100, thread_name_prefix="rank")
_PATIENCE_S = 20.0  # for a rank that is alive: one that never comes is a defect of a test


class Hub:
    """Where the threads of one set-up meet. timeout_s: the deadline that its exchanges state."""

    def __init__(self, ranks: int, timeout_s: float = 20) -> None:
        self.ranks, self.timeout_s = ranks, timeout_s
        self.changed = threading.Condition()
        self.posted: dict[int, dict[int, tuple[str, bytes]]] = {}
        self.gone: dict[int, str] = {}
        self.silent: set[int] = set()  # ranks that can tell nobody anything any more
        self.inner: dict[str, Hub] = {}

    def exchanges(self) -> list[ThreadExchange]:
        return [ThreadExchange(self, rank) for rank in range(self.ranks)]

    def silence(self, rank: int) -> None:
        """No rank waits for this one any more: the deadline passes at once where no other is missing."""
        with self.changed:
            self.silent.add(rank)
            self.changed.notify_all()

    def scope(self, name: str) -> Hub:
        if name not in self.inner:
            inner = self.inner[name] = Hub(self.ranks, self.timeout_s / 2)
            inner.changed, inner.silent = self.changed, self.silent
        return self.inner[name]


class ThreadExchange:
    """The Exchange of one thread. A rank waits for all that are alive, however late they are."""

    def __init__(self, hub: Hub, rank: int) -> None:
        self.hub, self.rank, self.ranks, self.timeout_s = hub, rank, hub.ranks, hub.timeout_s
        self.steps: list[str] = []

    def all_gather_bytes(self, data: bytes, what: str) -> list[bytes]:
        hub, step = self.hub, len(self.steps)
        self.steps.append(what)
        deadline = time.monotonic() + _PATIENCE_S
        with hub.changed:
            posted = hub.posted.setdefault(step, {})
            posted[self.rank] = (what, data)
            hub.changed.notify_all()
            while missing := [rank for rank in range(self.ranks) if rank not in posted]:
                for who, reason in hub.gone.items():
                    raise left(self.rank, step, what, who, reason)
                if hub.silent.issuperset(missing):
                    raise missed(self.rank, step, what, missing, self.timeout_s)
                assert time.monotonic() < deadline, f"ranks {missing} are alive and do not come to `{what}`"
                hub.changed.wait(max(0.0, deadline - time.monotonic()))
        assert {name for name, _ in posted.values()} == {what}
        return [posted[rank][1] for rank in range(self.ranks)]

    def barrier(self, what: str) -> None:
        self.all_gather_bytes(b"", what)

    def scope(self, name: str) -> ThreadExchange:
        with self.hub.changed:
            return ThreadExchange(self.hub.scope(name), self.rank)

    def close(self) -> None:
        pass

    def leave(self, reason: str) -> None:
        with self.hub.changed:
            if self.rank not in self.hub.silent:
                self.hub.gone.setdefault(self.rank, reason)
                self.hub.changed.notify_all()


class Interrupted(ThreadExchange):
    """Ctrl-C comes while this rank would meet the others in step `at`."""

    def __init__(self, hub: Hub, rank: int, at: str) -> None:
        super().__init__(hub, rank)
        self.at = at

    def all_gather_bytes(self, data: bytes, what: str) -> list[bytes]:
        if what == self.at:
            raise KeyboardInterrupt
        return super().all_gather_bytes(data, what)


def on_each(ranks: int, call: Callable[[int], Result], seconds: float = 30) -> list[Result | BaseException]:
    """`call(rank)` on a thread of each rank; what it returned or raised, by rank. Fails if one does not end in time."""
    futures: list[Future[Result]] = [_POOL.submit(call, rank) for rank in range(ranks)]
    return [future.exception(timeout=seconds) or future.result() for future in futures]

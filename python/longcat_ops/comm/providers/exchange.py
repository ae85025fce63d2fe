"""How the ranks of a set-up speak to each other on the host: gathers with a deadline, and votes on top of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ...errors import LongcatShapeError, LongcatTimeoutError, message
from .faults import RETRIES, describe, is_transient

if TYPE_CHECKING:
    from torch.distributed import Store

OP = "symmetric memory"
RETRY_WAIT_S = 0.2


class Exchange(Protocol):
    """What providers use for everything collective. All ranks make the same calls in the same order.

    rank: 0 .. ranks-1; timeout_s: the deadline of each call in seconds, 0 for none.
    """

    rank: int
    ranks: int
    timeout_s: float

    def all_gather_bytes(self, data: bytes, what: str) -> list[bytes]:
        """`data` of every rank, by rank. what: the name of the step, the same on all ranks.

        Raises LongcatTimeoutError, naming the step and the ranks that are missing, when the deadline passes or when
        a rank has left.
        """
        ...

    def barrier(self, what: str) -> None:
        """Returns when every rank has called it. Raises like `all_gather_bytes`."""
        ...

    def leave(self, reason: str) -> None:
        """Tells the other ranks that this one makes no further call, so that they need not wait for the deadline."""
        ...

    def scope(self, name: str) -> Exchange:
        """An exchange of its own for a part of the work that may end early on some ranks, with half the deadline.

        A rank that leaves the scope stays in the exchange around it, and comes to that one's next step in time.
        """
        ...

    def close(self) -> None:
        """Every rank calls it after its last step; it waits for nobody."""
        ...


def missed(rank: int, step: int, what: str, missing: list[int], timeout_s: float) -> LongcatTimeoutError:
    """The error of a rank whose peers did not come to a step (0, 1, ..) before its deadline."""
    return LongcatTimeoutError(
        rank, OP, f"step `{what}`", step + 1, dict.fromkeys(missing, f"nothing in {timeout_s:g} s")
    )


def left(rank: int, step: int, what: str, who: int, reason: str) -> LongcatTimeoutError:
    """The error of a rank that comes to a step after rank `who` has left."""
    return LongcatTimeoutError(rank, OP, f"step `{what}`", step + 1, {who: f"has left: {reason}"})


class StoreExchange:
    """An Exchange over a torch.distributed.Store, as a process group has one.

    name: tells set-ups apart, for instance the group's name. Ranks may use a name again: each keeps a count of its
    uses in the store, and that count is part of the keys. `close` removes all other keys, once all ranks have called
    it.
    """

    def __init__(self, store: Store, rank: int, ranks: int, name: str, timeout_s: float = 30.0) -> None:
        if not 0 <= rank < ranks:
            raise LongcatShapeError(message(OP, "rank", rank, f"0 .. {ranks - 1}"))
        if timeout_s < 0:
            raise LongcatShapeError(message(OP, "timeout_s", timeout_s, "0 (no deadline) or more"))
        self.rank, self.ranks, self.timeout_s = rank, ranks, timeout_s
        self._store, self._step, self._closed = store, 0, False
        self._scopes: list[StoreExchange] = []
        use = store.add(f"longcat_ops/{name}/uses/{rank}", 1)
        self._prefix = f"longcat_ops/{name}/{use}"

    def all_gather_bytes(self, data: bytes, what: str) -> list[bytes]:
        step, self._step = self._step, self._step + 1
        self._store.set(self._key(step, self.rank), what.encode() + b"\0" + data)
        got = self._collect(step, what)
        if step:
            # Every rank is in this step, so every rank has read what this one wrote in the step before.
            self._store.delete_key(self._key(step - 1, self.rank))
        names = [value.partition(b"\0")[0].decode() for value in got]
        for rank, name in enumerate(names):
            if name != what:
                context = f"rank {self.rank} is in `{what}`: the ranks have made different calls"
                raise LongcatShapeError(message(OP, "step", f"`{name}` on rank {rank}", f"`{what}`", context))
        return [value.partition(b"\0")[2] for value in got]

    def barrier(self, what: str) -> None:
        self.all_gather_bytes(b"", what)

    def leave(self, reason: str) -> None:
        self._store.set(f"{self._prefix}/left", f"{self.rank}\0{reason}".encode())

    def scope(self, name: str) -> StoreExchange:
        inner = copy(self)
        inner._prefix = f"{self._prefix}/{name}-{len(self._scopes)}"
        inner._step, inner._scopes, inner.timeout_s = 0, [], self.timeout_s / 2
        self._scopes.append(inner)
        return inner

    def close(self) -> None:
        """The last rank to call it removes the keys; that of a scope is not needed."""
        if self._closed:
            return
        self._closed = True
        for inner in self._scopes:
            inner.close()
        if self._store.add(f"{self._prefix}/closed", 1) == self.ranks:
            # A step ends when all ranks are in it, so another rank is at most one step away from this one.
            steps = range(max(0, self._step - 2), self._step + 1)
            names = [f"{step}/{rank}" for step in steps for rank in range(self.ranks)]
            for name in (*names, "left", "closed"):
                self._store.delete_key(f"{self._prefix}/{name}")

    def _key(self, step: int, rank: int) -> str:
        return f"{self._prefix}/{step}/{rank}"

    def _collect(self, step: int, what: str) -> list[bytes]:
        got: dict[int, bytes] = {}
        start, pause = time.monotonic(), 0.0005
        while True:
            for rank in range(self.ranks):
                if rank not in got and self._store.check([self._key(step, rank)]):
                    got[rank] = bytes(self._store.get(self._key(step, rank)))
            missing = [rank for rank in range(self.ranks) if rank not in got]
            if not missing:
                return [got[rank] for rank in range(self.ranks)]
            if self._store.check([f"{self._prefix}/left"]):
                who, _, reason = bytes(self._store.get(f"{self._prefix}/left")).decode().partition("\0")
                raise left(self.rank, step, what, int(who), reason)
            if self.timeout_s and time.monotonic() - start > self.timeout_s:
                error = missed(self.rank, step, what, missing, self.timeout_s)
                self.leave(str(error))
                raise error
            time.sleep(pause)
            pause = min(2 * pause, 0.02)


@dataclass(frozen=True)
class Votes:
    """What `together` found, the same on every rank. payloads: of each rank, b"" where it has a problem."""

    payloads: list[bytes]
    problems: dict[int, str]

    @property
    def text(self) -> str:
        """The problem of each rank that had one."""
        return of_ranks(self.problems, len(self.payloads))


def of_ranks(reasons: dict[int, str], ranks: int) -> str:
    """One text for the reasons of some of the ranks, "" for none; a reason that all ranks share stands there once."""
    if len(reasons) == ranks and len(set(reasons.values())) == 1:
        return reasons[0]
    return "; ".join(f"rank {rank}: {reason}" for rank, reason in reasons.items())


_GOOD, _BAD, _AGAIN = b"+", b"-", b"~"


def together(
    exchange: Exchange,
    what: str,
    action: Callable[[], bytes | None],
    *,
    retries: int = RETRIES,
    wait_s: float = RETRY_WAIT_S,
) -> Votes:
    """Runs `action` on every rank and tells every rank how it went on each: no rank goes on alone.

    Collective. action: may raise; its bytes go to all ranks. Where the driver says SYSTEM_NOT_READY, all ranks try
    again together, up to `retries` times, `wait_s` seconds apart, unless a rank has failed for good. A rank that was
    ready keeps its result; one that was not runs `action` again, so that must know what it has done already.
    Raises LongcatTimeoutError when a rank does not arrive.
    """
    own = b""
    for attempt in range(1 + retries):
        if own[:1] != _GOOD:
            own = _attempt(exchange, what, action)
        votes = exchange.all_gather_bytes(own, f"{what}, retry {attempt}" if attempt else what)
        marks = {vote[:1] for vote in votes}
        if _BAD in marks or _AGAIN not in marks:
            break
        if attempt < retries:
            time.sleep(wait_s)
    problems = {rank: vote[1:].decode() for rank, vote in enumerate(votes) if vote[:1] != _GOOD}
    return Votes([b"" if rank in problems else vote[1:] for rank, vote in enumerate(votes)], problems)


def _attempt(exchange: Exchange, what: str, action: Callable[[], bytes | None]) -> bytes:
    try:
        return _GOOD + (action() or b"")
    except Exception as error:
        return (_AGAIN if is_transient(error) else _BAD) + describe(error).encode()
    except BaseException as error:
        exchange.leave(f"{type(error).__name__} in step `{what}`")
        raise

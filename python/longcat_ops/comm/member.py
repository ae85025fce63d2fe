"""One rank's part in what all ranks of a group construct together: how they meet, and how it ends."""

from __future__ import annotations

import contextlib
import os
import sys
from abc import ABC, abstractmethod
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from ..errors import LongcatCommError, LongcatError, LongcatShapeError, LongcatUnsupportedError, message
from . import choose
from .processes import Process, this_process
from .rungs.base import Config, Session, Way
from .store import Client, client_of
from .watch import Watch

if TYPE_CHECKING:
    from typing_extensions import Self


def open_session(
    ladder: choose.Ladder, group: Any, config: Config, problem: LongcatError | None
) -> tuple[Session, Any, str, dict[str, str]]:
    """The session, the way that all ranks take, its name, and why none of the others. Collective.

    problem: what this rank's own arguments lack; all ranks then raise, and `config` has only to be legal.
    """
    group, rank, ranks = members(ladder.what, group)
    client = client_of(dist.distributed_c10d._get_default_store())
    prefix = _own_prefix(group, client, rank)
    store = dist.PrefixStore(prefix, client.store)
    watch = Watch(client, store, rank, ranks, float(config.timeout_s), config.num_channels, ladder.what)
    try:
        device = choose.group_device(group)
        hello = {
            "config": asdict(config),
            "problem": str(problem or ""),
            "process": asdict(this_process()),
            "objections": choose.objections(ladder, device, ranks),
        }
        hellos = watch.gather("hello", hello)
        if problem is not None:
            raise problem
        _require_same(ladder.what, hellos)
        watch.processes = [Process(**hello["process"]) for hello in hellos]
        own = dist.PrefixStore(prefix, group.get_group_store())
        session = Session(group, own, rank, ranks, device, config, watch)
        return session, *choose.choose(ladder, session, [hello["objections"] for hello in hellos])
    except BaseException as error:
        if watch.failure is None and not isinstance(error, LongcatError):
            watch.poison(LongcatCommError(f"{ladder.what}: rank {rank} failed: {type(error).__name__}: {error}"))
        watch.close()
        raise


def require_own(op: str, process: int) -> None:
    """Raises in a process that was forked from `process`: connections and ranks are that one's."""
    if os.getpid() != process:
        raise LongcatCommError(f"{op}: this communicator belongs to process {process}, which forked this one.")


class Closing(ABC):
    """A context manager that closes; before that it aborts, if its block ends in an error of the caller's own, which
    other ranks do not know of."""

    @abstractmethod
    def abort(self, reason: str = "") -> None:
        """Ends calls that run, on every rank."""

    @abstractmethod
    def close(self) -> None:
        """Gives connections and memory back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, LongcatError):
            self.abort(f"{type(error).__name__} in its block")
        self.close()


class Member(Closing):
    """What is open until it is closed, and may be aborted."""

    _session: Session
    _rung: Way
    _open = False
    rank: int
    _pid: int

    def check(self) -> None:
        """Raises if this is closed or poisoned, by this rank or another, or if launched work is late."""
        require_own("check", self._pid)
        self._session.watch.check()
        self._rung.poll()

    def abort(self, reason: str = "") -> None:
        """Ends calls that run, on every rank, and poisons this for all. Any thread may call it. Never waits for another
        rank. Does nothing in a process that this one forked."""
        if self._session.watch.closed or os.getpid() != self._pid:  # a forked process does not speak for its parent
            return
        text = f"abort() was called on rank {self.rank}" + (f": {reason}" if reason else ".")
        self._session.watch.poison(LongcatCommError(text))
        self._rung.abort()

    def close(self) -> None:
        """Gives connections and memory back. A second call does nothing. No collective: ranks may close at other times,
        but a rank that calls an operation after another has closed gets an error. The last of all ranks to close clears
        the store; one that dies leaves a few keys there."""
        if not self._open or os.getpid() != self._pid:  # a forked process shares the connections of its parent
            return
        self._open = False
        self._session.watch.close()
        self._rung.close()

    def __del__(self) -> None:
        if not sys.is_finalizing():
            with contextlib.suppress(Exception):
                self.close()


def members(what: str, group: Any) -> tuple[Any, int, int]:
    """The group, this process' rank in it, and the number of its ranks."""
    if not dist.is_available() or not dist.is_initialized():
        fix = "torch.distributed.init_process_group"
        raise LongcatUnsupportedError(message(what, "group", "absent", "a process group", fix=fix))
    if group is None:
        group = dist.group.WORLD
    if not isinstance(group, dist.ProcessGroup):
        got = "a group that this rank is not in" if group == dist.GroupMember.NON_GROUP_MEMBER else repr(group)
        raise LongcatShapeError(message(what, "group", got, "a ProcessGroup that has this rank"))
    return group, group.rank(), group.size()


def _own_prefix(group: Any, client: Client, rank: int) -> str:
    """A prefix of keys for one construction: the group and the number of the construction. Each rank counts its
    constructions over the group in the store, so a rank that failed one still meets the next."""
    place = f"longcat_ops/{group.group_name}"
    return f"{place}/{client.store.add(f'{place}/{rank}', 1)}"


def _require_same(what: str, hellos: list[dict[str, Any]]) -> None:
    """Raises on every rank if one refused its arguments, or has others."""
    for r, hello in enumerate(hellos):
        if hello["problem"]:
            raise LongcatShapeError(f"{what}: rank {r} refused its arguments. {hello['problem']}")
    names = list(dict.fromkeys(name for hello in hellos for name in hello["config"]))
    for name in names:
        values = [hello["config"].get(name) for hello in hellos]
        if any(value != values[0] for value in values):
            shown = ", ".join(f"{value!r} on rank {r}" for r, value in enumerate(values))
            raise LongcatShapeError(message(what, name, shown, "the same on every rank"))

"""Collectives over a torch ProcessGroup that name who is missing."""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from dataclasses import asdict
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from .. import _environment, _library
from .._environment import RUNGS
from ..errors import LongcatCommError, LongcatError, LongcatShapeError, LongcatUnsupportedError, message
from . import checks, choose
from .channel import Channel, captured, is_capturing
from .processes import Process, this_process
from .rungs.base import Config, Session
from .sizes import CHANNELS, MAX_BYTES
from .store import Client, client_of
from .watch import Watch


class Communicator(Channel):
    __doc__ = f"""{Channel.__doc__}
    The constructor is a collective of all ranks of `group`, with the same arguments on each. It takes the first rung of
    multimem, p2p, nccl and gloo that every rank can use; `backend` says which, and `why_not` why none of the others.

    Args:
        group: a ProcessGroup of torch.distributed that this rank is in; None: the default group. The communicator keeps
            posts in its store, and connections of its own.
        max_bytes: the largest tensor of a call, of all ranks together.
        backend: "auto" (LONGCAT_OPS_COMM if set), or a rung; if a rank cannot use that, all raise.
        num_blocks: thread blocks of a device rung.
        num_channels: how many calls may run at once, see `channel`.
        deterministic: take sums in rank order, whatever that costs.
        timeout_s: how long a call waits for other ranks. None: LONGCAT_OPS_TIMEOUT_S, else 30. 0: for ever.
        provider: who allocates symmetric memory for a device rung: "torch", "vmm" (the driver), "auto" for the first of
            them that can.

    Raises:
        LongcatShapeError: an argument is not legal, or not the same on every rank.
        LongcatUnsupportedError: no process group, or no rung that every rank can use.
        LongcatTimeoutError: a rank did not come.
    """

    def __init__(
        self, group: Any = None, max_bytes: int = MAX_BYTES, *, backend: str = "auto", num_blocks: int = 4,
        num_channels: int = CHANNELS, deterministic: bool = False, timeout_s: float | None = None,
        provider: str = "auto",
    ) -> None:  # fmt: skip
        self._open = False
        if is_capturing():
            raise captured("Communicator", "it talks to other ranks")
        group, rank, ranks = _members(group)
        problem: LongcatError | None = None
        config = Config(max_bytes, backend, num_blocks, num_channels, deterministic, 30.0, provider)
        try:
            _library.load()
            if backend == "auto":
                backend = _environment.comm_backend()
            limit = _environment.timeout_s() if timeout_s is None else timeout_s
            config = Config(max_bytes, backend, num_blocks, num_channels, deterministic, limit, provider)
            checks.constructor(config, RUNGS)
        except LongcatError as error:
            problem, config = error, Config(1, "auto", 1, 1, False, 30.0, "auto")
        client = client_of(dist.distributed_c10d._get_default_store())
        prefix = _own_prefix(group, client, rank)
        store = dist.PrefixStore(prefix, client.store)
        watch = Watch(client, store, rank, ranks, float(config.timeout_s), config.num_channels)
        try:
            device = choose.group_device(group)
            hellos = watch.gather("hello", _hello(config, problem, device))
            if problem is not None:
                raise problem
            _require_same(hellos, rank)
            watch.processes = [Process(**hello["process"]) for hello in hellos]
            own = dist.PrefixStore(prefix, group.get_group_store())
            session = Session(group, own, rank, ranks, device, config, watch)
            rung, self.backend, self.why_not = choose.choose(session, [hello["objections"] for hello in hellos])
        except BaseException as error:
            if watch.failure is None and not isinstance(error, LongcatError):
                watch.poison(LongcatCommError(f"Communicator: rank {rank} failed: {type(error).__name__}: {error}"))
            watch.close()
            raise
        super().__init__(session, rung)
        self.group = group
        self._others: weakref.WeakValueDictionary[int, Channel] = weakref.WeakValueDictionary()
        self._open = True

    def channel(self, index: int) -> Channel:
        """The operations of channel `index`, 0 .. num_channels - 1, for another stream or thread: they may run at the
        same time as those of other channels. Channel 0 is the communicator itself."""
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < self.caps.num_channels:
            raise LongcatShapeError(message("channel", "index", f"{index!r}", f"0 .. {self.caps.num_channels - 1}"))
        self._session.watch.require_open("channel")
        if index == 0:
            return self
        found = self._others.get(index)
        if found is None:
            found = self._others[index] = Channel(self._session, self._rung.channel(index))
            found._owner = self  # the channel keeps its communicator open
        return found

    def check(self) -> None:
        """Raises if the communicator is closed or poisoned, by this rank or another, or if launched work is late."""
        self._session.watch.check()
        self._rung.poll()

    def abort(self, reason: str = "") -> None:
        """Ends calls that run, on every rank, and poisons the communicator. Any thread may call it. Never waits for
        another rank."""
        if self._session.watch.closed:
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

    def __enter__(self) -> Communicator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, LongcatError):
            self.abort(f"{type(error).__name__} in its block")
        self.close()

    def __del__(self) -> None:
        if not sys.is_finalizing():
            with contextlib.suppress(Exception):
                self.close()


def _members(group: Any) -> tuple[Any, int, int]:
    """The group, this process' rank in it, and the number of its ranks."""
    if not dist.is_available() or not dist.is_initialized():
        fix = "torch.distributed.init_process_group"
        raise LongcatUnsupportedError(message("Communicator", "group", "absent", "a process group", fix=fix))
    if group is None:
        group = dist.group.WORLD
    if not isinstance(group, dist.ProcessGroup):
        got = "a group that this rank is not in" if group == dist.GroupMember.NON_GROUP_MEMBER else repr(group)
        raise LongcatShapeError(message("Communicator", "group", got, "a ProcessGroup that has this rank"))
    return group, group.rank(), group.size()


def _own_prefix(group: Any, client: Client, rank: int) -> str:
    """A prefix of keys for one communicator: the group and the number of the construction. Each rank counts its
    constructions over the group in the store, so a rank that failed one still meets the next."""
    place = f"longcat_ops/{group.group_name}"
    return f"{place}/{client.store.add(f'{place}/{rank}', 1)}"


def _hello(config: Config, problem: LongcatError | None, device: torch.device) -> dict[str, Any]:
    return {
        "config": asdict(config),
        "problem": str(problem or ""),
        "process": asdict(this_process()),
        "objections": choose.objections(device),
    }


def _require_same(hellos: list[dict[str, Any]], rank: int) -> None:
    """Raises on every rank if one refused its arguments, or has others."""
    for r, hello in enumerate(hellos):
        if hello["problem"]:
            raise LongcatShapeError(f"Communicator: rank {r} refused its arguments. {hello['problem']}")
    for name in hellos[0]["config"]:
        values = [hello["config"][name] for hello in hellos]
        if any(value != values[0] for value in values):
            shown = ", ".join(f"{value!r} on rank {r}" for r, value in enumerate(values))
            raise LongcatShapeError(message("Communicator", name, shown, "the same on every rank"))

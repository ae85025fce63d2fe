"""Collectives over a torch ProcessGroup that name who is missing."""

from __future__ import annotations

import weakref
from typing import Any

from .. import _environment, _library
from .._environment import RUNGS
from ..errors import LongcatError, LongcatShapeError, message
from . import checks, choose
from .channel import Channel
from .member import Member, members, open_session
from .rungs.base import Config
from .runner import captured, is_capturing
from .sizes import CHANNELS, MAX_BYTES


class Communicator(Member, Channel):
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
        if is_capturing():
            raise captured("Communicator", "it talks to other ranks")
        problem: LongcatError | None = None
        config = Config(max_bytes, backend, num_blocks, num_channels, deterministic, 30.0, provider)
        members("Communicator", group)
        try:
            _library.load()
            if backend == "auto":
                backend = _environment.comm_backend()
            limit = _environment.timeout_s() if timeout_s is None else timeout_s
            config = Config(max_bytes, backend, num_blocks, num_channels, deterministic, limit, provider)
            checks.constructor(config, RUNGS)
        except LongcatError as error:
            problem, config = error, Config(1, "auto", 1, 1, False, 30.0, "auto")
        session, rung, self.backend, self.why_not = open_session(choose.COLLECTIVES, group, config, problem)
        super().__init__(session, rung)
        self.group = session.group
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

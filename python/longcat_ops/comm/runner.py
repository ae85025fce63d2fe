"""One call at a time of something that all ranks call in the same order."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from ..errors import LongcatCommError, LongcatError, LongcatUnsupportedError, message
from . import ops
from .member import require_own
from .rungs.base import Session, Way

# A call's checks give the text that describes it to other ranks, and the function that runs it.
Prepared = tuple[str, Callable[[], None]]


def is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def captured(op: str, why: str) -> LongcatUnsupportedError:
    """The error of a call that no CUDA graph can hold."""
    fix = "call it outside of the capture"
    return LongcatUnsupportedError(message(op, "call", "in the capture of a CUDA graph", "outside of one", why, fix))


class Runner:
    """Runs the calls of one channel of `way` by the arguments of their schemas.

    calls: name -> its checks, called with `given` and the arguments of the schema.
    """

    def __init__(self, session: Session, way: Way, calls: dict[str, Callable[..., Prepared]], given: Any) -> None:
        self.rank, self.ranks = session.rank, session.ranks
        self._session, self._rung, self._calls, self._given = session, way, calls, given
        self._busy = threading.Lock()
        self._pid = os.getpid()
        with torch.inference_mode(False):  # else it could be written in that mode alone
            self._token = torch.zeros(1, dtype=torch.int64, device=session.device)
        self._handle = ops.add(self)

    def run(self, op: str, *arguments: Any) -> None:
        """One operation, by the arguments of its schema."""
        watch = self._rung.watch
        watch.watch.require_open(op)
        require_own(op, self._pid)
        if not self._busy.acquire(blocking=False):
            fix = "use channel(i)" if watch.watch.what == "Communicator" else f"one {watch.watch.what} a thread"
            raise LongcatCommError(f"{op}: channel {watch.index} runs {watch.op} in another thread; {fix}.")
        try:
            if self._rung.no_graph and is_capturing():
                raise captured(op, self._rung.no_graph)
            self._rung.poll()
            watch.begin(op.removesuffix("_quant"))
            try:
                text, act = self._calls[op](self._given, self._rung, *arguments)
            except Exception as error:
                watch.refuse(error)
                self._rung.refused(getattr(error, "rank_local", False))
                raise
            watch.enter(text, "exchange")
            try:
                act()
            except BaseException as error:
                if watch.watch.failure is None:
                    text = f"{op}: rank {self.rank} failed in call {watch.post.call}: {type(error).__name__}: {error}"
                    watch.watch.poison(LongcatCommError(text))
                self._rung.abort()
                raise
        finally:
            self._busy.release()

    def _refuse(self, op: str, error: LongcatError) -> NoReturn:
        """Refuses a call before it reaches `way`, as `run` does."""
        watch = self._rung.watch
        watch.watch.require_open(op)
        require_own(op, self._pid)
        watch.begin(op)
        watch.refuse(error)
        self._rung.refused(getattr(error, "rank_local", False))
        raise error

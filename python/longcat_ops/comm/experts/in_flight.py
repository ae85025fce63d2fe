"""Which buffers hold a dispatch, and how far each has come. All ranks make the same calls, so all agree."""

from __future__ import annotations

from typing import Any

from torch.compiler import is_compiling

from ...errors import LongcatCommError, LongcatError, LongcatShapeError, message
from .base import Dispatch

FREE, SENT, ARRIVED, RETURNING = "free", "sent", "received", "returning"


class InFlight:
    """The dispatches that wait for their combine, of as many buffers."""

    def __init__(self, buffers: int) -> None:
        self._states = [FREE] * buffers
        self._handles: list[Dispatch | None] = [None] * buffers  # None of one that a compiled graph made

    def free(self) -> int | None:
        """The first free buffer. A layer after another takes the same one, so it needs one compiled graph."""
        for buffer, state in enumerate(self._states):
            if state == FREE:
                return buffer
        return None

    def full(self, op: str) -> LongcatError:
        text = f"all {len(self._states)} buffers hold a dispatch whose combine has not come"
        return LongcatCommError(f"{op}: {text}.\n  fix: combine one, or construct with more buffers")

    def sent(self, handle: Dispatch) -> None:
        self._states[handle.buffer] = SENT
        self._handles[handle.buffer] = None if is_compiling() else handle

    def set(self, handle: Dispatch, state: str) -> None:
        self._states[handle.buffer] = state
        if state == FREE:
            self._handles[handle.buffer] = None

    def problem(self, op: str, handle: Any, state: str) -> LongcatError | None:
        """Why `handle` is not that of a dispatch in this state; None if it is."""
        if not isinstance(handle, Dispatch):
            got = f"of type {type(handle).__name__}"
            return LongcatShapeError(message(op, "handle", got, "a Dispatch, from dispatch"))
        buffer = handle.buffer
        found = self._states[buffer] if buffer < len(self._states) else "not there"
        if found != state:
            return LongcatCommError(f"{op}: buffer {buffer} of this handle is {found}, expected {state}.")
        if is_compiling() or (known := self._handles[buffer]) is None or known is handle:
            return None
        text = f"the handle is of another dispatch than the one in buffer {buffer}, expected that one's"
        return LongcatCommError(f"{op}: {text}: each serves one combine, of the ExpertParallel that gave it.")

"""A function that runs in a thread of its own, so that a wait for it can have a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol


class Work(Protocol):
    """Something that ends later: a `Background`, or a collective of torch.distributed."""

    def is_completed(self) -> bool: ...

    def wait(self, timeout: timedelta) -> Any:
        """Returns once it has ended. Raises what it raised, or RuntimeError if it has not ended in time."""


class Background:
    """Calls `function` in a daemon thread, which does not keep the process alive."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._done = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, args=(function,), daemon=True, name="longcat_ops.comm").start()

    def _run(self, function: Callable[[], Any]) -> None:
        try:
            self._value = function()
        except BaseException as error:
            self._error = error
        self._done.set()

    def is_completed(self) -> bool:
        return self._done.is_set()

    def wait(self, timeout: timedelta) -> Any:
        """What the function returned. Raises what it raised, or RuntimeError if it has not ended in time."""
        if not self._done.wait(timeout.total_seconds()):
            raise RuntimeError("not ended yet")
        if self._error is not None:
            raise self._error
        return self._value

"""The store of torch.distributed, asked with a deadline.

A store's client serves one thread at a time, and a question may wait for ever: for a key that nobody sets, or for a
server that has stopped. So communicators share a connection of their own, one per process, on which nothing waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from .background import Background

ANSWER_S = 2.0


class Client:
    """A connection of its own to the server of `store`, where that kind of store can be cloned."""

    def __init__(self, store: Any) -> None:
        self.store = store
        with suppress(Exception):
            self.store = store.clone()
        self._lock = threading.Lock()
        self._asking: Background | None = None

    def ask(self, question: Callable[[], Any]) -> Any:
        """What `question` returns; None if it fails or takes longer than ANSWER_S. Never more than one at once: the
        store would queue it behind the other, without a deadline."""
        with self._lock:
            if self.is_silent():
                return None
            with suppress(Exception):
                self._asking = Background(question)
                return self._asking.wait(timedelta(seconds=ANSWER_S))
        return None

    def is_silent(self) -> bool:
        """Whether an answer is still due: until it comes, the store must not be used."""
        return self._asking is not None and not self._asking.is_completed()


_clients: list[tuple[Any, Client]] = []  # of the default store, which a process may replace
_clients_lock = threading.Lock()


def client_of(store: Any) -> Client:
    """The client of this process for `store`, made when it is first asked for."""
    with _clients_lock:
        for known, client in _clients:
            if known is store:
                return client
        _clients[:] = [(store, Client(store))]
        return _clients[0][1]

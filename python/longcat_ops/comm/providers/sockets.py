"""File descriptors of memory handles travel between the processes of one machine over a socket (SCM_RIGHTS)."""

from __future__ import annotations

import array
import os
import secrets
import socket
import struct
import time
from collections.abc import Iterable

from ...errors import LongcatTimeoutError
from .exchange import OP

_HEADER = struct.Struct("16sI16s")  # token of the receiver, sender's rank, kind
_TOKEN_BYTES = 16


class Mailbox:
    """Where a rank receives file descriptors: a datagram socket with a name that the kernel forgets when it closes.

    address: bytes for the other ranks: a secret token, then the socket's name. A datagram without the token, or of
    another kind than the one waited for, is dropped and its descriptors are closed.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._token = secrets.token_bytes(_TOKEN_BYTES)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            name = b"\0longcat_ops/" + secrets.token_hex(12).encode()
            self._socket.bind(name)
        except BaseException:
            self._socket.close()
            raise
        self.address = self._token + name

    def send(self, fd: int, to: bytes, kind: str, timeout_s: float) -> None:
        """Sends a copy of `fd` to the mailbox with address `to`. Raises OSError; TimeoutError if its queue is full."""
        token, name = to[:_TOKEN_BYTES], to[_TOKEN_BYTES:]
        self._socket.settimeout(timeout_s or None)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))
        self._socket.sendmsg([_HEADER.pack(token, self.rank, kind.encode())], [rights], 0, name)

    def receive(self, kind: str, ranks: Iterable[int], timeout_s: float) -> dict[int, int]:
        """One descriptor of `kind` from each of `ranks`; the caller closes them. 0 s: no deadline.

        Raises LongcatTimeoutError naming the ranks that sent none, after closing what had come.
        """
        missing, got = set(ranks), {}
        start = time.monotonic()
        try:
            while missing:
                remaining = timeout_s - (time.monotonic() - start) if timeout_s else None
                if remaining is not None and remaining <= 0:
                    raise self._late(kind, missing, timeout_s)
                self._socket.settimeout(remaining)
                try:
                    data, fds = self._receive_one()
                except TimeoutError:
                    continue
                if (sender := self._sender(data, kind)) in missing and len(fds) == 1:
                    got[sender] = fds[0]
                    missing.discard(sender)
                else:
                    _close(fds)
        except BaseException:
            _close(got.values())
            raise
        return got

    def close(self) -> None:
        """Closes the socket; descriptors that nobody received are closed with it."""
        self._socket.close()

    def _receive_one(self) -> tuple[bytes, list[int]]:
        room = socket.CMSG_SPACE(4 * array.array("i").itemsize)
        data, control, _, _ = self._socket.recvmsg(_HEADER.size + 1, room, socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for level, kind, body in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(body[: len(body) - len(body) % fds.itemsize])
        return data, list(fds)

    def _sender(self, data: bytes, kind: str) -> int | None:
        if len(data) != _HEADER.size:
            return None
        token, rank, name = _HEADER.unpack(data)
        genuine = secrets.compare_digest(token, self._token) and name.rstrip(b"\0") == kind.encode()
        return rank if genuine else None

    def _late(self, kind: str, missing: set[int], timeout_s: float) -> LongcatTimeoutError:
        seen = dict.fromkeys(missing, f"none in {timeout_s:g} s")
        return LongcatTimeoutError(self.rank, OP, f"receipt of descriptors of the {kind}", 1, seen)


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)

"""File descriptors between processes: the real socket, two processes, a deadline, strangers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from longcat_ops.comm.providers.sockets import _HEADER, Mailbox
from longcat_ops.errors import LongcatTimeoutError

CHILD = """
import os, sys
from longcat_ops.comm.providers.sockets import Mailbox
box = Mailbox(1)
parent = bytes.fromhex(sys.argv[1])
print(box.address.hex(), flush=True)
fd = os.memfd_create("child")
os.write(fd, b"from the child")
box.send(fd, parent, "memory", 10)
(got,) = box.receive("memory", [0], 10).values()
print(os.pread(got, 99, 0).decode(), flush=True)
"""


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_two_processes_hand_each_other_memory() -> None:
    before = descriptors()
    box = Mailbox(0)
    with subprocess.Popen([sys.executable, "-c", CHILD, box.address.hex()], stdout=subprocess.PIPE, text=True) as child:
        peer = bytes.fromhex(child.stdout.readline().strip())
        fd = os.memfd_create("parent")
        os.write(fd, b"from the parent")
        box.send(fd, peer, "memory", 10)
        got = box.receive("memory", [1], 10)
        assert os.pread(got[1], 99, 0) == b"from the child"
        os.pwrite(got[1], b"F", 0)  # the same memory, not a copy
        assert child.stdout.readline().strip() == "from the parent"
        assert child.wait(10) == 0
    os.close(fd)
    os.close(got[1])
    box.close()
    assert descriptors() == before


def test_who_sent_nothing_is_named_and_what_came_is_closed() -> None:
    before = descriptors()
    box, peer = Mailbox(0), Mailbox(2)
    with open(os.devnull) as file:
        peer.send(file.fileno(), box.address, "memory", 1)
    start = time.monotonic()
    with pytest.raises(LongcatTimeoutError) as error:
        box.receive("memory", [1, 2, 3], 0.1)
    assert 0.1 <= time.monotonic() - start < 2
    assert error.value.missing == (1, 3)
    assert str(error.value).endswith(
        "in receipt of descriptors of the memory for call 1,"
        " and missing is: rank 1: none in 0.1 s; rank 3: none in 0.1 s."
    )
    box.close()
    peer.close()
    assert descriptors() == before


def test_strangers_and_other_kinds_are_dropped() -> None:
    before = descriptors()
    box, peer = Mailbox(0), Mailbox(1)
    token, name = box.address[:16], box.address[16:]
    with open(os.devnull) as file:
        peer.send(file.fileno(), b"\0" * 16 + name, "memory", 1)  # without the token
        peer.send(file.fileno(), box.address, "multicast object", 1)
        peer._socket.sendto(b"short", name)
        peer._socket.sendto(_HEADER.pack(token, 1, b"memory"), name)  # no descriptor
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(file.fileno().to_bytes(4, "little") for _ in range(2)))
        peer._socket.sendmsg([_HEADER.pack(token, 1, b"memory")], [rights], 0, name)  # two
    with pytest.raises(LongcatTimeoutError):
        box.receive("memory", [1], 0.1)
    assert descriptors() == before + 2
    with open(os.devnull) as file:
        peer.send(file.fileno(), box.address, "memory", 1)
        got = box.receive("memory", [1], 1)
        assert os.fstat(got[1]).st_ino == os.fstat(file.fileno()).st_ino
    assert not os.get_inheritable(got[1])
    os.close(got[1])
    box.close()
    peer.close()
    assert descriptors() == before


def test_a_mailbox_that_is_gone_or_full_is_an_error() -> None:
    box, peer = Mailbox(0), Mailbox(1)
    with open(os.devnull) as file:
        with pytest.raises(TimeoutError):
            for _ in range(2000):
                peer.send(file.fileno(), box.address, "memory", 0.05)
        box.close()
        with pytest.raises(ConnectionRefusedError):
            peer.send(file.fileno(), box.address, "memory", 1)
    peer.close()

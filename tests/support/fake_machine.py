"""A machine with one device a rank, simulated: what the driver of each rank owns, and every rule that it breaks.

The ranks are threads of one process. File descriptors are real (memfds), so that real sockets carry them. A rule that
is broken goes to `Machine.misuse`, since a provider would take an exception for one more reason to fall back.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

MEMORY_GRANULE, MULTICAST_GRANULES = 4096, (6144, 10240)  # lcm: 61440
MEMFD = "longcat-fake-handle"


class Killed(BaseException):
    """The process of a rank ends, without a word to anyone."""


@dataclass(eq=False)
class Memory:
    """What cuMemCreate makes."""

    owner: int
    size: int
    handle_types: int
    references: int = 1
    data: torch.Tensor | None = None


@dataclass(eq=False)
class Group:
    """What cuMulticastCreate makes. bound: rank -> its memory."""

    ranks: int
    size: int
    handle_types: int
    references: int = 1
    added: set[int] = field(default_factory=set)
    bound: dict[int, Memory] = field(default_factory=dict)


@dataclass
class Range:
    """A reserved range of addresses of one rank, and what is mapped there."""

    rank: int
    size: int
    target: Memory | Group | None = None
    access: bool = False


class Machine:
    """The state that all ranks share. log: (rank, method, kind of object) of each call that was made."""

    def __init__(self, ranks: int, *, fabric: bool = False, multicast: bool = True, bind_deadline_s: float = 5) -> None:
        self.ranks, self.fabric, self.multicast, self.bind_deadline_s = ranks, fabric, multicast, bind_deadline_s
        self.changed = threading.Condition()
        self.handles: dict[int, tuple[int, Memory | Group]] = {}
        self.ranges: dict[int, Range] = {}
        self.shared: dict[object, Memory | Group] = {}  # inode of a memfd, or fabric handle -> object
        self.contexts: set[int] = set()
        self.log: list[tuple[int, str, str]] = []
        self.misuse: list[str] = []
        self.calls: Counter[int] = Counter()
        self.faults: dict[tuple[int, int], tuple[BaseException, int]] = {}
        self.methods: dict[tuple[int, str], list[BaseException]] = {}
        self.dead: set[int] = set()
        self.when_dead: Callable[[int], object] = lambda rank: None
        self._free = 0x11000  # from here on no address is in use

    def fail(self, rank: int, call: int, error: BaseException, times: int = 1) -> None:
        """The `call`-th call of `rank` raises, and so do the next `times` - 1 calls of the same method."""
        self.faults[rank, call] = (error, times)

    def leaks(self) -> dict[str, int]:
        """Of each kind of object, how many there still are; all 0 when everything was given back."""
        objects = [thing for _, thing in self.handles.values()]
        return {
            "handles": len(objects),
            "objects": sum(thing.references > 0 for thing in {*objects, *self.shared.values()}),
            "ranges": len(self.ranges),
            "bound": sum(len(thing.bound) for thing in objects if isinstance(thing, Group)),
            "contexts": len(self.contexts),
            "descriptors": open_memfds(),
        }

    def new_address(self, size: int = 0) -> int:
        """Of `size` bytes that nothing else has."""
        address = self._free
        self._free += max(1, -(-size // 0x10000)) * 0x10000
        return address

    def end(self, rank: int) -> None:
        """What the kernel does when a process ends."""
        with self.changed:
            self.dead.add(rank)
            for handle, (owner, thing) in list(self.handles.items()):
                if owner == rank:
                    del self.handles[handle]
                    thing.references -= 1
                    if isinstance(thing, Group):
                        thing.bound.pop(rank, None)
            self.ranges = {address: one for address, one in self.ranges.items() if one.rank != rank}
            self.contexts.discard(rank)
            self.when_dead(rank)


def open_memfds() -> int:
    """How many of the descriptors that fake drivers have exported are open in this process, under any number."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            found += MEMFD in os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # closed since the list was made
    return found

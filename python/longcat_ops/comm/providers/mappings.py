"""What one rank holds of the driver for a region, and the order in which it gives that back."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from .driver import Driver
from .faults import GONE, DriverError


@dataclass
class Mapping:
    """A handle and where it is mapped. 0 and False: not yet, or not any more."""

    handle: int = 0
    address: int = 0
    mapped: bool = False
    access: bool = False


@dataclass
class Multicast(Mapping):
    """The multicast object: also whether the own device is in it, and whether the own memory is bound to it."""

    handle_types: int = 0  # on the rank that made it
    added: bool = False
    bound: bool = False


class Mappings:
    """The objects of one rank; each is recorded as soon as the driver has made it.

    The order of giving back matters. The multicast object goes first, because unbinding fails once the memory that is
    bound to it is gone: unmap, unbind, release. Then memory: peers', then own. Then addresses, then descriptors, then
    the context.
    """

    def __init__(self, driver: Driver, ranks: int) -> None:
        self.driver, self.size, self.handle_types = driver, 0, 0
        self.own, self.multicast = Mapping(), Multicast()
        self.peers = [Mapping() for _ in range(ranks)]  # the own entry stays empty
        self.fds: list[int] = []  # exported here
        self.received: dict[int, int] = {}  # rank -> descriptor
        self._reserved: list[int] = []  # addresses whose mapping is gone
        self._open = True
        self._problems: list[str] = []

    def map(self, mapping: Mapping) -> None:
        """Maps all of a handle, readable and writable from the own device. Goes on where an earlier call stopped."""
        if not mapping.address:
            mapping.address = self.driver.reserve(self.size, 0)
        if not mapping.mapped:
            self.driver.map(mapping.address, self.size, mapping.handle)
            mapping.mapped = True
        if not mapping.access:
            self.driver.set_access(mapping.address, self.size)
            mapping.access = True

    def add_device(self) -> None:
        if not self.multicast.added:
            self.driver.multicast_add_device(self.multicast.handle)
            self.multicast.added = True

    def bind(self) -> None:
        if not self.multicast.bound:
            self.driver.multicast_bind(self.multicast.handle, self.own.handle, self.size)
            self.multicast.bound = True

    def synchronize(self) -> None:
        self.driver.synchronize()

    def clear(self) -> None:
        self.driver.zero(self.own.address, self.size)

    def close_fds(self) -> None:
        while self.fds:
            os.close(self.fds.pop())
        while self.received:
            os.close(self.received.popitem()[1])

    def release_peers(self) -> None:
        """Gives the peers' memory back, so that it can be imported another way."""
        for peer in self.peers:
            self._drop(peer)
        self._free_addresses()

    def release_multicast(self) -> list[str]:
        self._drop_multicast()
        self._free_addresses()
        self.close_fds()
        return self._take_problems()

    def release(self) -> list[str]:
        self._drop_multicast()
        for mapping in (*self.peers, self.own):
            self._drop(mapping)
        self._free_addresses()
        self.close_fds()
        if self._open:
            self._open = False
            self._quietly(self.driver.close)
        return self._take_problems()

    def _drop_multicast(self) -> None:
        multicast = self.multicast
        self._unmap(multicast)
        if multicast.bound:
            self._quietly(self.driver.multicast_unbind, multicast.handle, self.size)
        if multicast.handle:
            self._quietly(self.driver.release, multicast.handle)
        self.multicast = Multicast()

    def _drop(self, mapping: Mapping) -> None:
        self._unmap(mapping)
        if mapping.handle:
            self._quietly(self.driver.release, mapping.handle)
            mapping.handle = 0

    def _unmap(self, mapping: Mapping) -> None:
        if mapping.mapped:
            self._quietly(self.driver.unmap, mapping.address, self.size)
        if mapping.address:
            self._reserved.append(mapping.address)
        mapping.address, mapping.mapped, mapping.access = 0, False, False

    def _free_addresses(self) -> None:
        while self._reserved:
            self._quietly(self.driver.free, self._reserved.pop(), self.size)

    def _quietly(self, call: Callable[..., None], *arguments: int) -> None:
        """A failed step must not keep the later ones from being tried. A context that is gone is no problem."""
        try:
            call(*arguments)
        except DriverError as error:
            if error.code not in GONE:
                self._problems.append(str(error))

    def _take_problems(self) -> list[str]:
        problems, self._problems = self._problems, []
        return problems

"""One rank's driver on the machine of `fake_machine`; it stands in for longcat_ops.comm.providers.driver.Driver."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from longcat_ops.comm.providers.driver import FABRIC, POSIX_FD
from longcat_ops.comm.providers.faults import DEINITIALIZED, INVALID_VALUE, NOT_SUPPORTED, DriverError
from support.fake_machine import MEMFD, MEMORY_GRANULE, MULTICAST_GRANULES, Group, Killed, Machine, Memory, Range


def driver_of(machine: Machine, rank: int) -> Callable[[int], FakeDriver]:
    """What makes the driver of `rank`, given a device."""
    return lambda device: FakeDriver(machine, rank)


class FakeDriver:
    """One rank's driver. Methods are those of Driver."""

    def __init__(self, machine: Machine, rank: int) -> None:
        self.machine, self.rank = machine, rank
        self._enter("init")
        machine.contexts.add(rank)

    def close(self) -> None:
        self._enter("close")
        self._rule(self.rank in self.machine.contexts, "the context is released twice")
        self.machine.contexts.discard(self.rank)

    def attribute(self, name: str) -> int:
        self._enter("attribute", name)
        return {"fabric": self.machine.fabric, "multicast": self.machine.multicast}.get(name, True)

    def uuid(self) -> str:
        self._enter("uuid")
        return f"device {self.rank}"

    def memory_granularity(self, handle_types: int) -> int:
        self._enter("memory_granularity")
        return MEMORY_GRANULE

    def multicast_granularity(self, ranks: int, size: int, handle_types: int, recommended: bool) -> int:
        self._enter("multicast_granularity")
        return MULTICAST_GRANULES[recommended]

    def create(self, size: int, handle_types: int) -> int:
        self._enter("create")
        self._rule(size > 0 and size % MEMORY_GRANULE == 0, f"memory of {size} bytes")
        return self._new(Memory(self.rank, size, handle_types))

    def release(self, handle: int) -> None:
        thing = self._thing(handle)
        self._enter("release", self._kind(thing))
        if self._rule(thing is not None, "a handle is released twice, or was never made"):
            del self.machine.handles[handle]
            thing.references -= 1
            if isinstance(thing, Group):
                self._rule(self.rank not in thing.bound, "a multicast object is released while memory is bound to it")

    def reserve(self, size: int, alignment: int) -> int:
        self._enter("reserve")
        with self.machine.changed:
            address = self.machine.new_address(size)
            self.machine.ranges[address] = Range(self.rank, size)
        return address

    def free(self, address: int, size: int) -> None:
        self._enter("free")
        one = self._range(address, size)
        if one and self._rule(one.target is None, "addresses are freed while something is mapped there"):
            del self.machine.ranges[address]

    def map(self, address: int, size: int, handle: int) -> None:
        thing = self._thing(handle)
        self._enter("map", self._kind(thing))
        one = self._range(address, size)
        self._rule(thing is not None and thing.size == size, "a mapping is not of the whole object")
        if isinstance(thing, Group):
            self._wait_for_devices(thing)
        if one and self._rule(one.target is None, "two mappings at one address"):
            one.target = thing

    def unmap(self, address: int, size: int) -> None:
        one = self._range(address, size)
        self._enter("unmap", self._kind(one.target if one else None))
        if one and self._rule(one.target is not None, "nothing is mapped where it is unmapped"):
            one.target, one.access = None, False

    def set_access(self, address: int, size: int) -> None:
        one = self._range(address, size)
        self._enter("set_access", self._kind(one.target if one else None))
        if one and self._rule(one.target is not None, "access to addresses where nothing is mapped"):
            one.access = True

    def zero(self, address: int, size: int) -> None:
        one = self._range(address, size)
        self._enter("zero")
        if one and self._rule(one.access, "memory is written without access"):
            self._data(one.target).zero_()

    def synchronize(self) -> None:
        self._enter("synchronize")

    def export_fd(self, handle: int) -> int:
        thing = self._thing(handle)
        self._enter("export_fd", self._kind(thing))
        self._rule(bool(thing.handle_types & POSIX_FD), "a descriptor of what was made without POSIX_FD")
        fd = os.memfd_create(MEMFD)
        self.machine.shared[os.fstat(fd).st_ino] = thing
        return fd

    def export_fabric(self, handle: int) -> bytes:
        thing = self._thing(handle)
        self._enter("export_fabric", self._kind(thing))
        self._rule(bool(thing.handle_types & FABRIC), "a fabric handle of what was made without FABRIC")
        name = f"{id(thing):064x}".encode()
        self.machine.shared[name] = thing
        return name

    def import_fd(self, fd: int) -> int:
        return self._import("import_fd", os.fstat(fd).st_ino)

    def import_fabric(self, data: bytes) -> int:
        return self._import("import_fabric", data)

    def multicast_create(self, ranks: int, size: int, handle_types: int) -> int:
        self._enter("multicast_create")
        if not self.machine.multicast:
            raise DriverError("cuMulticastCreate", NOT_SUPPORTED)
        self._rule(all(size % granule == 0 for granule in MULTICAST_GRANULES), f"a multicast object of {size} bytes")
        return self._new(Group(ranks, size, handle_types))

    def multicast_add_device(self, handle: int) -> None:
        self._enter("multicast_add_device")
        thing = self._thing(handle)
        with self.machine.changed:
            self._rule(self.rank not in thing.added, "a device is added twice")
            thing.added.add(self.rank)
            self.machine.changed.notify_all()

    def multicast_bind(self, handle: int, memory: int, size: int) -> None:
        self._enter("multicast_bind")
        thing, own = self._thing(handle), self._thing(memory)
        self._rule(own.owner == self.rank and own.size == size == thing.size, "what is bound is not the own memory")
        self._rule(self.rank not in thing.bound, "memory is bound twice")
        self._wait_for_devices(thing)
        thing.bound[self.rank] = own

    def multicast_unbind(self, handle: int, size: int) -> None:
        self._enter("multicast_unbind")
        thing = self._thing(handle)
        mapped = [one for one in self.machine.ranges.values() if one.rank == self.rank and one.target is thing]
        self._rule(not mapped, "memory is unbound while the multicast object is mapped")
        own = thing.bound.pop(self.rank, None)
        self._rule(own is not None, "memory is unbound that was not bound")
        held = any(rank == self.rank and there is own for rank, there in self.machine.handles.values())
        self._rule(held, "memory is unbound after it was released")

    def tensor(self, address: int, size: int) -> torch.Tensor:
        self._enter("tensor")
        one = self._range(address, size)
        return self._data(one.target)

    def _enter(self, method: str, detail: str = "") -> None:
        machine = self.machine
        with machine.changed:
            if self.rank in machine.dead:
                raise DriverError(method, DEINITIALIZED)
            call = machine.calls[self.rank]
            machine.calls[self.rank] += 1
            if (self.rank, call) in machine.faults:
                error, times = machine.faults.pop((self.rank, call))
                machine.methods[self.rank, method] = [error] * times
            self._rule(method == "init" or self.rank in machine.contexts, f"{method} without a context")
            if pending := machine.methods.get((self.rank, method)):
                error = pending.pop()
                if isinstance(error, Killed):
                    machine.end(self.rank)
                raise error
            machine.log.append((self.rank, method, detail))

    def _new(self, thing: Memory | Group) -> int:
        with self.machine.changed:
            handle = self.machine.new_address()
            self.machine.handles[handle] = (self.rank, thing)
        return handle

    def _import(self, method: str, name: object) -> int:
        thing = self.machine.shared.get(name)
        self._enter(method, self._kind(thing))
        if thing is None:
            raise DriverError("cuMemImportFromShareableHandle", INVALID_VALUE)
        if thing.references == 0 and isinstance(thing, Group):
            # Its creator has let it go too early: the driver hands out a new, empty object without a word.
            return self._new(Group(thing.ranks, thing.size, thing.handle_types))
        kept = isinstance(thing, Memory) and thing.owner in self.machine.dead  # by the descriptor of the dead process
        self._rule(thing.references > 0 or kept, "memory is imported after it was released")
        thing.references += 1
        return self._new(thing)

    def _thing(self, handle: int) -> Memory | Group | None:
        rank, thing = self.machine.handles.get(handle, (self.rank, None))
        self._rule(rank == self.rank, "a handle of another process")
        return thing

    def _range(self, address: int, size: int) -> Range | None:
        one = self.machine.ranges.get(address)
        fits = one is not None and one.rank == self.rank and one.size == size
        return one if self._rule(fits, "addresses that were not reserved like this") else None

    def _kind(self, thing: Memory | Group | None) -> str:
        if isinstance(thing, Group):
            return "multicast"
        return "none" if thing is None else "own" if thing.owner == self.rank else "peer"

    def _data(self, memory: Memory) -> torch.Tensor:
        if memory.data is None:
            memory.data = torch.full((memory.size,), 0xA5, dtype=torch.uint8)
        return memory.data

    def _wait_for_devices(self, group: Group) -> None:
        with self.machine.changed:
            done = self.machine.changed.wait_for(lambda: len(group.added) == group.ranks, self.machine.bind_deadline_s)
        self._rule(done, f"rank {self.rank} waits in the driver for devices that never come")

    def _rule(self, holds: bool, text: str) -> bool:
        if not holds and self.rank not in self.machine.dead:
            self.machine.misuse.append(f"rank {self.rank}: {text}")
        return holds

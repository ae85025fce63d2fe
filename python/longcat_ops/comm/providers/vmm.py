"""Our own provider: virtual memory management and multicast objects of the CUDA driver, one device a process.

A set-up is a sequence of steps. In each, every rank does its part and all hear how it went on every rank (`together`),
so all take the same way: multicast and peer memory, peer memory alone, or nothing. Peer memory comes first and does
not depend on multicast. Whatever happens, a rank that leaves `open_memory` without a region has given back everything.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from .base import SetUp, SmokeTest, SymmetricMemory, prove, warn_unclean
from .capabilities import Capabilities, Choice, choose, probe
from .driver import FABRIC, POSIX_FD, Driver
from .exchange import RETRY_WAIT_S, Exchange, Votes, together
from .faults import FABRIC_REFUSED, DriverError, describe
from .mappings import Mappings
from .sockets import Mailbox


def open_memory(
    exchange: Exchange,
    device: int,
    size: int,
    *,
    smoke: SmokeTest | None = None,
    driver: Callable[[int], Driver] = Driver,
    mailbox: Callable[[int], Mailbox] = Mailbox,
    retry_wait_s: float = RETRY_WAIT_S,
) -> SetUp:
    """Collective: a region of at least `size` bytes on each rank, rounded up to the granularities of all devices.

    device: the own CUDA ordinal; size: bytes, control region included, the same on all ranks (`symmetric_bytes`);
    smoke: tried on the finished region (`prove`); driver, mailbox: what makes them, for tests; retry_wait_s: seconds
    between attempts of a step that found the system not ready.

    Raises LongcatTimeoutError if a rank does not arrive at a step before the exchange's deadline, or has left;
    LongcatShapeError on all ranks if their sizes differ. Everything else that fails is a reason in `SetUp.why_not`.
    """
    work = _SetUp(exchange, size, smoke, retry_wait_s)
    try:
        answer = work.run(lambda: driver(device), mailbox)
    except BaseException as error:
        exchange.leave(describe(error))
        work.give_back()
        raise
    if answer.memory is None:
        work.give_back()
    work.close_mailbox()
    return answer


class _SetUp:
    """The steps of one rank, with what it has so far."""

    def __init__(self, exchange: Exchange, size: int, smoke: SmokeTest | None, retry_wait_s: float) -> None:
        self.exchange, self.size, self.smoke, self.retry_wait_s = exchange, size, smoke, retry_wait_s
        self.rank, self.ranks = exchange.rank, exchange.ranks
        self.mappings: Mappings | None = None
        self.mailbox: Mailbox | None = None
        self.mailboxes: list[bytes] = []  # addresses, by rank
        self.by_fabric = False  # how memory handles went round
        self.sent = False  # the multicast handle, by rank 0
        # Half of the exchange's deadline: a rank that waits for a descriptor in vain still arrives at the next vote.
        self.fd_timeout_s = exchange.timeout_s / 2

    def run(self, driver: Callable[[], Driver], mailbox: Callable[[int], Mailbox]) -> SetUp:
        votes = self._step("capabilities", lambda: self._probe(driver))
        if votes.problems:
            return SetUp.nothing(votes.text)
        choice = choose([Capabilities.decode(data) for data in votes.payloads])
        if choice.no_peers:
            return SetUp.nothing(choice.no_peers)
        votes = self._step("own memory", lambda: self._own(choice, mailbox))
        if votes.problems:
            return SetUp.nothing(votes.text)
        problem = self._peers([json.loads(data) for data in votes.payloads])
        if problem:
            return SetUp.nothing(problem)
        problem = choice.no_multicast or self._multicast(choice)
        why_not = {"multimem": problem} if problem else {}
        return self._finish(why_not)

    def give_back(self) -> None:
        if self.mappings is not None:
            warn_unclean(self.mappings.release())
        self.close_mailbox()

    def close_mailbox(self) -> None:
        if self.mailbox is not None:
            self.mailbox.close()

    def _step(self, what: str, action: Callable[[], bytes | None]) -> Votes:
        return together(self.exchange, what, action, wait_s=self.retry_wait_s)

    def _probe(self, driver: Callable[[], Driver]) -> bytes:
        if self.mappings is None:
            self.mappings = Mappings(driver(), self.ranks)
        return probe(self.mappings.driver, self.ranks, self.size).encode()

    def _own(self, choice: Choice, mailbox: Callable[[int], Mailbox]) -> bytes:
        maps, driver = self.mappings, self.mappings.driver
        own = maps.own
        maps.size = choice.size
        if not own.handle:
            own.handle, maps.handle_types = _with_fabric(
                choice.handle_types, lambda types: driver.create(choice.size, types)
            )
        maps.map(own)
        driver.zero(own.address, choice.size)
        if self.mailbox is None:
            self.mailbox = mailbox(self.rank)
        return json.dumps(
            self._exported(own.handle, maps.handle_types) | {"mailbox": self.mailbox.address.hex()}
        ).encode()

    def _exported(self, handle: int, handle_types: int) -> dict[str, str]:
        """Exports a handle. Its file descriptor stays here; what the others need comes back, if it is a fabric one."""
        maps, driver = self.mappings, self.mappings.driver
        maps.close_fds()
        maps.fds.append(driver.export_fd(handle))
        if handle_types & FABRIC:
            try:
                return {"fabric": driver.export_fabric(handle).hex()}
            except DriverError as error:
                if error.code not in FABRIC_REFUSED:
                    raise
        return {"fabric": ""}

    def _peers(self, exported: list[dict[str, str]]) -> str:
        """Maps the memory of all other ranks; returns why not. Fabric handles first, if every rank has one."""
        self.mailboxes = [bytes.fromhex(one["mailbox"]) for one in exported]
        handles = [one["fabric"] for one in exported]
        if all(handles):
            votes = self._step("peer memory, by fabric handles", lambda: self._import_fabric(handles))
            self.by_fabric = not votes.problems
            if self.by_fabric:
                self.mappings.close_fds()
                return ""
            self.mappings.release_peers()
        votes = self._step("peer memory, by file descriptors", self._import_fds)
        self.mappings.close_fds()
        return votes.text

    def _others(self) -> list[int]:
        return [rank for rank in range(self.ranks) if rank != self.rank]

    def _import_fabric(self, handles: list[str]) -> None:
        maps = self.mappings
        for rank in self._others():
            peer = maps.peers[rank]
            if not peer.handle:
                peer.handle = maps.driver.import_fabric(bytes.fromhex(handles[rank]))
            maps.map(peer)

    def _import_fds(self) -> None:
        maps = self.mappings
        if not maps.received:
            for rank in self._others():
                self.mailbox.send(maps.fds[0], self.mailboxes[rank], "memory", self.fd_timeout_s)
            maps.received = self.mailbox.receive("memory", self._others(), self.fd_timeout_s)
        for rank in self._others():
            peer = maps.peers[rank]
            if not peer.handle:
                peer.handle = maps.driver.import_fd(maps.received[rank])
            maps.map(peer)

    def _multicast(self, choice: Choice) -> str:
        """Makes the multicast object, binds every rank's memory and maps it; returns why not, having undone it."""
        steps: list[tuple[str, Callable[[Votes | None], bytes | None]]] = [
            ("multicast object", lambda _: self._create(choice) if self.rank == 0 else None),
            # Binding blocks in the driver until every device has been added: the vote of this step is the barrier,
            # with a deadline, that keeps a rank from waiting there for one that never came.
            ("devices of the multicast object", self._add),
            ("multicast memory", lambda _: self._bind()),
        ]
        votes = None
        for what, action in steps:
            before = votes
            votes = self._step(what, lambda action=action, before=before: action(before))
            if votes.problems:
                warn_unclean(self.mappings.release_multicast())
                return f"{what}: {votes.text}"
        self.mappings.close_fds()
        return ""

    def _create(self, choice: Choice) -> bytes:
        maps = self.mappings
        if not maps.multicast.handle:
            # Rank 0 holds this reference until the region is closed: without it, a late import would get a new,
            # empty object, and every rank would wait for its devices.
            create = maps.driver.multicast_create
            maps.multicast.handle, maps.multicast.handle_types = _with_fabric(
                maps.handle_types if self.by_fabric else POSIX_FD, lambda types: create(self.ranks, choice.size, types)
            )
        return json.dumps(self._exported(maps.multicast.handle, maps.multicast.handle_types)).encode()

    def _add(self, created: Votes) -> None:
        maps = self.mappings
        fabric = json.loads(created.payloads[0])["fabric"] if self.by_fabric else ""
        if self.rank == 0 and not fabric and not self.sent:
            self.sent = True
            for rank in self._others():
                self.mailbox.send(maps.fds[0], self.mailboxes[rank], "multicast object", self.fd_timeout_s)
        if not maps.multicast.handle:
            maps.multicast.handle = self._import_multicast(fabric)
        maps.add_device()

    def _import_multicast(self, fabric: str) -> int:
        maps = self.mappings
        if fabric:
            return maps.driver.import_fabric(bytes.fromhex(fabric))
        if not maps.received:
            maps.received = self.mailbox.receive("multicast object", [0], self.fd_timeout_s)
        return maps.driver.import_fd(maps.received[0])

    def _bind(self) -> None:
        self.mappings.bind()
        self.mappings.map(self.mappings.multicast)

    def _finish(self, why_not: dict[str, str]) -> SetUp:
        maps, made = self.mappings, []

        def make() -> None:
            made.append(maps.driver.tensor(maps.own.address, maps.size))

        votes = self._step("tensor", make)
        if votes.problems:
            return SetUp.nothing(votes.text)
        pointers = tuple((maps.own if rank == self.rank else maps.peers[rank]).address for rank in range(self.ranks))
        memory = SymmetricMemory(
            rank=self.rank,
            pointers=pointers,
            multicast=maps.multicast.address if "multimem" not in why_not else 0,
            tensor=made[0],
            provider="vmm",
            holder=maps,
        )
        try:
            return prove(self.exchange, memory, why_not, self.smoke, self.retry_wait_s)
        except BaseException:
            memory.close()
            raise


def _with_fabric(types: int, create: Callable[[int], int]) -> tuple[int, int]:
    """Creates with these handle types, without FABRIC where that is refused. Returns the handle and its types."""
    try:
        return create(types), types
    except DriverError as error:
        if not types & FABRIC or error.code not in FABRIC_REFUSED:
            raise
        return create(types & ~FABRIC), types & ~FABRIC

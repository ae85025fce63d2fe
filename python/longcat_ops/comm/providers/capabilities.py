"""What each rank's machine and device can do, and what the ranks make of it: a pure choice, the same on all ranks."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import LongcatShapeError, message
from .base import CONTROL_BYTES, round_up
from .driver import FABRIC, POSIX_FD
from .exchange import OP, of_ranks
from .faults import DriverError, describe

if TYPE_CHECKING:
    from .driver import Driver

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Capabilities:
    """Of one rank. size: bytes it asks for; granularity, multicast_granularity: bytes; no_multicast: why not, or ""."""

    machine: str
    device: str
    size: int
    vmm: bool
    posix_fd: bool
    fabric: bool
    granularity: int
    multicast_granularity: int
    no_multicast: str

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> Capabilities:
        return cls(**json.loads(data))


def probe(driver: Driver, ranks: int, size: int) -> Capabilities:
    """Asks the driver of one rank. Raises DriverError where even plain memory cannot be asked for."""
    fabric = bool(driver.attribute("fabric"))
    granularity = driver.memory_granularity(POSIX_FD)
    multicast, problem = 1, ""
    if ranks < 3:
        problem = f"{ranks} ranks: multicast needs 3 or more, and 2 lose nothing with peer memory"
    elif not driver.attribute("multicast"):
        problem = "the device does not support multicast (no NVSwitch, or multicast is switched off)"
    else:
        try:
            rounded = round_up(size, granularity)
            sizes = [driver.multicast_granularity(ranks, rounded, POSIX_FD, best) for best in (False, True)]
            multicast = math.lcm(*sizes)
        except DriverError as error:
            problem = describe(error)
    return Capabilities(
        machine=BOOT_ID.read_text().strip(),
        device=driver.uuid(),
        size=size,
        vmm=bool(driver.attribute("vmm")),
        posix_fd=bool(driver.attribute("posix_fd")),
        fabric=fabric,
        granularity=granularity,
        multicast_granularity=multicast,
        no_multicast=problem,
    )


@dataclass(frozen=True)
class Choice:
    """What the ranks do. size: bytes of the region; no_peers, no_multicast: why not, "" where it is to be tried."""

    size: int
    handle_types: int
    no_peers: str
    no_multicast: str


def choose(ranks: list[Capabilities]) -> Choice:
    """From the capabilities of all ranks, by rank.

    Raises LongcatShapeError, on all ranks alike, if they ask for different sizes or for less than the control region.
    """
    require_sizes([one.size for one in ranks])
    no_multicast = of_ranks({rank: one.no_multicast for rank, one in enumerate(ranks) if one.no_multicast}, len(ranks))
    granularity = math.lcm(*(one.granularity for one in ranks))
    if not no_multicast:
        granularity = math.lcm(granularity, *(one.multicast_granularity for one in ranks))
    types = POSIX_FD | (FABRIC if all(one.fabric for one in ranks) else 0)
    return Choice(round_up(ranks[0].size, granularity), types, _no_peers(ranks), no_multicast)


def require_sizes(sizes: list[int]) -> None:
    """Of the regions that the ranks ask for, in bytes. Raises LongcatShapeError, on all ranks alike."""
    for rank, size in enumerate(sizes):
        if size != sizes[0]:
            raise LongcatShapeError(message(OP, "size", f"{size} on rank {rank}", f"{sizes[0]} as on rank 0"))
    if sizes[0] < CONTROL_BYTES:
        expected = f"{CONTROL_BYTES} (the control region) or more"
        raise LongcatShapeError(message(OP, "size", sizes[0], expected))


def _no_peers(ranks: list[Capabilities]) -> str:
    if len(ranks) < 2:
        return "1 rank: there is no peer"
    machines = {one.machine for one in ranks}
    if len(machines) > 1:
        return f"the ranks are on {len(machines)} machines, expected 1"
    seen: dict[str, int] = {}
    for rank, one in enumerate(ranks):
        if one.device in seen:
            return f"ranks {seen[one.device]} and {rank} share a device, expected one each"
        seen[one.device] = rank
    lacks = {
        rank: "the device supports neither virtual memory management nor file descriptors of it"
        for rank, one in enumerate(ranks)
        if not (one.vmm and one.posix_fd)
    }
    return of_ranks(lacks, len(ranks))

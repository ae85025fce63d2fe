"""What a provider of symmetric memory gives: one region of equal size on every rank, mapped by all, with named parts.

The first CONTROL_BYTES of a region are the control region: barrier epochs, abort words, error records. They are zero
when a provider hands the region out. Parts follow it, each aligned to ALIGNMENT bytes, in the order of `allocate`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ...errors import LongcatShapeError, message
from .exchange import RETRY_WAIT_S, Exchange, together
from .faults import describe

if TYPE_CHECKING:
    from torch import Tensor

CONTROL_BYTES = 64 << 10  # LC_COMM_CONTROL_BYTES
ALIGNMENT = 256
GRANULARITY = 2 << 20  # bytes; what drivers report on Hopper for memory and, as a minimum, for multicast
_OP = "SymmetricMemory"


def round_up(size: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `size`; both in bytes."""
    return -(-size // multiple) * multiple


def symmetric_bytes(parts: Mapping[str, int], granularity: int = GRANULARITY) -> int:
    """Bytes of device memory that a rank gives to a region with these parts (name -> bytes), control region included.

    granularity: bytes, what the provider rounds up to: GRANULARITY unless the driver reports another one. Pure: the
    prediction of a deployment. A region that holds exactly these parts has this size under `vmm` if the driver's
    granularities are `granularity`. Raises LongcatShapeError for a part below 1 byte.
    """
    plan = Allocations(None)
    for name, size in parts.items():
        plan.allocate(name, size)
    return round_up(plan.end, granularity)


@dataclass(frozen=True)
class Part:
    """A named part of a region. offset: bytes from its start, a multiple of ALIGNMENT; bytes: as asked for."""

    offset: int
    bytes: int


@dataclass
class Allocations:
    """Names, offsets and sizes of the parts of a region of `bytes` bytes (None: without limit). Holds no memory."""

    bytes: int | None
    parts: dict[str, Part] = field(default_factory=dict)
    end: int = CONTROL_BYTES  # bytes taken so far, control region included

    def allocate(self, name: str, size: int) -> int:
        """Takes `size` bytes behind the last part; returns their offset. Raises LongcatShapeError, changes nothing."""
        if name in self.parts:
            there = self.parts[name]
            got = f"{name!r}, which has {there.bytes} bytes at offset {there.offset}"
            raise LongcatShapeError(message(_OP, "name", got, "a name that is not in use"))
        if size < 1:
            raise LongcatShapeError(message(_OP, "size", size, "1 byte or more", f"part: {name!r}"))
        offset = round_up(self.end, ALIGNMENT)
        if self.bytes is not None and offset + size > self.bytes:
            taken = ", ".join(f"{n} {p.bytes}" for n, p in self.parts.items()) or "none"
            raise LongcatShapeError(
                message(
                    _OP,
                    "size",
                    f"{size} bytes for {name!r}",
                    f"at most {max(0, self.bytes - offset)}",
                    f"region: {self.bytes} bytes, {CONTROL_BYTES} of them control; parts (bytes): {taken}",
                    "ask for a larger region when it is made",
                )
            )
        self.parts[name] = Part(offset, size)
        self.end = offset + size
        return offset

    def compare(self, exchange: Exchange) -> None:
        """Collective. Raises LongcatShapeError on every rank unless all have the same parts in the same order."""
        own = [[name, part.bytes] for name, part in self.parts.items()]
        lists = [json.loads(data) for data in exchange.all_gather_bytes(json.dumps(own).encode(), "names of the parts")]
        for rank, other in enumerate(lists):
            if other != lists[0]:
                length = max(len(other), len(lists[0]))
                pairs = [[(p[i] if i < len(p) else None) for p in (other, lists[0])] for i in range(length)]
                got, expected = next(pair for pair in pairs if pair[0] != pair[1])
                raise LongcatShapeError(
                    message(
                        _OP,
                        "parts",
                        f"{_part(got)} on rank {rank}",
                        f"{_part(expected)} as on rank 0",
                        "every rank allocates the same names and sizes in the same order",
                    )
                )


def _part(part: list | None) -> str:
    return "no part" if part is None else f"{part[0]!r} of {part[1]} bytes"


class Holder(Protocol):
    """The driver objects behind a region. No method is collective, and each release may be called again."""

    def synchronize(self) -> None:
        """Waits for everything that runs on the device."""
        ...

    def clear(self) -> None:
        """Zeroes this rank's region, and waits until that is done."""
        ...

    def release_multicast(self) -> list[str]:
        """Gives the multicast object back and keeps the rest. Returns what went wrong; raises nothing."""
        ...

    def release(self) -> list[str]:
        """Gives everything back. Returns what went wrong; raises nothing."""
        ...


class SymmetricMemory:
    """A region of `bytes` bytes on each of `ranks` ranks, mapped here at pointers[0] .. pointers[ranks - 1].

    rank: the own one; pointers[rank] is this rank's memory. multicast: the address whose stores reach every rank, 0
    if there is none. tensor: the own region, uint8 [bytes]. provider: "torch" or "vmm". Offsets into a region mean
    the same on all ranks and at the multicast address.

    `close` concerns this rank alone and waits for nobody. While a peer's kernel still reads or writes this region,
    closing it is an error that nothing can catch. So: let the device finish, wait for all ranks, then close; that is
    what `close_together` does. A region that is dropped without `close` keeps its memory until the process ends, with
    a ResourceWarning: only a collective step could tell that the peers are done.
    """

    def __init__(
        self, *, rank: int, pointers: tuple[int, ...], multicast: int, tensor: Tensor, provider: str, holder: Holder
    ) -> None:
        self.rank, self.ranks, self.bytes = rank, len(pointers), int(tensor.numel())
        self.pointers, self.multicast, self.tensor, self.provider = pointers, multicast, tensor, provider
        self.allocations = Allocations(self.bytes)
        self.holder = holder
        self.closed = False

    def allocate(self, name: str, size: int) -> int:
        """Takes `size` bytes for `name`; returns their offset, a multiple of ALIGNMENT.

        Every rank makes the same calls in the same order; `compare_parts` checks that. Raises LongcatShapeError for a
        name in use, a size below 1 byte, or a part beyond the end of the region.
        """
        self._require_open()
        return self.allocations.allocate(name, size)

    def part(self, name: str) -> Tensor:
        """The own memory of a part: a view, uint8 [bytes of the part]. Raises LongcatShapeError for other names."""
        self._require_open()
        part = self.allocations.parts.get(name)
        if part is None:
            known = ", ".join(self.allocations.parts) or "none"
            raise LongcatShapeError(message(_OP, "name", repr(name), f"one of: {known}"))
        return self.tensor[part.offset : part.offset + part.bytes]

    def compare_parts(self, exchange: Exchange) -> None:
        """Collective, once after the last `allocate`. Raises LongcatShapeError on all ranks if parts differ."""
        self._require_open()
        self.allocations.compare(exchange)

    def drop_multicast(self) -> None:
        """Gives the multicast object back and goes on with peer memory. Not collective; all ranks must do it."""
        self.multicast = 0
        warn_unclean(self.holder.release_multicast())

    def close(self) -> None:
        """Gives this rank's mappings and memory back, multicast first. See the class for the order among ranks."""
        if self.closed:
            return
        self.closed = True
        self.pointers, self.multicast, self.tensor = (), 0, None
        warn_unclean(self.holder.release())

    def _require_open(self) -> None:
        if self.closed:
            raise LongcatShapeError(message(_OP, "memory", "closed", "open"))

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            warnings.warn("a SymmetricMemory was dropped without close()", ResourceWarning, stacklevel=2)


def close_together(memory: SymmetricMemory, exchange: Exchange) -> None:
    """Collective: waits for the device, then for all ranks, then closes. Closes and raises if a rank is missing."""
    try:
        memory.holder.synchronize()
        exchange.barrier("before memory is closed")
    except BaseException as error:
        exchange.leave(describe(error))
        raise
    finally:
        memory.close()


def warn_unclean(problems: list[str]) -> None:
    """Warns of what `Holder.release` and `release_multicast` returned, if anything: once a region, and no error."""
    if problems:
        warnings.warn("symmetric memory was not given back cleanly: " + "; ".join(problems), stacklevel=3)


@dataclass(frozen=True)
class SetUp:
    """What a provider answers, the same on every rank.

    memory: None if the ranks cannot reach each other's memory. why_not: "p2p" and "multimem" -> why that is not to be
    had, with the problem of each rank that had one; no entry for what is there.
    """

    memory: SymmetricMemory | None
    why_not: dict[str, str]

    @classmethod
    def nothing(cls, reason: str) -> SetUp:
        return cls(None, {"p2p": reason, "multimem": f"no peer memory: {reason}"})


# Uses the region it is given as kernels will (multicast if it has it) and raises if a value is wrong. It waits for
# other ranks through the exchange it is given, or with a deadline of its own that is no longer than that one's. It
# returns when the device has finished.
SmokeTest = Callable[[SymmetricMemory, Exchange], None]


def prove(
    exchange: Exchange,
    memory: SymmetricMemory,
    why_not: dict[str, str],
    smoke: SmokeTest | None,
    retry_wait_s: float = RETRY_WAIT_S,
) -> SetUp:
    """Collective: the last step of a provider. A region that fails the smoke test loses multicast, then everything."""
    while smoke is not None:
        what = f"smoke test of {'multicast' if memory.multicast else 'peer memory'}"
        inner = exchange.scope(what)
        votes = together(exchange, what, lambda inner=inner: _smoke(memory, inner, smoke), retries=0)
        if not votes.problems:
            break
        reason = f"{what}: {votes.text}"
        if not memory.multicast:
            memory.close()
            return SetUp.nothing(reason)
        memory.drop_multicast()
        why_not = {**why_not, "multimem": reason}
        # A smoke test that timed out has left its abort word, and the next one would end at once.
        if problem := _clear(exchange, memory, "zeroes after the smoke test", retry_wait_s):
            return problem
    return _clear(exchange, memory, "zeroes in the region", retry_wait_s) or SetUp(memory, why_not)


def _clear(exchange: Exchange, memory: SymmetricMemory, what: str, wait_s: float) -> SetUp | None:
    """Collective: zeroes the region on every rank. Where one cannot, closes it and answers with nothing."""
    votes = together(exchange, what, memory.holder.clear, wait_s=wait_s)
    if not votes.problems:
        return None
    memory.close()
    return SetUp.nothing(f"the region cannot be written: {votes.text}")


def _smoke(memory: SymmetricMemory, inner: Exchange, smoke: SmokeTest) -> None:
    try:
        smoke(memory, inner)
    except BaseException as error:
        inner.leave(describe(error))
        raise

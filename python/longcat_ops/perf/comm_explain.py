"""Why a collective runs as it does, and how long that should take on each device, without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ..errors import LongcatShapeError, message
from . import comm
from .devices import by_name
from .model import Band, digits

EXPLAINED = ("H800", "H100", "H200")
SUMMED = ("bfloat16", "float16", "float32")  # dtypes that the switch and the loop over peers add
BYTES = dict.fromkeys(SUMMED[:2], 2) | {"float32": 4, "int32": 4, "int64": 8, "int8": 1, "uint8": 1, "float8_e4m3fn": 1}


@dataclass(frozen=True)
class Expected:
    """One device, in us. bound: at the peak of NVLink; nothing can be faster. ring: the bytes of NCCL's ring alone, at
    the rate at which `band` is kind, without NCCL's own fixed cost. band: of our kernel; predicted, not measured.
    """

    device: str
    bound: float
    ring: float
    band: Band

    def __str__(self) -> str:
        limit = f" ({self.band.bound})"
        return f"{self.device} {self.band} us{limit}; at least {digits(self.bound)}, a ring's bytes {digits(self.ring)}"


@dataclass(frozen=True)
class CommExplanation:
    """One collective. `str()` of it is a report. parts: bytes of each rank. why: reasons for what was chosen. why_not:
    reasons against the rest. bytes_in_flight: of loads from other ranks that a rank waits for at once; 0 if none.
    """

    collective: str
    parts: tuple[float, ...]
    config: comm.Config
    why: tuple[str, ...]
    why_not: tuple[str, ...]
    traffic: comm.Traffic
    bytes_in_flight: int
    expected: tuple[Expected, ...]

    def __str__(self) -> str:
        c, t = self.config, self.traffic
        lines = [f"{self.collective} of {sum(self.parts):,.0f} bytes on {len(self.parts)} ranks"]
        launch = f"{c.blocks} blocks x {c.threads} threads x {c.packs} packs of {comm.PACK} bytes"
        flight = f", {self.bytes_in_flight:,} bytes of loads in flight on a rank" * (self.bytes_in_flight > 0)
        lines += [f"  {c.form} by {c.policy}: {launch}{flight}"]
        lines += [f"  {text}" for text in self.why]
        lines += [f"  not {text}" for text in self.why_not]
        lines += [f"  symmetric memory for it: {c.scratch_bytes:,} bytes a rank"]
        lines += [f"  the busiest GPU sends {t.sent:,.0f} bytes and receives {t.received:,.0f}"]
        return "\n".join([*lines, *(f"  predicted, not measured: {one}" for one in self.expected)])


def explain(collective: str, size: int | Sequence[int], *, ranks: int = comm.MAX_RANKS,
            rows: Sequence[int] | None = None, dtype: object = "bfloat16", device: str = "H100",
            multicast: bool = True, deterministic: bool = False, staged: bool = False, blocks: int | None = None,
            threads: int | None = None, ll_bytes: int | None = None) -> CommExplanation:  # fmt: skip
    """How `collective` would run. size: bytes, or the shape, of the whole tensor: what an all-reduce or a broadcast
    takes, a reduce-scatter reads, an all-gather writes. rows: of each rank, for a shape; None: even. dtype: torch's, or
    its name. device: whose limit of the low-latency form holds, unless ll_bytes says it. The rest: as in `comm.choose`.

    Raises:
        LongcatShapeError: an argument is out of range, or rows do not fit the shape.
        LongcatUnsupportedError: the table of devices does not have this one, or it has no NVLink switch.
    """
    name = str(dtype).removeprefix("torch.")
    _require("collective", collective, collective in comm.COLLECTIVES, f"one of {', '.join(comm.COLLECTIVES)}")
    copies = collective in ("all_gather", "broadcast")
    known = tuple(BYTES) if copies else SUMMED
    _require("dtype", name, name in known, f"one of {', '.join(known)}")
    _require("ranks", ranks, 1 <= ranks <= comm.MAX_RANKS, f"1 .. {comm.MAX_RANKS}")
    parts = _parts(collective, size, rows, ranks, BYTES[name])
    nbytes, limit = round(sum(parts)), ll_bytes
    if limit is None:
        limit = comm.ll_limit(ranks, by_name(device), multicast and not deterministic)
    config = comm.choose(collective, ranks, nbytes, largest_part=-int(-max(parts) // 1), multicast=multicast,
                         deterministic=deterministic, staged=staged, blocks=blocks, threads=threads,
                         ll_bytes=limit)  # fmt: skip
    why, why_not = _form_reasons(collective, config, nbytes, limit)
    more_why, more_not = _policy_reasons(config, ranks, multicast, deterministic)
    block_text = "as asked" if blocks else f"default at {ranks} ranks: fewer ranks, more loads of a shard in flight"
    per_thread = config.packs if config.policy == "multimem" else comm.UNKIND.peer_loads
    waits = config.form == "two-shot" or collective == "reduce_scatter"
    return CommExplanation(
        collective=collective,
        parts=parts,
        config=config,
        why=(why, *more_why, f"{config.blocks} blocks: {block_text}"),
        why_not=(*why_not, *more_not),
        traffic=comm.traffic(collective, config.form, config.policy, parts),
        bytes_in_flight=waits * config.blocks * config.threads * per_thread * comm.PACK,
        expected=tuple(expected(collective, config, parts, name) for name in EXPLAINED),
    )


def expected(collective: str, config: comm.Config, parts: Sequence[float], device_name: str) -> Expected:
    """Times of a configuration on a device of `perf.DEVICES`."""
    device = by_name(device_name)
    ring = 1e6 * comm.ring(collective, parts) / comm.rates(device)[0]
    band = comm.predict(collective, config, parts, device)
    return Expected(device_name, comm.bound(collective, parts, device), ring, band)


def _parts(collective: str, size: int | Sequence[int], rows: Sequence[int] | None, ranks: int,
           element_bytes: int) -> tuple[float, ...]:  # fmt: skip
    if rows is None:
        sizes = (size,) if isinstance(size, int) else tuple(size)
        _require("size", size, min(sizes, default=0) >= 0, "bytes, at least 0, or a shape without negative sizes")
        return comm.even(size if isinstance(size, int) else prod(sizes) * element_bytes, ranks)
    _require("rows", rows, collective in ("reduce_scatter", "all_gather"),
             f"None, since {collective} has no rows of a rank")  # fmt: skip
    _require("size", size, not isinstance(size, int) and len(size) > 0, "a shape, since rows are given")
    shape = tuple(size) if not isinstance(size, int) else ()
    fits = len(rows) == ranks and min(rows) >= 0 and sum(rows) == shape[0]
    _require("rows", list(rows), fits, f"{ranks} numbers from 0 up that add up to {shape[0]}, the rows of the shape")
    return tuple(float(n * prod(shape[1:]) * element_bytes) for n in rows)


def _form_reasons(collective: str, config: comm.Config, nbytes: int, limit: int) -> tuple[str, tuple[str, ...]]:
    if not collective.startswith("all_reduce"):
        why = "direct: one phase, to reduce own rows or to store them to all"
        return why, ("low latency: not every rank hears from all, so one could get two steps ahead of the slots",)
    if config.form == "low latency":
        why = f"low latency: {nbytes:,} bytes are no more than {limit:,}, and it saves both barriers"
        return why, ("two-shot: its two barriers cost more than the flags and copies of so few bytes",)
    why = "two-shot: each rank reduces a shard and stores it to all at the same time, so both directions work at once"
    if nbytes == 0:
        return why, ("low latency: without bytes no rank would hear from another",)
    if config.policy == "peers":
        why = "two-shot: each rank reduces a shard in the order of the ranks, then stores it to each"
    if limit == 0:
        return why, ("low latency: it was turned off",)
    return why, (f"low latency: {nbytes:,} bytes are more than {limit:,}; its lines move 2 N S",)


def _policy_reasons(config: comm.Config, ranks: int, multicast: bool,
                    deterministic: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:  # fmt: skip
    if config.policy == "multimem":
        return ("multimem: the switch adds and copies",), ("peers: nobody asked for the same bits in every run",)
    if not multicast:
        reason = "the ranks have no multicast memory"
    elif deterministic:
        reason = "deterministic was asked for, and the switch adds in an order of its own"
    else:
        reason = f"with {ranks} ranks the switch would send own data back and save nothing"
    return ("peers: sums in the order of the ranks",), (f"multimem: {reason}",)


def _require(argument: str, got: object, holds: bool, expected: str) -> None:
    if not holds:
        raise LongcatShapeError(message("explain", argument, repr(got), expected))

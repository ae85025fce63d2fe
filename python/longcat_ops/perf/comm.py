"""Collectives of GPUs behind one NVLink switch: what they move, how the library runs them, how long that should take.

S is the whole tensor in bytes, N the number of ranks. The switch can add (`multimem.ld_reduce`) and copy
(`multimem.st`), but it always pulls the reader's own copy and echoes the writer's own store. Bytes of one GPU, sent and
received (NVIDIA/nccl issue 1083; counters in NVIDIA's developer forum, topic 356726):

    two-shot all-reduce     S + S/N             S/N + S
    reduce-scatter          S                   its rows
    all-gather              its rows            S
    broadcast               S (the root)        S
    low latency             2 S                 2 N S          each 4 bytes of data with 4 bytes of flag
    the same by peers       (N-1)/N of every byte goes once to each reader; a ring moves 2 S (N-1)/N in an all-reduce

A reduce-scatter uses one direction and an all-gather the other, so one after the other they cost 2 S, more than a ring.
Only a two-shot kernel that reduces and stores at the same time gets below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .. import _library
from ..errors import LongcatShapeError, LongcatUnsupportedError, message
from . import model
from .devices import Device
from .model import Band

# Names in the order of the enumerations in cuda/comm/config.h.
COLLECTIVES = ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "all_reduce_residual_rmsnorm")
FORMS = ("low latency", "two-shot", "direct")
POLICIES = ("multimem", "peers")

MAX_RANKS = 8
PACK = 16  # bytes that one instruction moves
MOST_SCRATCH = 2**20  # bytes of symmetric memory for the low-latency form, at most


@dataclass(frozen=True)
class Config:
    """How a collective runs, as `choose_comm_config` in C++ decides: the same on every rank.

    form, policy: of FORMS and POLICIES. threads: of a block. packs: of 16 bytes, that a thread loads before it stores
    the first. shard_packs: of the rank that has the most to do. scratch_bytes: of symmetric memory on each rank.
    """

    form: str
    policy: str
    blocks: int
    threads: int
    packs: int
    shard_packs: int
    scratch_bytes: int


@dataclass(frozen=True)
class Constants:
    """The constants of one end of a band, beside those of `model` and the device's wire rate; us, for a CUDA graph.

    low_latency_us, direct_us, two_shot_us: what a collective takes beyond its bytes. latency_us: of a load from other
    ranks while the wires are busy. peer_loads: loads of 16 bytes that a thread has in flight in a loop over peers.
    """

    low_latency_us: float
    direct_us: float
    two_shot_us: float
    latency_us: float
    peer_loads: int


# low_latency_us: 2.3 is an all-reduce of 8 bytes by NCCL's symmetric kernels, tuned, on 8 H800 or H200 (nccl issue
#   1940); 5.9 one of 2 KB by MSCCL++ in a graph (SGLang pull request 22734).
# direct_us: NCCL's symmetric all-gathers of 2 to 32 MiB and reduce-scatters of 2 and 8 MiB leave 4.6 to 6.1 beyond
#   their bytes at 370 GB/s (Megatron-LM pull request 5596).
# two_shot_us: no less than those; MSCCL++ in a graph leaves 10.8 at 1 MiB (SGLang pull request 22734).
# latency_us: 2 is assumed in every public account; peer_loads: all or half of what 64 registers allow. Not measured.
KIND = Constants(2.3, 4.6, 4.6, 1.5, 8)
UNKIND = Constants(5.9, 6.1, 10.8, 2.5, 4)


@dataclass(frozen=True)
class Traffic:
    """Bytes of the busiest GPU: sent and received over NVLink, and issued, which its own instructions move."""

    sent: float
    received: float
    issued: float

    @property
    def wire(self) -> float:
        """Both directions work at once, so the busier one counts."""
        return max(self.sent, self.received)


def choose(collective: str, ranks: int, nbytes: int, *, largest_part: int | None = None, multicast: bool = True,
           deterministic: bool = False, staged: bool = False, blocks: int | None = None, threads: int | None = None,
           ll_bytes: int | None = None) -> Config:  # fmt: skip
    """The configuration for a tensor of nbytes, of which one rank has at most largest_part (None: even parts).

    multicast: all ranks have it. deterministic: sums in the order of the ranks. staged: the tensor is not symmetric, so
    it goes through scratch. blocks, threads of a block: None for the default. ll_bytes: the largest message of the
    low-latency form, as from `ll_limit`; None for 16 KiB, the least limit of any device; 0 for never.

    Raises:
        LongcatShapeError: a value is out of range.
    """
    _require("collective", collective, collective in COLLECTIVES, f"one of {', '.join(COLLECTIVES)}")
    _require("ranks", ranks, 1 <= ranks <= MAX_RANKS, f"1 .. {MAX_RANKS}")
    _require("nbytes", nbytes, nbytes >= 0, "at least 0")
    _require("largest_part", largest_part, 0 <= (largest_part or 0) <= nbytes, f"0 .. nbytes, {nbytes}")
    _require("blocks", blocks, blocks is None or blocks >= 1, "at least 1")
    _require("threads", threads, threads is None or (32 <= threads <= 1024 and threads % 32 == 0),
             "a multiple of 32 in 32 .. 1024")  # fmt: skip
    _require("ll_bytes", ll_bytes, ll_bytes is None or ll_bytes >= 0, "at least 0")
    found = _library.load().comm_config(COLLECTIVES.index(collective), ranks, nbytes, largest_part, multicast,
                                        deterministic, staged, blocks, threads, ll_bytes)  # fmt: skip
    return Config(**(found | {"form": FORMS[found["form"]], "policy": POLICIES[found["policy"]]}))


def _require(argument: str, got: object, holds: bool, expected: str) -> None:
    if not holds:
        raise LongcatShapeError(message("perf.comm", argument, repr(got), expected))


def traffic(collective: str, form: str, policy: str, parts: Sequence[float], stored: float | None = None) -> Traffic:
    """What a collective moves. parts: bytes of each rank, all together S. stored: bytes that a two-shot stores to all;
    None for S, and for 2 S where a norm follows: its output and the new residual.
    """
    ranks, whole, most, least = len(parts), sum(parts), max(parts), min(parts)
    others = ranks - 1
    if stored is None:
        stored = 2 * whole if collective == "all_reduce_residual_rmsnorm" else whole
    if policy == "multimem":
        if form == "low latency":
            return Traffic(2 * whole, 2 * ranks * whole, 2 * ranks * whole)
        if form == "two-shot":
            return Traffic(whole + stored / ranks, whole / ranks + stored, (whole + stored) / ranks)
        return {
            "reduce_scatter": Traffic(whole, most, most),
            "all_gather": Traffic(most, whole, most),
            "broadcast": Traffic(whole, whole, whole),
        }[collective]
    if form == "low latency":
        return Traffic(2 * others * whole, 2 * others * whole, 2 * others * whole)
    if form == "two-shot":
        moved = (whole + stored) * others / ranks
        return Traffic(moved, moved, moved)
    return {
        "reduce_scatter": Traffic(whole - least, others * most, others * most),
        "all_gather": Traffic(others * most, whole - least, others * most),
        "broadcast": Traffic(others * whole, whole if others else 0, others * whole),
    }[collective]


def even(nbytes: float, ranks: int) -> tuple[float, ...]:
    """Equal parts."""
    return (nbytes / ranks,) * ranks


def ring(collective: str, parts: Sequence[float]) -> float:
    """Bytes each way of one GPU in NCCL's ring. An uneven reduce-scatter is padded to the most rows, as NCCL has none;
    an uneven all-gather is a group of broadcasts (NCCL's AllGatherV).
    """
    others, whole = len(parts) - 1, sum(parts)
    if collective == "reduce_scatter":
        return others * max(parts)
    if collective == "all_gather":
        return whole - min(parts)
    return (whole if others else 0) if collective == "broadcast" else 2 * whole * others / len(parts)


def bound(collective: str, parts: Sequence[float], device: Device) -> float:
    """us that the data sheet's NVLink needs at least, by the form that moves least. Who reports less measures wrong."""
    form = "two-shot" if collective.startswith("all_reduce") else "direct"
    whole = sum(parts)  # a fused norm must bring its output to all, its residual may stay
    moved = [traffic(collective, form, policy, parts, whole).wire for policy in POLICIES]
    return 2e6 * min(moved) / device.nvlink.value


def rates(device: Device) -> tuple[float, float]:
    """bytes/s each way that collectives reach, kind and unkind. Raises LongcatUnsupportedError without a switch."""
    if device.wire_high is None or device.wire_low is None:
        known = "a device behind an NVLink switch: H100, H800, H200, H20, GH200"
        raise LongcatUnsupportedError(message("perf.comm", "device", repr(device.name), known))
    return device.wire_high.value, device.wire_low.value


def limits(collective: str, config: Config, parts: Sequence[float], rate: float, c: Constants, sm_rate: float,
           stored: float | None = None) -> dict[str, float]:  # fmt: skip
    """us that each part needs, for one set of constants. By Little's law, a rank reduces no faster than its loads in
    flight over their latency: blocks x threads x packs of 16 bytes. Stores wait for nobody.
    """
    moved = traffic(collective, config.form, config.policy, parts, stored)
    found = {"wire": 1e6 * moved.wire / rate, "instructions of the SMs": 1e6 * moved.issued / (config.blocks * sm_rate)}
    if config.form != "low latency" and collective not in ("all_gather", "broadcast"):
        loads, at_once = config.shard_packs, config.packs
        if config.policy == "peers":
            loads, at_once = loads * (len(parts) - 1), c.peer_loads
        found["loads in flight"] = c.latency_us * loads / (config.blocks * config.threads * at_once)
    return found


def predict(collective: str, config: Config, parts: Sequence[float], device: Device,
            stored: float | None = None) -> Band:  # fmt: skip
    """The time of one collective in a CUDA graph, with all ranks ready; not measured."""
    ends, names = [], []
    for c, other, rate in zip((KIND, UNKIND), (model.KIND, model.UNKIND), rates(device), strict=True):
        found = limits(collective, config, parts, rate, c, other.sm_bytes_per_s, stored)
        fixed = {"low latency": c.low_latency_us, "two-shot": c.two_shot_us, "direct": c.direct_us}[config.form]
        ends.append(fixed + max(found.values()))
        names.append(max(found, key=found.__getitem__) if max(found.values()) > fixed else "fixed cost")
    return Band(*ends, " or ".join(dict.fromkeys(names)))


def ll_limit(ranks: int, device: Device, multicast: bool = True) -> int:
    """Bytes up to which the low-latency form takes an all-reduce: the largest power of two at which both ends of its
    band lie below those of the two-shot, and whose scratch stays within 1 MiB. It is at least 1 KiB.
    """
    limit = 1024
    while ranks > 1:
        size = 2 * limit
        low_latency, two_shot = (
            choose("all_reduce", ranks, size, multicast=multicast, ll_bytes=most) for most in (size, 0)
        )
        ends = [predict("all_reduce", one, even(size, ranks), device) for one in (low_latency, two_shot)]
        if low_latency.scratch_bytes > MOST_SCRATCH or ends[0].low > ends[1].low or ends[0].high > ends[1].high:
            break
        limit = size
    return limit

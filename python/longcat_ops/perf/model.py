"""From counts to time: that of the slowest part of a device for a launch, plus the cost of the launch itself.

Each prediction is a band. Its ends come from two sets of constants, one kind to the kernels and one unkind. Both come
from published measurements of other kernels, or are assumed; none has been measured on ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from .devices import Device

SMEM_BYTES_PER_CLOCK = 128  # of one SM: 32 banks of 4 bytes
ISSUES_PER_CLOCK = 4  # instructions of one SM: a scheduler for each quarter


@dataclass(frozen=True)
class Counts:
    """What one launch has to do, on any device; 0 for work that it does not do, or that is not counted.

    bytes: of memory, each once. flops: of its products. l2_bytes: what all blocks fetch together. l2_shared: what
    blocks get by multicast, without a fetch of their own. sm_bytes, sm_flops, sm_smem_bytes: what the busiest SM
    fetches, multiplies (padding included) and reads from shared memory. product_waits: instructions of one warp for
    which the products of the busiest SM wait. issued: instructions of all warps. serial: instructions of one warp that
    everything waits for. pieces: blocks that share a tile, as with split_k. bf16: of what
    the products are, else of e4m3.
    """

    name: str
    bytes: float = 0
    flops: float = 0
    l2_bytes: float = 0
    l2_shared: float = 0
    sm_bytes: float = 0
    sm_flops: float = 0
    sm_smem_bytes: float = 0
    product_waits: float = 0
    issued: float = 0
    serial: float = 0
    pieces: int = 1
    bf16: bool = False


@dataclass(frozen=True)
class Constants:
    """The constants of one end of a band. Shares are of a device's peak.

    alone_us: launch, first bytes and tail of a launch that waits for the one ahead of it. follows_us: the same for one
    that overlaps with it. cluster_us: barriers of blocks that share a tile, and the transfer of its last sums.
    serial_clocks: per instruction, in a warp that waits for each one. l2_high: True takes the high end of the device's
    L2 rates, and a multicast leaves L2 once; False takes the low end, and it leaves L2 once for each block.
    """

    memory_share: float
    fp8_share: float
    clock_share: float
    l2_high: bool
    sm_bytes_per_s: float
    serial_clocks: float
    alone_us: float
    follows_us: float
    cluster_us: float


# memory_share: 0.94 and 0.75; between them lie copies on an H100 and an H200 (0.90), reads on an H100 (0.82) and
#   DeepGEMM's masked products on an H100 (0.85 and 0.77, pull request 192).
# fp8_share: 0.81 is 1600 TFLOPS of an H100 SXM, more than any published FP8 product with scales of 128 (1550); 0.61 is
#   1200, a device at its power limit. The same shares of bf16's peak, for want of figures.
# sm_bytes_per_s: by TMA, from times of fish-scales-ops on an H200 with 32 to 64 blocks.
# alone_us: fish-scales-ops on an H200 leaves 2.5 a launch beyond its bytes in a chain of five, 4 in one cold product;
#   1.5 is two trips to memory. follows_us: from one trip to memory to that 2.5, as if nothing overlapped.
KIND = Constants(0.94, 0.81, 1.0, True, 120e9, 1.0, 1.5, 0.7, 0.3)
UNKIND = Constants(0.75, 0.61, 0.75, False, 80e9, 2.5, 4.0, 2.5, 1.0)


@dataclass(frozen=True)
class Band:
    """Microseconds, from `low` to `high`. bound: what limits both ends, or the low and the high one."""

    low: float
    high: float
    bound: str = ""

    @property
    def middle(self) -> float:
        """For a page that has room for one number."""
        return (self.low + self.high) / 2

    def __contains__(self, us: float) -> bool:
        return self.low <= us <= self.high

    def __add__(self, other: Band) -> Band:
        """One after the other; the sum has no bound."""
        return Band(self.low + other.low, self.high + other.high)

    def __str__(self) -> str:
        return f"{digits(self.low)} .. {digits(self.high)}"


def digits(us: float) -> str:
    """Two digits below 100, whole numbers above: more than a prediction is worth."""
    return f"{us:.1f}" if us < 9.95 else f"{us:.0f}"


def limits(counts: Counts, device: Device, c: Constants) -> dict[str, float]:
    """Microseconds that each part of the device needs, for one set of constants."""
    sms, clock = device.sms.value, c.clock_share * device.clock.value
    l2 = (device.l2_high if c.l2_high else device.l2_low).value
    fetched = counts.l2_bytes + (0 if c.l2_high else counts.l2_shared)
    waits = counts.product_waits * c.serial_clocks / clock
    peak = c.fp8_share * (device.bf16 if counts.bf16 else device.fp8).value
    seconds = {
        "memory": counts.bytes / (c.memory_share * device.memory.value),
        "L2": fetched / l2,
        "loads of an SM": counts.sm_bytes / c.sm_bytes_per_s,
        "tensor cores": max(counts.flops / peak, counts.sm_flops * sms / peak + waits),
        "shared memory": counts.sm_smem_bytes / (SMEM_BYTES_PER_CLOCK * clock),
        "instructions": counts.issued / (ISSUES_PER_CLOCK * sms * clock),
    }
    return {name: 1e6 * value for name, value in seconds.items()}


def predict(launches: Counts | Iterable[Counts], device: Device, overlaps: bool = False) -> Band:
    """The time of launches in a row. overlaps: True if all overlap with what is ahead of them; False if all but the
    first do, as in one op. For a chain of launches that wait for each other, add their predictions.
    """
    counts = (launches,) if isinstance(launches, Counts) else tuple(launches)
    low, high = (sum(_us(one, device, c, overlaps or i > 0) for i, one in enumerate(counts)) for c in (KIND, UNKIND))
    return Band(low, high, _bound(counts, device))


def _us(counts: Counts, device: Device, c: Constants, follows: bool) -> float:
    us = max(limits(counts, device, c).values()) + (c.follows_us if follows else c.alone_us)
    us += 1e6 * counts.serial * c.serial_clocks / (c.clock_share * device.clock.value)
    return us + (c.cluster_us if counts.pieces > 1 else 0)


def _bound(counts: tuple[Counts, ...], device: Device) -> str:
    if len(counts) != 1:
        return ""
    found = [limits(counts[0], device, c) for c in (KIND, UNKIND)]
    names = [max(one, key=one.__getitem__) for one in found]
    return " or ".join(dict.fromkeys(names))


def floor(counts: Counts | Iterable[Counts], device: Device) -> tuple[float, str]:
    """(microseconds, the limit) of bytes and flops at the device's peaks. Not a prediction: nothing can be faster."""
    parts = (counts,) if isinstance(counts, Counts) else tuple(counts)
    memory = 1e6 * sum(one.bytes for one in parts) / device.memory.value
    tensor_cores = 1e6 * sum(one.flops / (device.bf16 if one.bf16 else device.fp8).value for one in parts)
    return max(memory, tensor_cores), "tensor cores" if tensor_cores > memory else "memory"


def constants_by_name() -> dict[str, dict[str, float]]:
    """Both sets, for a file of predictions."""
    return {name: {f.name: getattr(c, f.name) for f in fields(c)} for name, c in (("kind", KIND), ("unkind", UNKIND))}

"""Times that others have published for collectives on Hopper, each with what ran, beside the bound and our band.

"NCCL" alone is NCCL as it comes, with buffers that nobody registered: a ring, or NVLS from 1 or 2 MiB up. "NCCL NVLS"
is its classic kernel through the switch. "NCCL symmetric" has registered windows, since 2.27. The times of different
rows were taken in different ways, some with the launch, so compare within a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from . import comm
from .devices import by_name
from .model import Band

KIB, MIB = 2**10, 2**20
# These move what our forms move, so they test the model's bands.
SAME_WIRE = ("NCCL NVLS", "NCCL symmetric", "torch multimem", "MSCCL++ in a graph")


@dataclass(frozen=True)
class Published:
    """us: of what ran. why: what is known of those of SAME_WIRE that lie outside the band."""

    collective: str
    ranks: int
    nbytes: int
    device: str
    us: Mapping[str, float]
    source: str
    why: str = ""

    @property
    def bound(self) -> float:
        return comm.bound(self.collective, comm.even(self.nbytes, self.ranks), by_name(self.device))

    @property
    def band(self) -> Band:
        """Of our kernel, which is not measured."""
        device = by_name(self.device)
        config = comm.choose(self.collective, self.ranks, self.nbytes, ll_bytes=comm.ll_limit(self.ranks, device))
        return comm.predict(self.collective, config, comm.even(self.nbytes, self.ranks), device)

    @property
    def outside(self) -> tuple[str, ...]:
        """Of SAME_WIRE, by more than the tenth of a us to which small times are published."""
        low, high = self.band.low - 0.05, self.band.high + 0.05
        return tuple(what for what, us in self.us.items() if what in SAME_WIRE and not low <= us <= high)


def _busbw(gb_per_s: float, nbytes: int) -> float:
    """us of an all-reduce at 8 GPUs, from the bus bandwidth that nccl-tests prints."""
    return 1e-3 * nbytes * 1.75 / gb_per_s


def _row(collective: str, ranks: int, nbytes: float, device: str, source: str, why: str = "",
         **us: float) -> Published:  # fmt: skip
    return Published(
        collective, ranks, int(nbytes), device, {NAMES[key]: value for key, value in us.items()}, source, why
    )


NAMES = {
    "nccl": "NCCL", "ring": "NCCL ring", "ll": "NCCL ring/LL, back to back", "nvls": "NCCL NVLS",
    "sym": "NCCL symmetric", "torch": "torch multimem", "two_shot": "torch two-shot by peers",
    "custom": "custom all-reduce",
    "mscclpp": "MSCCL++ in a graph", "graph": "NCCL in a graph", "guess": "NCCL, between its 64 and 128 MiB",
}  # fmt: skip
# Pull requests. vLLM 42324 names its device as SM90, SGLang 22734 names none: taken as an H100 and as H200s.
_MEGATRON, _VLLM, _SGLANG, _CUSTOM = "Megatron-LM 5596", "vLLM 42324", "SGLang 22734", "SGLang 2904, no graph"
_HOPPER6, _HOPPER4 = "vLLM 24111", "vLLM 24532"
_UNKNOWN = "perhaps with the launch"
_PARTLY = "its loads and stores overlap in part"
_RATE = "the kind rate is this one's, its fixed cost included"


def published() -> list[Published]:
    """By collective, then by source."""
    vllm = {  # MiB -> NCCL, torch multimem, torch two-shot
        0.5: (24, 11, 15), 1: (25, 14, 17), 2: (37, 18, 22), 4: (50, 27, 37), 8: (76, 46, 65), 16: (121, 87, 125),
        32: (195, 165, 242), 64: (316, 320, 468), 128: (561, 631, 923),
    }  # fmt: skip
    reduce = "all_reduce"
    return [
        _row(reduce, 8, 8, "H800", "nccl issue 1940, tuned; the same on H200", sym=2.3),
        _row(reduce, 4, KIB, "H800", "nccl issue 1984", ll=3.5),
        _row(reduce, 8, 96 * MIB, "H100", "nccl-tests issue 212, busbw 480", nvls=_busbw(480, 96 * MIB)),
        _row(reduce, 8, 96 * MIB, "H200", "nccl-tests issue 272, busbw 475", nvls=_busbw(475, 96 * MIB)),
        _row(reduce, 8, 96 * MIB, "H800", "nccl issue 1374, busbw 215", nvls=_busbw(215, 96 * MIB)),
        _row(reduce, 8, 96 * MIB, "H100", _VLLM, guess=440),
        *(_row(reduce, 8, mib * MIB, "H100", _VLLM, _PARTLY if mib >= 4 else "", nccl=nccl, torch=torch,
               two_shot=two_shot) for mib, (nccl, torch, two_shot) in vllm.items()),
        _row(reduce, 8, 2 * KIB, "H200", _SGLANG, graph=16.8, mscclpp=5.9),
        _row(reduce, 8, 64 * KIB, "H200", _SGLANG, graph=19.9, mscclpp=8.2),
        _row(reduce, 8, 256 * KIB, "H200", _SGLANG, graph=20.3, mscclpp=10.6),
        _row(reduce, 8, MIB, "H200", _SGLANG, graph=27.0, mscclpp=14.0),
        *(_row(reduce, 8, kib * KIB, "H100", _CUSTOM, custom=us) for kib, us in
          {4: 5.7, 32: 7.8, 256: 16.7, 512: 22.1, 1024: 33.8}.items()),
        _row(reduce, 6, MIB / 2, "H100", _HOPPER6, _UNKNOWN, custom=13, nccl=23, torch=13),
        _row(reduce, 6, MIB, "H100", _HOPPER6, _UNKNOWN, custom=21, nccl=25, torch=16),
        _row(reduce, 6, 4 * MIB, "H100", _HOPPER6, _PARTLY, custom=70, nccl=53, torch=31),
        *(_row(reduce, 4, mib * MIB, "H100", _HOPPER4, _UNKNOWN, sym=us) for mib, us in
          {0.5: 17, 1: 19, 2: 21, 4: 28}.items()),
        *(_row("all_gather", 8, mib * MIB, "H100", _MEGATRON, _RATE if mib == 128 else "", ring=ring, sym=sym)
          for mib, (ring, sym) in {2: (20.2, 10.9), 8: (43.4, 27.4), 32: (118.9, 95.3), 128: (385, 363)}.items()),
        *(_row("reduce_scatter", 8, mib * MIB, "H100", _MEGATRON, ring=ring, sym=sym) for mib, (ring, sym) in
          {2: (18.6, 10.8), 8: (47.0, 28.8), 32: (112.6, 100.5)}.items()),
        _row("reduce_scatter", 8, 128 * MIB, "H100", "nccl issue 1047", ring=377),
    ]  # fmt: skip

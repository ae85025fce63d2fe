"""GPUs, the links between them, and what is reached of a peak, each figure with its source."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..devices import DEVICES, Figure
from ..expert_parallel import NODE, NODE_RATE
from ..model import KIND, UNKIND

GIB = 2**30  # cards are named by it, as drivers report them
HEADROOM = 0.10  # of a card, for workspace, activations and the allocator: an assumption


@dataclass(frozen=True)
class Gpu:
    """memory, wire: bytes/s, the latter of one direction of NVLink, as collectives reach it. fp8, bf16: dense flops/s.
    capacity: bytes. domain: GPUs behind one NVLink switch. price: dollars an hour; None: no source that we know.
    """

    name: str
    memory: Figure
    fp8: Figure
    bf16: Figure
    capacity: Figure
    wire: Figure
    domain: int = NODE
    price: Figure | None = None

    def figures(self) -> dict[str, Figure]:
        found = {name: getattr(self, name) for name in ("memory", "fp8", "bf16", "capacity", "wire", "price")}
        return {name: figure for name, figure in found.items() if figure is not None}


_GB200 = "NVIDIA, GB200 NVL72 data sheet, by 72; sparse flops halved"
_WIRE_GB200 = "900 GB/s a direction by that sheet, times the share of NVLink that the H100 reaches; not measured"
_MARKET = "mercatus-ai.com, cloud GPU pricing, May 2026: the least of its long tail; up to 5 and 7 elsewhere"
_H20 = "no data sheet of NVIDIA is public; as dealers and the press state it"


def _hopper(name: str, gib: int, source: str, price: Figure | None) -> Gpu:
    d = DEVICES[name]
    assert d.wire_low is not None  # of each that is listed here
    return Gpu(name, d.memory, d.fp8, d.bf16, Figure(gib * GIB, source), d.wire_low, price=price)


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        _hopper("H20", 96, _H20, None),
        _hopper("H800", 80, "as the H100 SXM", Figure(2.0, "the report (arXiv:2509.01322, section 6) assumes it")),
        _hopper("H100", 80, DEVICES["H100"].memory.source, Figure(1.99, _MARKET)),
        _hopper("H200", 141, DEVICES["H200"].memory.source, Figure(2.5, _MARKET)),
        Gpu("GB200", Figure(8.0e12, _GB200), Figure(5.0e15, _GB200), Figure(2.5e15, _GB200), Figure(186 * GIB, _GB200),
            Figure(900e9 * 309 / 450, _WIRE_GB200), 72,
            Figure(4.54, "spheron.network, 17 March 2026: 9.08 for two GPUs with their Grace")),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Link:
    """rates: (up to so many ranks, bytes/s of dispatch, of combine), ascending; the last one serves all above. own: the
    rates count every row, also those that stay with their rank, as the report does; else only others' rows travel.
    """

    name: str
    rates: tuple[tuple[int, float, float], ...]
    source: str
    own: bool

    def rate(self, ranks: int, combine: bool) -> float:
        found = next((one for one in self.rates if ranks <= one[0]), self.rates[-1])
        return found[1 + combine]

    def us(self, rows: float, row_bytes: float, ranks: int, combine: bool) -> float:
        """us = rows x row_bytes x share / rate; share: 1 where rates count every row, else (ranks - 1) / ranks; on one
        rank nothing travels."""
        if ranks == 1:
            return 0.0
        share = 1.0 if self.own else (ranks - 1) / ranks
        return 1e6 * rows * row_bytes * share / self.rate(ranks, combine)


def flat(name: str, rate: float, source: str, own: bool = True) -> Link:
    """A link with one rate in bytes/s."""
    return Link(name, ((1, rate, rate),), source, own)


RDMA = flat("RDMA", NODE_RATE.value, "the report assumes it; DeepEP's README has 39 at EP128")


def _deepep() -> Link:
    """Rates from published us: 128 tokens of 7168, 8 experts each, 7168 x 33/32 bytes there and twice 7168 back."""
    us = {8: (77, 114), 16: (118, 195), 32: (155, 273), 64: (173, 314), 128: (192, 369), 256: (194, 360)}
    there, back = (1e6 * 128 * 8 * 7168 * each for each in (33 / 32, 2))
    rates = tuple((ranks, there / sent, back / returned) for ranks, (sent, returned) in us.items())
    return Link("DeepEP", rates, "DeepEP's README: its low-latency kernels on H800s, us of dispatch and combine", True)


DEEPEP = _deepep()


def nvlink(gpu: Gpu) -> Link:
    return flat("NVLink", gpu.wire.value, gpu.wire.source, own=False)


def link_of(gpu: Gpu, ranks: int) -> Link:
    """NVLink where one switch reaches all ranks, else RDMA."""
    return nvlink(gpu) if ranks <= gpu.domain else RDMA


LINKS = ("RDMA", "DeepEP", "NVLink")


def link_by_name(name: str, gpu: Gpu) -> Link:
    return {"RDMA": RDMA, "DeepEP": DEEPEP, "NVLink": nvlink(gpu)}[name]


@dataclass(frozen=True)
class Efficiency:
    """Shares of a GPU's peaks: of memory, of the tensor cores in products and, of bf16's, in attention's core.
    slowdown: times the modelled step, fixed_us: more a step, for what no part of the model has."""

    name: str
    source: str
    memory: float = 1.0
    products: float = 1.0
    attention: float = 1.0
    slowdown: float = 1.0
    fixed_us: float = 0.0


FLASH_MLA = Figure(660e12, "FlashMLA's README: decoding on an H800, bound by its tensor cores; the report uses it")
REPORT = Efficiency(
    "report", f"the report: peaks, and FlashMLA's {FLASH_MLA.value / 1e12:.0f} of an H800's 989 TFLOPS in attention",
    attention=FLASH_MLA.value / DEVICES["H800"].bf16.value,
)  # fmt: skip
_BAND = "constants of perf.model, published for other kernels"
EFFICIENCIES = {
    "report": REPORT,
    **{c.name: c for c in (
        Efficiency("kind", _BAND, KIND.memory_share, KIND.fp8_share, KIND.fp8_share),
        Efficiency("unkind", _BAND, UNKIND.memory_share, UNKIND.fp8_share, UNKIND.fp8_share),
    )},
}  # fmt: skip


def with_price(gpu: Gpu, dollars: float) -> Gpu:
    return replace(gpu, price=Figure(dollars, "given"))

"""A deployment: a network on GPUs, and how it decodes there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from ...errors import LongcatShapeError, message
from ..speculation import accepted_length
from .hardware import REPORT, Efficiency, Gpu, Link, link_of
from .network import Network

OVERLAPS = ("none", "tbo", "sbo")
PRECISIONS = {"fp8": 1, "bf16": 2}  # bytes of a weight and of a value on its way to an expert; scales are left out
MOST = {"batch": 1 << 16, "ep": 1 << 16, "context": 1 << 24, "tp": 1 << 10, "drafts": 64}


@dataclass(frozen=True)
class Deployment:
    """ep: GPUs that share the experts. batch: sequences of each. drafts: of a step and sequence, each accepted with
    probability `acceptance` if those before it were. context: rows of the cache that a token attends to. precision: of
    products and dispatch; attention_precision: of attention's projections, None for the same. overlap: none; tbo, two
    micro-batches; sbo, the shortcut (None: sbo where the network has one, else tbo). zero_aware: choices of zero
    experts do not travel. ffn_experts: of a token in the mean; None for the network's. tp: GPUs that share attention's
    heads. link: None for NVLink within a domain, else RDMA. attention_factor: times the modelled attention.
    """

    network: Network
    gpu: Gpu
    ep: int = 128
    batch: int = 96
    drafts: int = 1
    acceptance: float = 0.8
    context: int = 5000
    precision: str = "fp8"
    attention_precision: str | None = None
    overlap: str | None = None
    zero_aware: bool = True
    ffn_experts: float | None = None
    tp: int = 1
    link: Link | None = None
    efficiency: Efficiency = REPORT
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        net = self.network
        for name, most in MOST.items():
            least = 0 if name == "drafts" else 1
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            require(name, value, whole and least <= value <= most, f"an integer in {least} .. {most}")
        accepted_length(self.acceptance, self.drafts)
        require("ep", self.ep, net.experts % self.ep == 0, f"one of {_listed(divisors(net.experts))}: they divide the "
                 f"{net.experts} experts of {net.name}")  # fmt: skip
        heads = net.attention.heads
        require("tp", self.tp, heads % self.tp == 0, f"one of {_listed(divisors(heads))}: they divide {heads} heads")
        for name in ("precision", "attention_precision"):
            value = getattr(self, name)
            legal = value in PRECISIONS or (value is None and name != "precision")
            require(name, repr(value), legal, " or ".join(PRECISIONS))
        legal_overlaps = [one for one in OVERLAPS if one != "sbo" or net.shortcut]
        why = "" if net.shortcut else f": {net.name} has no shortcut that experts could run beside"
        require("overlap", repr(self.overlap), self.overlap in (None, *legal_overlaps),
                 f"one of {', '.join(legal_overlaps)}{why}")  # fmt: skip
        tbo = self.hiding == "tbo"
        require("batch", self.batch, not tbo or self.batch > 1, "2 or more: two micro-batches share it (overlap tbo)")
        count, most = self.ffn_experts, min(net.choices, net.experts)
        require("ffn_experts", count, count is None or 0 <= count <= most, f"0 .. {most} of a token")
        require("attention_factor", self.attention_factor, self.attention_factor > 0, "more than 0")
        tail = f"at most {self.gpu.domain} GPUs behind one switch; RDMA reaches further"
        require("ep", self.ep, self.path.name != "NVLink" or self.ep <= self.gpu.domain, tail)

    @property
    def hiding(self) -> str:
        return self.overlap or ("sbo" if self.network.shortcut else "tbo")

    @property
    def path(self) -> Link:
        return self.link or link_of(self.gpu, self.ep)

    @property
    def tokens(self) -> int:
        """Of a GPU in the target's pass."""
        return self.batch * (1 + self.drafts)

    @property
    def rows(self) -> float:
        """FFN experts of a token."""
        return self.network.ffn_experts if self.ffn_experts is None else self.ffn_experts


@cache
def divisors(number: int) -> tuple[int, ...]:
    return tuple(i for i in range(1, number + 1) if number % i == 0)


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))


def require(argument: str, got: object, legal: bool, expected: str) -> None:
    """Raises LongcatShapeError for a value that is not legal."""
    if not legal:
        raise LongcatShapeError(message("perf-model", argument, got, expected))

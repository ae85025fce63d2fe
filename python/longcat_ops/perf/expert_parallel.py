"""What experts on several ranks send to each other in a layer, and how long that should take.

A rank has T tokens, each with K choices, of which `real` in the mean are FFN experts, all different, spread evenly over
N experts and R ranks. Dispatch sends a row of the payload for a choice to the rank of its expert, combine a row of bf16
back. Three forms:

    every choice       also those of zero experts, as where nobody tells them apart
    FFN choices        what this library does: nothing of a zero expert travels
    one copy a rank    a token once to each rank that has experts of it, and one partial sum back

The third moves least. We do not do it: a rank would round its partial sum to bf16, the source would add up to R of them
and round again, so a result had two roundings in place of one, and its bits would depend on which experts share a rank.
Dispatch alone could, as its rows are copies; but each receiver would then copy them to its experts' rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from ..errors import LongcatShapeError, message
from . import comm, model
from .devices import Device, Figure
from .dispatch import CHOICES, EXPERTS, HIDDEN, REAL
from .model import Band
from .products import fp8_row

FORMS = ("every choice", "FFN choices", "one copy a rank")
OURS = FORMS[1]
PAYLOADS = ("fp8", "bf16")
NODE = 8  # ranks behind one NVLink switch
NODE_RATE = Figure(
    40e9, "a GPU's share of 400 Gb/s; by its README, DeepEP's low-latency kernels get 48, 43, 39 at EP32, 64, 128"
)
LINE_BYTES = 8  # of one expert's count and its tag
HOST_READS = {"local": 0, "nvl": 0, "torch": 1, "deepep": 1}  # of a dispatch, by backend


class Bytes(NamedTuple):
    """Of one rank and layer."""

    dispatch: float
    combine: float

    @property
    def both(self) -> float:
        return self.dispatch + self.combine


@dataclass(frozen=True)
class Layer:
    """One layer of one rank out of `ranks`, each with `tokens` tokens. real: FFN experts of a token, as if each had as
    many. node: ranks behind one switch."""

    tokens: int
    ranks: int
    hidden: int = HIDDEN
    experts: int = EXPERTS
    choices: int = CHOICES
    real: float = REAL
    payload: str = PAYLOADS[0]
    node: int = NODE

    @property
    def row(self) -> Bytes:
        """One row there, in the payload, and one back, in bf16."""
        return Bytes(fp8_row(self.hidden) if self.payload == "fp8" else 2 * self.hidden, 2 * self.hidden)

    @property
    def nodes(self) -> int:
        return ceil(self.ranks / self.node)

    def distinct(self, places: int) -> float:
        """Of `places` that share the experts evenly, those with an expert of a token, in the mean."""
        below = int(self.real)
        low, high = (places * (1 - self._elsewhere(places, count)) for count in (below, below + 1))
        return low + (self.real - below) * (high - low)

    def _elsewhere(self, places: int, choices: int) -> float:
        """How likely none of so many different experts is at one of the places."""
        own, probability = self.experts / places, 1.0
        for i in range(min(choices, self.experts)):
            probability *= max(0.0, self.experts - own - i) / (self.experts - i)
        return probability

    def rows(self, form: str = OURS, between_nodes: bool = False) -> float:
        """Rows that leave the rank for others, or, with a copy for each node in the third form, its node for others."""
        places = self.nodes if between_nodes else self.ranks
        copies = {FORMS[0]: self.choices, FORMS[1]: self.real, FORMS[2]: self.distinct(places)}[form]
        return self.tokens * copies * (1 - 1 / places)

    def sent(self, form: str = OURS, between_nodes: bool = False) -> Bytes:
        rows = self.rows(form, between_nodes)
        return Bytes(rows * self.row.dispatch, rows * self.row.combine)

    @property
    def saved(self) -> Bytes:
        """What is not sent to other ranks because zero experts are known."""
        naive, ours = self.sent(FORMS[0]), self.sent()
        return Bytes(naive.dispatch - ours.dispatch, naive.combine - ours.combine)

    @property
    def saved_a_token(self) -> float:
        """Bytes of a token's zero experts there and back, wherever they would lie."""
        return (self.choices - self.real) * self.row.both

    def between_nodes_us(self, form: str = OURS) -> Bytes:
        """us of the bytes that leave a node, at NODE_RATE; no fixed cost."""
        return Bytes(*(1e6 * nbytes / NODE_RATE.value for nbytes in self.sent(form, between_nodes=True)))

    def predicted(self, device: Device, form: str = OURS) -> tuple[Band, Band]:
        """Dispatch and combine behind one switch, in a CUDA graph, with all ranks ready; not measured.

        Raises:
            LongcatShapeError: there is one rank, or several nodes.
            LongcatUnsupportedError: the device has no switch.
        """
        if not 1 < self.ranks <= self.node:
            raise LongcatShapeError(message("perf.expert_parallel", "ranks", self.ranks, f"2 .. {self.node}"))
        return tuple(_band(self, device, form, combine) for combine in (False, True))


def as_reported(layer: Layer) -> Bytes:
    """us of dispatch and combine as the report's table seems to have them (arXiv:2509.01322, table 7: 236 and 472 at
    192 tokens): every row to another node, e4m3 without scales there, bf16 back."""
    rows = layer.tokens * layer.real
    return Bytes(*(1e6 * rows * bytes_of * layer.hidden / NODE_RATE.value for bytes_of in (1, 2)))


def fixed_us(combine: bool, c: comm.Constants, launch: model.Constants) -> dict[str, float]:
    """us beyond the bytes. Each launch waits for the one ahead: none of these kernels starts early."""
    parts = {"push": launch.alone_us, "flags": c.latency_us, "wait": launch.alone_us}
    return parts if combine else {"counts": c.low_latency_us, **parts}


def _band(layer: Layer, device: Device, form: str, combine: bool) -> Band:
    """NOTE: memory is left out: it takes less than half of the wire's time, even where one other rank has half of the
    rows."""
    lines = 0 if combine else LINE_BYTES * (layer.experts + 1) * (layer.ranks - 1)
    nbytes, ends, names = layer.sent(form)[combine] + lines, [], []
    for c, launch, rate in zip((comm.KIND, comm.UNKIND), (model.KIND, model.UNKIND), comm.rates(device), strict=True):
        wire, fixed = 1e6 * nbytes / rate, sum(fixed_us(combine, c, launch).values())
        ends.append(fixed + wire)
        names.append("fixed cost" if fixed > wire else "wire")
    return Band(*ends, " or ".join(dict.fromkeys(names)))

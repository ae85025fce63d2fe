"""What expert parallelism would send, and how long that should take, without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import LongcatShapeError, message
from .comm_explain import EXPLAINED
from .devices import DEVICES
from .dispatch import CHOICES, EXPERTS, REAL
from .expert_parallel import FORMS, HOST_READS, NODE, NODE_RATE, OURS, PAYLOADS, Bytes, Layer
from .model import Band, digits
from .step import LAYERS

_MOST_CHOICES = 32  # kMaxTopK of cuda/common/constants.h
_READS = {
    "local": "none",
    "nvl": "none",
    "torch": "1 a dispatch, the counts, so no CUDA graph can hold it",
    "deepep": "1 a dispatch, the counts, so no CUDA graph can hold it",
}


@dataclass(frozen=True)
class Expected:
    """Dispatch and combine of one device behind its switch, in us; predicted, not measured. naive: of every choice."""

    device: str
    dispatch: Band
    combine: Band
    naive: tuple[Band, Band]

    def __str__(self) -> str:
        ours = f"dispatch {self.dispatch} us ({self.dispatch.bound}), combine {self.combine} us ({self.combine.bound})"
        return f"{self.device} {ours}; with zero experts {self.naive[0]} and {self.naive[1]}"


@dataclass(frozen=True)
class ExpertExplanation:
    """One layer of expert parallelism. `str()` of it is a report.

    layer: the sizes. sent: form -> bytes to other ranks. saved: a token's bytes that do not travel; saved_a_layer and
    saved_a_step: those of them that would go to other ranks. expected: of EXPLAINED, where all ranks are behind one
    switch. between_nodes: form -> us of what leaves a node, where there are several. host_reads: backend -> how often a
    dispatch waits for a value on the host.
    """

    layer: Layer
    sent: dict[str, Bytes]
    saved_a_token: float
    saved_a_layer: Bytes
    saved_a_step: float
    expected: tuple[Expected, ...]
    between_nodes: dict[str, Bytes]
    host_reads: dict[str, int]

    def __str__(self) -> str:
        one = self.layer
        lines = [f"expert_parallel: {one.tokens:,} tokens of {one.hidden:,} on each of {one.ranks} ranks, in a layer"]
        lines += [
            f"  {one.experts} FFN experts, {one.experts // one.ranks} a rank; {one.real:g} of {one.choices} choices"
        ]
        lines += [f"  a row of {one.payload}: {one.row.dispatch:,} bytes there, {one.row.combine:,} in bf16 back"]
        for form, sent in self.sent.items():
            rows = f"{one.rows(form):,.0f} rows to other ranks"
            text = f"  {form}{' (ours)' * (form == OURS)}: {rows}"
            lines += [f"{text}, {sent.dispatch:,.0f} bytes there and {sent.combine:,.0f} back"]
        share, others = 100 * (1 - one.real / one.choices), self.saved_a_layer.both
        lines += [
            f"  saved by zero experts: {share:.1f} %, {self.saved_a_token:,.0f} bytes a token and layer;"
            f" to other ranks {others:,.0f} a layer, {self.saved_a_step:,.0f} in {LAYERS} layers",
            f"  not one copy a rank: {one.distinct(one.ranks):.2f} ranks a token, but sums would be rounded twice, and"
            " their bits would depend on the number of ranks",
        ]
        lines += [f"  predicted, not measured: {device}" for device in self.expected]
        lines += [
            f"  between nodes, {form if form != FORMS[2] else 'one copy a node'}: dispatch {digits(us.dispatch)} us,"
            f" combine {digits(us.combine)} us at {NODE_RATE.value / 1e9:g} GB/s a GPU"
            for form, us in self.between_nodes.items()
        ]
        lines += [f"  host reads, {backend}: {_READS[backend]}" for backend in self.host_reads]
        return "\n".join(lines)


def explain(size: Sequence[int], *, ranks: int = NODE, experts: int = EXPERTS, top_k: int = CHOICES,
            real: float = REAL, payload: str = PAYLOADS[0], node: int = NODE) -> ExpertExplanation:  # fmt: skip
    """size: (tokens of a rank, hidden). experts: FFN experts. real: how many of a token's top_k choices are FFN
    experts, in the mean. payload: "fp8" or "bf16". node: ranks behind one switch.

    Raises:
        LongcatShapeError: an argument is out of range.
    """
    numbers = isinstance(size, Sequence) and not isinstance(size, str) and all(isinstance(n, int) for n in size)
    holds = numbers and len(size) == 2 and size[0] >= 0 and size[1] >= 1 and size[1] % 16 == 0
    _require("size", size, holds, "(tokens, hidden), hidden a positive multiple of 16")
    _require("ranks", ranks, isinstance(ranks, int) and ranks >= 1, "at least 1")
    _require("experts", experts, isinstance(experts, int) and experts >= 1 and experts % ranks == 0,
             f"a positive multiple of ranks = {ranks}")  # fmt: skip
    _require("top_k", top_k, isinstance(top_k, int) and 1 <= top_k <= _MOST_CHOICES, f"1 .. {_MOST_CHOICES}")
    most = min(top_k, experts)
    _require("real", real, isinstance(real, int | float) and 0 <= real <= most, f"0 .. {most}, of top_k and experts")
    _require("payload", payload, payload in PAYLOADS, " or ".join(map(repr, PAYLOADS)))
    fits = isinstance(node, int) and node >= 1 and (ranks <= node or ranks % node == 0)
    _require("node", node, fits, f"1 or more that divide ranks = {ranks}, or that hold them all")
    layer = Layer(size[0], ranks, size[1], experts, top_k, real, payload, node)
    return ExpertExplanation(
        layer=layer,
        sent={form: layer.sent(form) for form in FORMS},
        saved_a_token=layer.saved_a_token,
        saved_a_layer=layer.saved,
        saved_a_step=LAYERS * layer.saved.both,
        expected=tuple(_expected(layer, name) for name in EXPLAINED) if 1 < ranks <= node else (),
        between_nodes={form: layer.between_nodes_us(form) for form in FORMS} if layer.nodes > 1 else {},
        host_reads=HOST_READS,
    )


def _expected(layer: Layer, device: str) -> Expected:
    return Expected(device, *layer.predicted(DEVICES[device]), layer.predicted(DEVICES[device], FORMS[0]))


def _require(argument: str, got: object, holds: bool, expected: str) -> None:
    if not holds:
        raise LongcatShapeError(message("explain", argument, repr(got), expected))

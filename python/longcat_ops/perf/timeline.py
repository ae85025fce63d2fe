"""When each stage of one ScMoE layer runs, in a decode step of a deployment with experts on several ranks; modelled.

Two lanes, as two streams of a GPU: computation, and communication with the kernels that its stages launch. Each lane
runs its stages in the order of the list, and a stage begins when its lane is free and everything it needs is there.
Lanes do not slow each other down, all ranks are ready at once, and the host is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import LongcatError, LongcatShapeError, message
from . import attention as latent
from . import comm, dispatch, expert_parallel, layer, model
from .chain import Share
from .devices import Device
from .model import Band
from .step import ACCEPTED, LAYERS, REPORT, Shape

LANES = ("compute", "communication")
MOST = {"sequences": 4096, "rows": 64, "context": 1 << 20}
# us of the LongCat-Flash technical report (arXiv:2509.01322, section 6, table 7) for REPORT on H800s, whose context it
# does not state; and the stages that do the same here. It counts a layer as the sum: all else is hidden.
REPORTED: dict[str, tuple[float, tuple[str, ...]]] = {
    "attention": (264, ("attend_first",)),
    "dispatch": (236, ("send_rows", "receive_rows")),
    "MoE": (60, ("run_local_experts",)),
    "combine": (472, ("send_results", "receive_results")),
}
REPORTED_LAYER = sum(us for us, _ in REPORTED.values())


class Stage(Protocol):
    """What this reads of a declared stage: a name, the values that it needs and gives, and its lane."""

    @property
    def name(self) -> str: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def gives(self) -> tuple[str, ...]: ...
    @property
    def communicates(self) -> bool: ...


@dataclass(frozen=True)
class Span:
    """us from the begin of the layer."""

    begin: float
    end: float


@dataclass(frozen=True)
class Schedule:
    """spans: of each stage. compute, communication: us of each lane's stages. exposed: us in which the communication
    lane works and the other does not. layer: us until all has ended."""

    spans: dict[str, Span]
    compute: float
    communication: float
    exposed: float
    layer: float

    @property
    def serial(self) -> float:
        """us on one lane."""
        return self.compute + self.communication

    @property
    def ratio(self) -> float:
        """How often the layer fits into the serial one."""
        return self.serial / self.layer if self.layer else 1.0

    @property
    def idle(self) -> float:
        """us in which neither lane works: none of a modelled layer."""
        return self.layer - self.compute - self.exposed


def schedule(stages: Sequence[Stage], us: Mapping[str, float]) -> Schedule:
    """Stages of these lengths on two lanes. Values that no stage gives are there from the start.

    Raises LongcatError: a stage has no length or a name of another, or needs what none before it gives.
    """
    givers = {value for one in stages for value in one.gives}
    there: dict[str, float] = {}
    free, spans = {False: 0.0, True: 0.0}, {}
    for one in stages:
        if one.name not in us or one.name in spans:
            problem = "stands in the list twice" if one.name in spans else "has no length in the model"
            raise LongcatError(f"timeline: stage {one.name} {problem}.")
        if late := [value for value in one.needs if value in givers and value not in there]:
            raise LongcatError(f"timeline: stage {one.name} needs `{late[0]}`, which no stage before it gives.")
        begin = max([free[one.communicates], *(there.get(value, 0.0) for value in one.needs)])
        spans[one.name] = Span(begin, begin + us[one.name])
        free[one.communicates] = spans[one.name].end
        there |= dict.fromkeys(one.gives, spans[one.name].end)
    return of_spans(stages, spans, max(free.values()))


def of_spans(stages: Sequence[Stage], spans: Mapping[str, Span], layer: float) -> Schedule:
    """The schedule of stages that run in these spans, in a layer of `layer` us. Spans of a lane do not overlap."""
    lanes = [[spans[one.name] for one in stages if one.communicates == lane] for lane in (False, True)]
    compute, communication = (sum(span.end - span.begin for span in lane) for lane in lanes)
    hidden = sum(
        max(0.0, min(sent.end, busy.end) - max(sent.begin, busy.begin)) for sent in lanes[True] for busy in lanes[False]
    )
    return Schedule(dict(spans), compute, communication, max(0.0, communication - hidden), layer)


@dataclass(frozen=True)
class Timeline:
    """us: the length of each stage. kind, unkind: schedules of its ends, middle: of its middles, for a picture."""

    device: str
    shape: Shape
    stages: tuple[Stage, ...]
    us: dict[str, Band]
    kind: Schedule
    unkind: Schedule
    middle: Schedule

    def of(self, names: Sequence[str]) -> Band:
        """us of some stages together."""
        return sum((self.us[name] for name in names), Band(0, 0))

    def beside_report(self) -> dict[str, tuple[float, Band]]:
        """The report's four lengths, ours beside them; empty for another deployment than its own."""
        reported = {name: (us, self.of(names)) for name, (us, names) in REPORTED.items()}
        return reported if self.shape == REPORT else {}


def ms_a_token(layer_us: float) -> float:
    """ms for each accepted token if a step is its layers, with one draft, accepted as often as the report assumes."""
    return 1e-3 * LAYERS * layer_us / (1 + ACCEPTED)


def require_batch(shape: Shape) -> None:
    """Raises LongcatShapeError for a batch that is out of range."""
    for name, most in MOST.items():
        got = getattr(shape, name)
        if not isinstance(got, int) or not 1 <= got <= most:
            raise LongcatShapeError(message("timeline", name, repr(got), f"1 .. {most}"))


def require(shape: Shape) -> None:
    """Raises LongcatShapeError unless the model can say something of this deployment."""
    require_batch(shape)
    ranks = shape.ranks
    if not isinstance(ranks, int) or ranks < 2 or dispatch.EXPERTS % ranks:
        expected = f"2 or more that divide {dispatch.EXPERTS} experts"
        raise LongcatShapeError(message("timeline", "ranks", repr(ranks), expected))


def predicted(stages: Sequence[Stage], device: Device, shape: Shape = REPORT) -> Timeline:
    """The stages of a layer with experts on shape.ranks ranks, on one of them.

    Raises LongcatShapeError for a deployment that is out of range, LongcatUnsupportedError for a device without a
    switch, LongcatError for stages that the model does not know or that are in no legal order.
    """
    require(shape)
    us = lengths(device, shape)
    ends = [schedule(stages, {name: getattr(band, end) for name, band in us.items()}) for end in
            ("low", "high", "middle")]  # fmt: skip
    return Timeline(device.name, shape, tuple(stages), {one.name: us[one.name] for one in stages}, *ends)


def lengths(device: Device, shape: Shape) -> dict[str, Band]:
    """us of each stage of `ScMoELayer.PARALLEL`, by name."""
    tokens, sms, hidden = shape.tokens, int(device.sms.value), layer.LONGCAT.hidden_size
    call = latent.Call(shape.sequences, shape.rows, shape.context, sms=sms)
    first, behind_sum = layer.norm(tokens, hidden), layer.norm(tokens, hidden, residual=True)
    project, attend, ffn = layer.project(tokens, sms=sms), layer.attend(call), layer.swiglu(tokens, sms=sms)
    launches = {
        "attend_first": [*first, *project, *attend, *behind_sum],
        "route": [*layer.router(tokens), *dispatch.moe_route(tokens)],
        "first_ffn": [*ffn, *behind_sum],
        "project_second": project,
        "run_local_experts": Share(tokens, shape.ranks).products(sms),
        "attend_second": [*attend, *behind_sum],
        "second_ffn": ffn,
        "add": layer.sums(tokens),
    }
    return {name: layer.total(counts, device) for name, counts in launches.items()} | _transfers(device, shape)


def _transfers(device: Device, shape: Shape) -> dict[str, Band]:
    """Kernels around a transfer count as communication: plan and quantisation of the rows, and the sum of results."""
    tokens = shape.tokens
    experts = expert_parallel.Layer(tokens, shape.ranks)
    planned, summed = dispatch.moe_plan(tokens), dispatch.moe_combine(tokens)
    if experts.nodes > 1:  # bytes alone; ahead of them a kernel of its own quantises
        planned = [*planned, *dispatch.moe_permute_quant(tokens)]
        sent, waits = [Band(us, us) for us in experts.between_nodes_us()], Band(0, 0)
    else:
        ends = ((comm.KIND, model.KIND), (comm.UNKIND, model.UNKIND))
        fixed = [expert_parallel.fixed_us(True, *constants) for constants in ends]
        waits = Band(*(one["flags"] + one["wait"] for one in fixed))
        both = experts.predicted(device)
        sent = [Band(band.low - waits.low, band.high - waits.high) for band in both]
    return {
        "send_rows": layer.total(planned, device) + sent[0],
        "receive_rows": waits,
        "send_results": sent[1],
        "receive_results": waits + layer.total(summed, device),
    }

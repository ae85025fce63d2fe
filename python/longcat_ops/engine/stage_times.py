"""When each stage of the layers of a decode step runs, measured: by events of CUDA on the streams of both lanes, or by
the clock of the host.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from ..errors import LongcatShapeError, message
from ..model import LongcatFlashForCausalLM
from ..model.stages import Executor, Overlapped, Stage, observed, serial
from ..perf.step import Shape
from ..perf.timeline import Schedule, Span, of_spans, require_batch

ROUNDS, WARM_ROUNDS = 20, 3
CLOCK_HZ = 2e9  # no slower than any Hopper GPU: a delay of so many clocks lasts as long as asked for, or longer


class Clock(Protocol):
    """Gives marks, and the time between two of them once the device has come past both."""

    side: Any  # the stream of communication; None: lanes are threads

    def mark(self) -> Any: ...
    def us(self, begin: Any, end: Any) -> float: ...
    def delay(self, seconds: float) -> None:
        """Holds the device up, so that the host gets ahead of it."""

    def is_past(self, mark: Any) -> bool:
        """Whether the device has come past a mark already, so that it may have waited for the host."""
        ...

    def synchronize(self) -> None: ...


class HostClock:
    """Marks are the host's monotonic time."""

    side = None

    def mark(self) -> float:
        return time.perf_counter()

    def us(self, begin: float, end: float) -> float:
        return 1e6 * (end - begin)

    def delay(self, seconds: float) -> None:
        """Nothing: the host is the device."""

    def is_past(self, mark: float) -> bool:
        return False

    def synchronize(self) -> None:
        """Nothing, likewise."""


class EventClock:
    """Marks are events of CUDA, on the stream that is current where they are made. A kernel behind an event may have to
    wait until the one ahead of it has ended, with which it overlaps otherwise.
    """

    def __init__(self) -> None:
        self.side = torch.cuda.Stream()

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def us(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return 1e3 * begin.elapsed_time(end)

    def delay(self, seconds: float) -> None:
        torch.cuda._sleep(int(seconds * CLOCK_HZ))

    def is_past(self, mark: torch.cuda.Event) -> bool:
        return mark.query()

    def synchronize(self) -> None:
        torch.cuda.synchronize()


@dataclass
class _Marks:
    stages: tuple[Stage, ...]
    begin: Any
    end: Any = None
    by_stage: dict[str, tuple[Any, Any]] = field(default_factory=dict)


class LayerClock:
    """An observer of layers (model/stages.py) that marks begin and end of each and, unless `whole`, of its stages."""

    def __init__(self, clock: Clock, whole: bool = False) -> None:
        self.clock, self.whole = clock, whole
        self.layers: list[_Marks] = []

    @contextmanager
    def layer(self, stages: Sequence[Stage]) -> Iterator[None]:
        marks = _Marks(tuple(stages), self.clock.mark())
        self.layers.append(marks)
        yield
        marks.end = self.clock.mark()

    def stage(self, one: Stage) -> AbstractContextManager[object]:
        return nullcontext() if self.whole else self._marked(one)

    @contextmanager
    def _marked(self, one: Stage) -> Iterator[None]:
        begin = self.clock.mark()
        yield
        self.layers[-1].by_stage[one.name] = begin, self.clock.mark()

    def whole_us(self) -> list[float]:
        """us of each layer that has run. Only once the device has come past all marks."""
        return [self.clock.us(one.begin, one.end) for one in self.layers]

    def schedules(self) -> list[Schedule]:
        """Each layer that has run; spans from its begin. Only once the device has come past all marks."""
        found = []
        for one, us in zip(self.layers, self.whole_us(), strict=True):
            spans = {
                name: Span(*(self.clock.us(one.begin, mark) for mark in ends)) for name, ends in one.by_stage.items()
            }
            found.append(of_spans(one.stages, spans, us))
        return found


@dataclass(frozen=True)
class Spread:
    """us: the median, and the 10th and the 90th percentile."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, us: Sequence[float]) -> Spread:
        tenths = statistics.quantiles(us, n=10, method="inclusive") if len(us) > 1 else [*us] * 9
        return cls(statistics.median(us), tenths[0], tenths[-1])


@dataclass(frozen=True)
class LayerTimes:
    """Layers under one executor. layers: each layer of each round. whole: us of layers in which nothing but their begin
    and end was marked. late: rounds in which the device may have waited for the host, in the time of a stage.
    """

    layers: tuple[Schedule, ...]
    whole: Spread
    late: int

    def begin(self, stage: str) -> Spread:
        """From the begin of the layer."""
        return Spread.of([one.spans[stage].begin for one in self.layers])

    def end(self, stage: str) -> Spread:
        """From the begin of the layer."""
        return Spread.of([one.spans[stage].end for one in self.layers])

    def us(self, stage: str) -> Spread:
        return Spread.of([one.spans[stage].end - one.spans[stage].begin for one in self.layers])

    def total(self, name: str) -> Spread:
        """Of a number of Schedule: compute, communication, exposed, layer, idle."""
        return Spread.of([getattr(one, name) for one in self.layers])

    @property
    def median(self) -> Schedule:
        """Of medians, each for itself: they need not add up."""
        spans = {name: Span(self.begin(name).median, self.end(name).median) for name in self.layers[0].spans}
        totals = (self.total(name).median for name in ("compute", "communication", "exposed", "layer"))
        return Schedule(spans, *totals)


@dataclass(frozen=True)
class Measured:
    """device: its name. ranks of `shape`: those that rows travel between. serial: one stage after another. overlapped:
    on two streams, on the host two threads.
    """

    device: str
    shape: Shape
    stages: tuple[Stage, ...]
    rounds: int
    serial: LayerTimes
    overlapped: LayerTimes


def measure(model: LongcatFlashForCausalLM, sequences: int, rows: int, context: int, *, rounds: int = ROUNDS,
            clock: Clock | None = None) -> Measured:  # fmt: skip
    """Decode passes of `model` over `rows` newest tokens of each of `sequences` sequences, the first of them with
    `context` rows of random past, itself included. Both executors take turns, with and without marks of stages.

    A model on a GPU runs on the current device; there the host issues a whole pass while the device is held up. A model
    that has been joined to ranks makes exchanges with them: every rank calls this, with the same arguments.

    Raises LongcatShapeError for numbers that are out of range.
    """
    exchange = model.layers[0].mlp.exchange
    shape = Shape(sequences, rows, context, 1 if exchange is None else exchange.ranks)
    require_batch(shape)
    longest = model.config.max_position_embeddings - rows + 1
    if context > longest:
        raise LongcatShapeError(message("timeline", "context", context, f"1 .. {longest}, which the model has"))
    if clock is None:
        clock = EventClock() if model.device.type == "cuda" else HostClock()
    executors = {"serial": serial, "overlapped": Overlapped(clock.side)}
    ways = {
        (name, whole): _Way(execute, clock, whole) for name, execute in executors.items() for whole in (False, True)
    }
    execute_before = model.execute
    try:
        with torch.inference_mode():
            step = _decode_pass(model, shape)
            for turn in range(WARM_ROUNDS + rounds):
                for way in ways.values():
                    way.run(model, step, keep=turn >= WARM_ROUNDS)
    finally:
        model.execute = execute_before
    found = {}
    for name in executors:
        marked, whole = ways[name, False], ways[name, True]
        layers = tuple(layer for one in marked.kept for layer in one.schedules())
        found[name] = LayerTimes(layers, Spread.of([us for one in whole.kept for us in one.whole_us()]), marked.late)
    stages = ways["serial", False].kept[0].layers[0].stages
    device = torch.cuda.get_device_name() if model.device.type == "cuda" else "host"
    return Measured(device, shape, stages, rounds, **found)


class _Way:
    """Passes under one executor, with marks of stages or without."""

    def __init__(self, execute: Executor, clock: Clock, whole: bool) -> None:
        self.execute, self.clock, self.whole = execute, clock, whole
        self.kept: list[LayerClock] = []
        self.late, self._seconds = 0, 0.0

    def run(self, model: LongcatFlashForCausalLM, step: Callable[[], object], *, keep: bool) -> None:
        """One pass; the device is held up for twice the time that the host took to issue the last one."""
        seen = LayerClock(self.clock, self.whole)
        model.execute = observed(self.execute, seen)
        self.clock.synchronize()
        self.clock.delay(2 * self._seconds)
        begin = time.perf_counter()
        step()
        self._seconds = time.perf_counter() - begin
        late = self.clock.is_past(seen.layers[0].begin)
        self.clock.synchronize()
        if keep:
            self.kept.append(seen)
            self.late += late


def _decode_pass(model: LongcatFlashForCausalLM, shape: Shape) -> Callable[[], object]:
    """A pass of that shape, over a random past."""
    device, tokens = model.device, shape.sequences * shape.rows
    draw = torch.Generator(device).manual_seed(0)
    cache = model.new_cache(shape.sequences, shape.context - 1 + shape.rows)
    for slot in cache.rows:
        slot.normal_(generator=draw)
    ids = torch.randint(model.config.vocab_size, (tokens,), device=device, generator=draw)
    sequences = [b for b in range(shape.sequences) for _ in range(shape.rows)]
    positions = [shape.context - 1 + i for _ in range(shape.sequences) for i in range(shape.rows)]
    for sequence in range(shape.sequences):
        cache.reserve(sequence, cache.max_length)
    rows = model.rows(cache, sequences, positions)
    if model.parallel is not None:  # else each pass would wait for its turn, on the host
        rows.tokens = model.parallel.agreed_rows(tokens)
    return lambda: model.decode_rows(ids, replace(rows, num_real=[]))

"""A layer as a list of named stages, each with what it needs and what it gives, and executors of such a list.

The list is one legal order; what a stage declares says which others there are. So the same stages run one after
another, on two streams of a GPU with the communication beside the computation (single-batch overlap: LongCat-Flash
technical report, arXiv:2509.01322, section 6.1.1), on two threads, or in any order that the declarations allow, and the
bits are the same: an executor that finds others has found a declaration that is wrong.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..errors import LongcatError


@dataclass(frozen=True)
class Stage:
    """One stage: the method `name` of its layer, called with the rows of the pass and the values that it needs, in this
    order; returns what it gives, a tuple where that is more than one value. communicates: its kernels move rows between
    ranks, on the stream of communication.
    """

    name: str
    needs: tuple[str, ...]
    gives: tuple[str, ...]
    communicates: bool = False


def stage(name: str, needs: str, gives: str, communicates: bool = False) -> Stage:
    """A stage by names that spaces separate."""
    return Stage(name, tuple(needs.split()), tuple(gives.split()), communicates)


def check(stages: Sequence[Stage], given: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises LongcatError unless the list is a legal order: every value has one source, ahead of whoever needs it."""
    known = set(given)
    for one in stages:
        for name in one.needs:
            if name not in known:
                raise LongcatError(f"stage {one.name} needs `{name}`, which no stage before it gives.")
        for name in one.gives:
            if name in known:
                raise LongcatError(f"stage {one.name} gives `{name}`, which there is already.")
            known.add(name)
    for name in wanted:
        if name not in known:
            raise LongcatError(f"no stage gives `{name}`.")


def run(layer: Any, one: Stage, rows: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """One stage: what it gives, by name."""
    result = getattr(layer, one.name)(rows, *(values[name] for name in one.needs))
    found = (result,) if len(one.gives) == 1 else result
    if not isinstance(found, tuple) or len(found) != len(one.gives):
        raise LongcatError(f"stage {one.name} gave no {len(one.gives)} values, which it declares: {one.gives}.")
    return dict(zip(one.gives, found, strict=True))


Executor = Callable[[Any, Sequence[Stage], Any, dict[str, Any], str], Any]


class Observer(Protocol):
    """Is told of each layer and of each stage by a context, entered before it and left after it."""

    def layer(self, stages: Sequence[Stage]) -> AbstractContextManager[object]:
        """Of a layer: on the thread, and on a GPU the stream, of whoever runs it."""
        ...

    def stage(self, one: Stage) -> AbstractContextManager[object]:
        """Of a stage: on the thread or the stream of its lane, behind all that the lane had to wait for."""
        ...


class _Observed:
    """A layer whose stages run inside the contexts of an observer."""

    def __init__(self, layer: Any, stages: Sequence[Stage], observer: Observer) -> None:
        self._layer, self._observer, self._stages = layer, observer, {one.name: one for one in stages}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def method(*values: Any) -> Any:
            with self._observer.stage(self._stages[name]):
                return getattr(self._layer, name)(*values)

        return method


def observed(execute: Executor, observer: Observer) -> Executor:
    """`execute` before the eyes of an observer, which sees the same kernels on the same streams."""

    def seen(layer: Any, stages: Sequence[Stage], rows: Any, values: dict[str, Any], wanted: str) -> Any:
        with observer.layer(stages):
            return execute(_Observed(layer, stages, observer), stages, rows, values, wanted)

    return seen


def serial(layer: Any, stages: Sequence[Stage], rows: Any, values: dict[str, Any], wanted: str) -> Any:
    """In the order of the list. A value goes when its last reader has run."""
    last = {name: i for i, one in enumerate(stages) for name in one.needs}
    for i, one in enumerate(stages):
        values |= run(layer, one, rows, values)
        for name in one.needs:
            if last[name] == i and name != wanted:
                values.pop(name, None)
    return values[wanted]


def any_order(stages: Sequence[Stage], given: Iterable[str], draw: random.Random) -> list[Stage]:
    """An order of the stages, drawn from all that the declarations allow."""
    left, known, order = list(stages), set(given), []
    while left:
        chosen = draw.choice([one for one in left if known.issuperset(one.needs)])
        left.remove(chosen)
        known.update(chosen.gives)
        order.append(chosen)
    return order


class AnyOrder:
    """In orders drawn from all that the declarations allow."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def __call__(self, layer: Any, stages: Sequence[Stage], rows: Any, values: dict[str, Any], wanted: str) -> Any:
        for one in any_order(stages, values, self._draw):
            values |= run(layer, one, rows, values)
        return values[wanted]


def threads(layer: Any, stages: Sequence[Stage], rows: Any, values: dict[str, Any], wanted: str) -> Any:
    """On two threads, communication on one of its own; each stage waits for what it needs."""
    done = {name: threading.Event() for one in stages for name in one.gives}
    failed: list[BaseException] = []
    inference = torch.is_inference_mode_enabled()

    def lane(communicates: bool) -> None:
        try:
            with torch.inference_mode(inference):
                for one in stages:
                    if one.communicates == communicates:
                        for name in one.needs:
                            if name in done:
                                done[name].wait()
                        if failed:
                            return
                        values.update(run(layer, one, rows, values))
                        for name in one.gives:
                            done[name].set()
        except BaseException as error:
            failed.append(error)
            for event in done.values():
                event.set()

    other = threading.Thread(target=lane, args=(True,), name="longcat_ops.stages")
    other.start()
    lane(False)
    other.join()
    if failed:
        raise failed[0]
    return values[wanted]


class Lanes:
    """Issues the stages of a layer one by one, in any legal order: those that communicate on the stream `side`, the
    others on the current one. A stream waits for an event of the other only where a stage needs what the other gives.
    side None: all on the current stream. Who issues for several ranks can take a stage of each in turn.
    """

    def __init__(self, layer: Any, stages: Sequence[Stage], rows: Any, values: dict[str, Any], side: Any) -> None:
        self._layer, self._rows, self._values, self._side = layer, rows, values, side
        self._lane_of = {name: one.communicates for one in stages for name in one.gives}
        lanes = self._lane_of
        self._crossed = {n for one in stages for n in one.needs if lanes.get(n, one.communicates) != one.communicates}
        self._events: dict[str, Any] = {}
        if side is not None:
            side.wait_event(_recorded(torch.cuda.current_stream()))

    def issue(self, one: Stage) -> None:
        if self._side is None:
            self._values |= run(self._layer, one, self._rows, self._values)
            return
        with torch.cuda.stream(self._side) if one.communicates else nullcontext():
            stream = torch.cuda.current_stream()
            for name in one.needs:
                if name in self._events and self._lane_of[name] != one.communicates:
                    stream.wait_event(self._events[name])
            self._values |= run(self._layer, one, self._rows, self._values)
            for name in self._crossed.intersection(one.gives):
                self._events[name] = _recorded(stream)

    def join(self, wanted: str) -> Any:
        """The value, once all stages have been issued."""
        if self._side is not None:  # also keeps the memory of both lanes until all of it has been read
            torch.cuda.current_stream().wait_event(_recorded(self._side))
        return self._values[wanted]


def _recorded(stream: Any) -> Any:
    event = torch.cuda.Event()
    event.record(stream)
    return event


class Overlapped:
    """On two streams of a GPU, see Lanes: computation on the current one, communication on `side`. Capture-safe.
    Without a GPU the two lanes are threads.
    """

    def __init__(self, side: Any = None) -> None:
        self.side = side

    def __call__(self, layer: Any, stages: Sequence[Stage], rows: Any, values: dict[str, Any], wanted: str) -> Any:
        if self.side is None:
            return threads(layer, stages, rows, values, wanted)
        lanes = Lanes(layer, stages, rows, values, self.side)
        for one in stages:
            lanes.issue(one)
        return lanes.join(wanted)

"""When stages run, measured: by events on two streams of a GPU that is made up, whose kernels take given times, and by
the clock of the host over a network."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longcat_ops import LongcatShapeError
from longcat_ops.engine import stage_times
from longcat_ops.engine.rank_alone import join_alone
from longcat_ops.engine.stage_times import EventClock, LayerClock, Spread, measure
from longcat_ops.model.scmoe import ScMoELayer
from longcat_ops.model.stages import Overlapped, Stage, observed, serial, stage
from longcat_ops.perf.step import Shape
from longcat_ops.perf.timeline import Schedule, schedule
from support import models
from support.fake_streams import Device

# us of stages: those of an H800 at EP128 as they are modelled, where a transfer is exposed and another takes no time.
US = dict(zip([one.name for one in ScMoELayer.PARALLEL], [345, 13.5, 234, 96, 45, 0, 101, 442, 297, 91, 8.25, 6],
              strict=True))  # fmt: skip
FIELDS = "compute", "communication", "exposed", "layer"
DIAMOND = (
    stage("a", "x", "p"),
    stage("send", "p", "sent", True),
    stage("b", "p", "q"),
    stage("c", "q sent", "r"),
    stage("back", "p", "y", True),
    stage("d", "r y", "out"),
)


def kernels(device: Device, stages: Sequence[Stage], us: dict[str, float]) -> Any:
    """A layer whose stages launch one kernel each."""

    def method(one: Stage) -> Callable[..., object]:
        def launch(rows: object, *values: object) -> object:
            device.kernel(us[one.name])
            return one.gives if len(one.gives) > 1 else one.gives[0]

        return launch

    return SimpleNamespace(**{one.name: method(one) for one in stages})


def run(monkeypatch: pytest.MonkeyPatch, stages: Sequence[Stage], us: dict[str, float], overlaps: bool,
        issue_us: float = 0.0, wanted: str = "out") -> Schedule:  # fmt: skip
    device = Device(issue_us)
    device.install(monkeypatch)
    clock = EventClock()
    seen = LayerClock(clock)
    observed(Overlapped(clock.side) if overlaps else serial, seen)(
        kernels(device, stages, us), stages, None, {"x": 0}, wanted
    )
    device.synchronize()
    (found,) = seen.schedules()
    return found


def close(found: Schedule, expected: Schedule) -> None:
    for name, span in expected.spans.items():
        assert (found.spans[name].begin, found.spans[name].end) == pytest.approx((span.begin, span.end)), name
    assert [getattr(found, name) for name in FIELDS] == pytest.approx([getattr(expected, name) for name in FIELDS])
    assert found.spans.keys() == expected.spans.keys()


def test_events_of_a_diamond_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """On two streams: a 0-2, send 2-9, b 2-5, c 9-10, back 9-13, d 13-14. In turn the stages follow each other."""
    us = {"a": 2.0, "send": 7.0, "b": 3.0, "c": 1.0, "back": 4.0, "d": 1.0}
    found = run(monkeypatch, DIAMOND, us, overlaps=True)
    spans = {name: (round(span.begin, 6), round(span.end, 6)) for name, span in found.spans.items()}
    assert spans == {"a": (0, 2), "send": (2, 9), "b": (2, 5), "c": (9, 10), "back": (9, 13), "d": (13, 14)}
    assert [getattr(found, name) for name in (*FIELDS, "idle")] == pytest.approx([7, 11, 7, 14, 0])
    found = run(monkeypatch, DIAMOND, us, overlaps=False)
    assert [found.spans[one.name].begin for one in DIAMOND] == pytest.approx([0, 2, 9, 12, 13, 17])
    assert [getattr(found, name) for name in (*FIELDS, "idle")] == pytest.approx([7, 11, 11, 18, 0])


def test_a_host_that_is_slow_leaves_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch takes 5 us: a ends at 7, send at 17, b at 18, c at 21, back at 29, d at 31. A stage begins where its
    stream is free, ahead of its kernel, so what the device waits for the host counts as the stage's own."""
    us = {"a": 2.0, "send": 7.0, "b": 3.0, "c": 1.0, "back": 4.0, "d": 1.0}
    found = run(monkeypatch, DIAMOND, us, overlaps=True, issue_us=5.0)
    ends = {name: round(span.end, 6) for name, span in found.spans.items()}
    assert ends == {"a": 7, "send": 17, "b": 18, "c": 21, "back": 29, "d": 31}
    begins = {name: round(span.begin, 6) for name, span in found.spans.items()}
    assert begins == {"a": 0, "send": 7, "b": 10, "c": 18, "back": 20, "d": 29}
    assert [getattr(found, name) for name in (*FIELDS, "idle")] == pytest.approx([20, 19, 11, 31, 0])


@pytest.mark.parametrize("seed", range(30))
def test_streams_do_what_the_model_of_two_lanes_says(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Random lists of stages of random lengths: what is measured is what perf.timeline computes."""
    draw = random.Random(seed)
    values, stages, us = ["x"], [], {}
    for i in range(draw.randint(1, 12)):
        needs = " ".join(draw.sample(values, draw.randint(1, min(3, len(values)))))
        stages.append(stage(f"s{i}", needs, f"v{i}", draw.random() < 0.5))
        us[f"s{i}"] = float(draw.choice((0, draw.randint(1, 9))))
        values.append(f"v{i}")
    close(run(monkeypatch, stages, us, overlaps=True, wanted=values[-1]), schedule(stages, us))
    alone = run(monkeypatch, stages, us, overlaps=False, wanted=values[-1])
    assert alone.layer == pytest.approx(sum(us.values())) and alone.exposed == pytest.approx(alone.communication)


@pytest.fixture
def model() -> Any:
    return models.build(torch.bfloat16, precision="fp8")


@pytest.fixture
def joined(model: Any) -> Any:
    join_alone(model, 16)
    return model


def planted(monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    """Each stage of a real layer launches a kernel of its length in US, too."""

    def method(one: Stage) -> Callable[..., object]:
        stage_of = getattr(ScMoELayer, one.name)

        def launch(self: ScMoELayer, *values: object) -> object:
            device.kernel(US[one.name])
            return stage_of(self, *values)

        return launch

    for one in ScMoELayer.PARALLEL:
        monkeypatch.setattr(ScMoELayer, one.name, method(one))
    device.install(monkeypatch)


def test_a_network_on_two_streams(monkeypatch: pytest.MonkeyPatch, joined: Any) -> None:
    """Exact lengths from events, though the host needs 40 us for a launch: the device is held up."""
    device = Device(issue_us=40.0)
    planted(monkeypatch, device)
    found = measure(joined, 3, 2, 20, rounds=4, clock=EventClock())
    expected = schedule(ScMoELayer.PARALLEL, US)
    assert expected.exposed > 0 and found.stages == ScMoELayer.PARALLEL
    assert found.shape == Shape(3, 2, 20, 1) and (found.rounds, found.device) == (4, "host")
    close(found.overlapped.median, expected)
    whole = sum(US.values())
    for times, layer in ((found.overlapped, expected.layer), (found.serial, whole)):
        assert len(times.layers) == 4 * 2 and times.late == 0
        assert [times.whole.median, times.whole.p10, times.whole.p90] == pytest.approx([layer] * 3)
        assert times.total("layer").p90 == pytest.approx(layer)
        assert max(abs(one.idle) for one in times.layers) < 1e-6
    assert found.serial.total("exposed").median == pytest.approx(expected.communication)
    assert found.serial.begin("add").median == pytest.approx(whole - US["add"])
    # 24 launches a pass; 4 ways without a delay in their first round, which is not kept.
    assert device.delays[:4] == [0.0] * 4 and device.delays[4:] == pytest.approx([2 * 24 * 40.0] * 4 * (3 + 4 - 1))


def test_a_device_that_may_have_waited_is_counted(monkeypatch: pytest.MonkeyPatch, joined: Any) -> None:
    planted(monkeypatch, Device(issue_us=400.0))
    monkeypatch.setattr(EventClock, "delay", lambda self, seconds: None)
    found = measure(joined, 3, 2, 20, rounds=4, clock=EventClock())
    assert (found.serial.late, found.overlapped.late) == (4, 4)
    assert found.serial.whole.median == pytest.approx(12 * 400, rel=0.1) and sum(US.values()) < 1800


def test_a_network_by_the_clock_of_the_host(joined: Any) -> None:
    """Each stage once in each layer, inside it; stages of a lane in the order of the list, one at a time."""
    found = measure(joined, 2, 2, 70, rounds=3)
    assert joined.execute is serial and found.stages == ScMoELayer.PARALLEL
    for times in (found.serial, found.overlapped):
        assert len(times.layers) == 3 * 2 and times.late == 0
        for one in times.layers:
            assert one.spans.keys() == US.keys()
            for lane in (False, True):
                spans = [one.spans[s.name] for s in found.stages if s.communicates == lane]
                marks = [mark for span in spans for mark in (span.begin, span.end)]
                assert marks[0] >= 0 and marks == sorted(marks) and marks[-1] <= one.layer
                us = sum(span.end - span.begin for span in spans)
                assert us == pytest.approx(one.communication if lane else one.compute)
            assert 0 <= one.exposed <= one.communication and one.idle > 0
            for s in found.stages:
                ends = [one.spans[giver.name].end for giver in found.stages if set(giver.gives) & set(s.needs)]
                assert one.spans[s.name].begin >= max(ends, default=0)
    for one in found.serial.layers:
        assert one.exposed == pytest.approx(one.communication)


def test_a_network_of_one_rank(model: Any) -> None:
    """Its layers have other stages, none of which communicates."""
    found = measure(model, 1, 1, 1, rounds=1)
    assert found.stages == ScMoELayer.STAGES and found.shape == Shape(1, 1, 1, 1)
    assert found.overlapped.total("communication") == Spread(0, 0, 0)


def test_the_executor_comes_back_after_an_error(monkeypatch: pytest.MonkeyPatch, joined: Any) -> None:
    monkeypatch.setattr(ScMoELayer, "second_ffn", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        measure(joined, 1, 1, 5, rounds=1)
    assert joined.execute is serial


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ((0, 2, 20), "`sequences` is 0, expected 1 .. 4096"),
        ((1, 65, 20), "`rows` is 65, expected 1 .. 64"),
        ((1, 2, 4096), "`context` is 4096, expected 1 .. 4095, which the model has"),
    ],
)
def test_bad_batches(model: Any, batch: tuple[int, int, int], expected: str) -> None:
    with pytest.raises(LongcatShapeError, match=f"timeline: argument {expected}"):
        measure(model, *batch)


def test_the_longest_context(model: Any) -> None:
    assert measure(model, 1, 2, 4095, rounds=1).shape.context == 4095


def test_spreads() -> None:
    assert Spread.of([*range(11, 0, -1)]) == Spread(6, 2, 10)
    assert Spread.of([3.0]) == Spread(3, 3, 3)
    assert stage_times.WARM_ROUNDS >= 1  # kernels load, and a pass without a delay tells how long the next one is

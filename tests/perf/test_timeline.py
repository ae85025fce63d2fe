"""The stages of a layer on two lanes: begins, ends and exposed time by hand, and lengths that are the layer's."""

from __future__ import annotations

import itertools
import random

import pytest

from longcat_ops import LongcatError, LongcatShapeError, LongcatUnsupportedError
from longcat_ops.model.scmoe import ScMoELayer
from longcat_ops.model.stages import check, stage
from longcat_ops.perf import DEVICES, Band, chain, dispatch, expert_parallel, layer
from longcat_ops.perf import timeline as model
from longcat_ops.perf.attention import Call
from longcat_ops.perf.step import REPORT, Shape

H800, H100, H200 = (DEVICES[name] for name in ("H800", "H100", "H200"))
STAGES = ScMoELayer.PARALLEL
NAMES = [one.name for one in STAGES]


def spans(found: model.Schedule) -> dict[str, tuple[float, float]]:
    return {name: (span.begin, span.end) for name, span in found.spans.items()}


def test_a_diamond_by_hand() -> None:
    """a, then a transfer of 7 beside b of 3; c needs both; d needs the second transfer, which begins behind the first.

    a 0-2, send 2-9, b 2-5, c 9-10, back 9-13, d 13-14: exposed are 5-9 and 10-13.
    """
    stages = (
        stage("a", "x", "p"),
        stage("send", "p", "sent", True),
        stage("b", "p", "q"),
        stage("c", "q sent", "r"),
        stage("back", "p", "y", True),
        stage("d", "r y", "out"),
    )
    found = model.schedule(stages, {"a": 2, "send": 7, "b": 3, "c": 1, "back": 4, "d": 1})
    expected = {"a": (0, 2), "send": (2, 9), "b": (2, 5), "c": (9, 10), "back": (9, 13), "d": (13, 14)}
    assert spans(found) == expected
    assert (found.compute, found.communication, found.exposed, found.layer) == (7, 11, 7, 14)
    assert found.serial == 18 and found.ratio == 18 / 14


def test_hidden_and_last_communication() -> None:
    """A transfer beside a longer stage costs nothing; one at the end is exposed from where computation has ended."""
    stages = (stage("a", "x", "p"), stage("send", "x", "sent", True), stage("b", "p", "q"))
    hidden = model.schedule(stages, {"a": 2, "send": 3, "b": 4})
    assert (hidden.exposed, hidden.layer, spans(hidden)["send"]) == (0, 6, (0, 3))
    late = model.schedule(stages, {"a": 2, "send": 11, "b": 4})
    assert (late.exposed, late.layer) == (5, 11)
    alone = model.schedule((stage("send", "x", "sent", True),), {"send": 3})
    assert (alone.compute, alone.exposed, alone.layer, alone.ratio) == (0, 3, 3, 1)
    nothing = model.schedule((), {})
    assert (nothing.layer, nothing.exposed, nothing.ratio) == (0, 0, 1)


def test_a_lane_runs_in_the_order_of_the_list() -> None:
    """b could begin at once, but its lane waits with a for the transfer, as a stream does."""
    stages = (stage("send", "x", "sent", True), stage("a", "sent", "p"), stage("b", "x", "q"))
    assert spans(model.schedule(stages, {"send": 5, "a": 1, "b": 2}))["b"] == (6, 8)


@pytest.mark.parametrize("seed", range(50))
def test_random_lists(seed: int) -> None:
    """Exposed time is the communication that overlaps no computation, stages wait for what they need, and the layer is
    between the longest lane and the serial one."""
    draw = random.Random(seed)
    values, stages, us = ["x"], [], {}
    for i in range(draw.randint(1, 12)):
        needs = " ".join(draw.sample(values, draw.randint(1, min(3, len(values)))))
        stages.append(stage(f"s{i}", needs, f"v{i}", draw.random() < 0.5))
        us[f"s{i}"] = draw.choice((0, draw.randint(1, 9)))
        values.append(f"v{i}")
    found = model.schedule(stages, us)
    ends = {name: found.spans[one.name].end for one in stages for name in one.gives}
    for one in stages:
        assert all(found.spans[one.name].begin >= ends.get(name, 0) for name in one.needs)
        assert found.spans[one.name].end - found.spans[one.name].begin == us[one.name]
    working = {lane: set[int]() for lane in (False, True)}
    for one in stages:
        span = range(int(found.spans[one.name].begin), int(found.spans[one.name].end))
        assert not working[one.communicates] & set(span)
        working[one.communicates] |= set(span)
    assert found.exposed == len(working[True] - working[False])
    assert max(found.compute, found.communication) <= found.layer <= found.serial
    assert found.layer == found.compute + found.exposed


def test_wrong_lists_are_refused() -> None:
    a, b = stage("a", "x", "p"), stage("b", "p", "q")
    with pytest.raises(LongcatError, match="stage b needs `p`, which no stage before it gives"):
        model.schedule((b, a), {"a": 1, "b": 1})
    with pytest.raises(LongcatError, match="stage b has no length"):
        model.schedule((a, b), {"a": 1})
    with pytest.raises(LongcatError, match="stage a stands in the list twice"):
        model.schedule((a, a), {"a": 1})
    with pytest.raises(LongcatError, match="stage run_experts has no length"):
        model.predicted(ScMoELayer.STAGES, H800)


def test_every_stage_of_the_model_has_a_length() -> None:
    """And no other has one; the list is legal as the model's executors see it."""
    check(STAGES, ("x",), ("out",))
    for shape in (REPORT, Shape(1, 1, 1, 2), Shape(4096, 64, 1 << 20, 512)):
        found = model.predicted(STAGES, H800, shape)
        assert list(found.us) == NAMES and sorted(model.lengths(H800, shape)) == sorted(NAMES)
        for name, band in found.us.items():
            assert 0 <= band.low <= band.high and (band.low > 0 or name == "receive_rows")
    assert {name for _, names in model.REPORTED.values() for name in names} <= set(NAMES)


@pytest.mark.parametrize("ranks", [8, 128])
def test_stages_are_the_parts_of_a_layer(ranks: int) -> None:
    """Their sum is that of layer.predicted without the chain, but for the first norm, which has no residual; products
    of the experts are the chain's without quantisation and sum, which go into the transfers."""
    shape = Shape(ranks=ranks)
    us, tokens = model.predicted(STAGES, H800, shape).us, shape.tokens
    call, hidden = Call(96, 2, 5000), layer.LONGCAT.hidden_size
    whole = 2 * layer.attention(call) + 2 * layer.ffn(tokens) + layer.sums(tokens)
    first = [layer.total(layer.norm(tokens, hidden, residual=residual), H800) for residual in (False, True)]
    dense = [name for name in NAMES if name.split("_")[0] not in ("route", "send", "receive", "run")]
    for end in ("low", "high"):
        summed = sum(getattr(us[name], end) for name in dense)
        without = getattr(layer.total(whole, H800), end) - getattr(first[1], end) + getattr(first[0], end)
        assert summed == pytest.approx(without)
    share = chain.Share(tokens, ranks)
    assert share.fused() == [*share.fused()[:1], *share.products(), *share.fused()[-1:]]
    assert us["run_local_experts"] == layer.total(share.products(), H800)
    assert us["route"] == layer.total(layer.router(tokens) + dispatch.moe_route(tokens), H800)


def test_transfers_behind_one_switch() -> None:
    """Halves together are dispatch and combine of perf.expert_parallel, the plan ahead and the sum behind them."""
    found = model.predicted(STAGES, H100, Shape(ranks=8))
    both = expert_parallel.Layer(192, 8).predicted(H100)
    plan, total = (layer.total(op(192), H100) for op in (dispatch.moe_plan, dispatch.moe_combine))
    for kind, names, around in ((0, "send_rows receive_rows", plan), (1, "send_results receive_results", total)):
        ours, expected = found.of(names.split()), both[kind] + around
        assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high))
    assert found.us["receive_rows"] == Band(1.5 + 1.5, 2.5 + 4.0)


def test_transfers_between_nodes() -> None:
    """192 tokens x 8 rows of 6336 and 12288 bytes, 15 of 16 to another node, at 40 GB/s."""
    found = model.predicted(STAGES, H800)
    dispatched = 192 * 8 * 15 / 16 * 6336 / 40e3
    around = layer.total(dispatch.moe_plan(192) + dispatch.moe_permute_quant(192), H800)
    assert found.us["send_rows"].low == pytest.approx(dispatched + around.low)
    assert found.us["receive_rows"] == Band(0, 0)
    assert found.us["send_results"].high == pytest.approx(192 * 8 * 15 / 16 * 12288 / 40e3)
    assert found.us["receive_results"] == Band(0, 0) + layer.total(dispatch.moe_combine(192), H800)


def test_the_reports_figures() -> None:
    """28 x (264 + 236 + 60 + 472) us / 1.8 = 16.05 ms; ours beside them for that deployment alone."""
    assert model.REPORTED_LAYER == 264 + 236 + 60 + 472 == 1032
    assert round(model.ms_a_token(1032), 2) == 16.05
    found = model.predicted(STAGES, H800)
    beside = found.beside_report()
    assert {name: us for name, (us, _) in beside.items()} == {
        "attention": 264,
        "dispatch": 236,
        "MoE": 60,
        "combine": 472,
    }
    assert beside["attention"][1] == found.us["attend_first"]
    assert beside["combine"][1] == found.us["send_results"] + found.us["receive_results"]
    reported = expert_parallel.as_reported(expert_parallel.Layer(192, 128))
    assert [round(us) for us in reported] == [beside["dispatch"][0], beside["combine"][0]]
    assert model.predicted(STAGES, H800, Shape(ranks=64)).beside_report() == {}


@pytest.mark.parametrize("device", [H800, H100, H200], ids=lambda device: device.name)
def test_deployments(device: object) -> None:
    """More ranks: more communication, less of experts. More of anything else: longer. Overlap never costs."""
    by_ranks = [model.predicted(STAGES, device, Shape(ranks=2**n)) for n in range(1, 10)]
    for few, many in itertools.pairwise(by_ranks):
        for end in ("kind", "unkind"):
            assert getattr(few, end).communication < getattr(many, end).communication
        assert many.us["run_local_experts"].low <= few.us["run_local_experts"].low
        assert many.us["attend_first"] == few.us["attend_first"]
    larger = [Shape(192), Shape(96, 4), Shape(96, 2, 10000)]
    for one in (*by_ranks, *(model.predicted(STAGES, device, shape) for shape in larger)):
        for end in (one.kind, one.unkind, one.middle):
            assert max(end.compute, end.communication) <= end.layer * (1 + 1e-12)
            assert end.layer <= end.serial * (1 + 1e-12) and end.ratio >= 1 - 1e-12
            assert end.layer == pytest.approx(end.compute + end.exposed)
        assert one.kind.layer < one.middle.layer < one.unkind.layer
    base = model.predicted(STAGES, device)
    for shape in larger:
        assert model.predicted(STAGES, device, shape).kind.layer > base.kind.layer


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"ranks": 1}, "`ranks` is 1, expected 2 or more that divide 512 experts"),
        ({"ranks": 24}, "`ranks` is 24, expected 2 or more"),
        ({"ranks": 1024}, "`ranks` is 1024, expected 2 or more"),
        ({"sequences": 0}, "`sequences` is 0, expected 1 .. 4096"),
        ({"sequences": 4097}, "`sequences` is 4097, expected 1 .. 4096"),
        ({"rows": 65}, "`rows` is 65, expected 1 .. 64"),
        ({"rows": 1.5}, "`rows` is 1.5, expected 1 .. 64"),
        ({"context": 0}, "`context` is 0, expected 1 .. 1048576"),
    ],
)
def test_bad_deployments(change: dict, expected: str) -> None:
    with pytest.raises(LongcatShapeError, match=f"timeline: argument {expected}"):
        model.predicted(STAGES, H800, Shape(**change))


def test_a_device_without_a_switch() -> None:
    with pytest.raises(LongcatUnsupportedError, match="NVLink switch"):
        model.predicted(STAGES, DEVICES["H100 PCIe"], Shape(ranks=8))

"""A layer as a list of stages: every legal order, two threads and the serial list have the same bits; a declaration
that is wrong is found."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from longcat_ops import generate
from longcat_ops.engine.measure import PART_OF
from longcat_ops.engine.rank_alone import join_alone
from longcat_ops.errors import LongcatError
from longcat_ops.model import stages
from longcat_ops.model.scmoe import ScMoELayer
from longcat_ops.model.stages import AnyOrder, Overlapped, check, observed, serial, stage, threads
from longcat_ops.testing.op_results import bits
from support import models

PROMPTS = [torch.tensor([5, 9, 12, 7]), torch.tensor([3, 4, 5, 6, 7, 8, 9, 10, 11]), torch.tensor([8])]


@pytest.fixture(scope="module", params=["bf16", "fp8", "fp64"])
def model(request):
    dtype = torch.float64 if request.param == "fp64" else torch.bfloat16
    return models.build(dtype, precision="fp8" if request.param == "fp8" else None)


def passes(model, execute):
    """Hidden rows of a prefill and a decode pass, and what the cache then holds."""
    model.execute = execute
    try:
        cache = model.new_cache(3, 16)
        with torch.inference_mode():
            first = [model.prefill(cache, b, ids) for b, ids in enumerate(PROMPTS)]
            cache.lengths.copy_(torch.tensor([len(ids) for ids in PROMPTS]))
            step = model.decode(cache, [0, 1, 1, 2], [4, 9, 10, 1], torch.tensor([1, 2, 3, 4]))
        return [*(s.logits for s in first), step.logits, step.num_real, cache.rows.clone()]
    finally:
        model.execute = serial


def test_any_legal_order_has_the_same_bits(model):
    right = bits(passes(model, serial))
    for seed in range(50):
        assert bits(passes(model, AnyOrder(seed))) == right, seed
    for _ in range(3):
        assert bits(passes(model, threads)) == right
        assert bits(passes(model, Overlapped())) == right


@pytest.fixture
def joined(model):
    """The model as one of several ranks, of which it is the only one: rows are sent to itself."""
    if model.dtype == torch.float64:
        pytest.skip("rows travel in bf16")
    join_alone(model, 64)
    yield model
    for layer in model.layers:
        layer.mlp.parallel = layer.mlp.exchange = None
    model.parallel = None


def test_rows_that_travel_beside_the_dense_branch(model, request):
    """Sent, received and summed in any legal order, and on two threads: the bits of the layer without exchanges."""
    right = bits(passes(model, serial))
    joined = request.getfixturevalue("joined")
    for execute in (serial, threads, threads, Overlapped(), *map(AnyOrder, range(50))):
        assert bits(passes(joined, execute)) == right


@pytest.mark.parametrize("execute", [serial, AnyOrder(5)], ids=["serial", "any order"])
def test_a_recorded_graph_has_the_bits_of_every_executor(joined, execute):
    """A step over the stages of several ranks, recorded and replayed on other tokens and positions."""
    prompts, texts = [*PROMPTS, torch.tensor([3] * 40)], []
    for run, graph in ((serial, False), (threads, False), (execute, True)):
        joined.execute = run
        found = generate(joined, prompts, 9, eos_token_id=-1, graph=graph)
        texts.append([*bits([*found.sequences, *found.num_real]), found.accepted, found.steps])
    joined.execute = serial
    assert texts[0] == texts[1] == texts[2]


class Seen:
    """An observer that keeps, of each layer, the thread and the stages in the order in which they began."""

    def __init__(self):
        self.layers = []

    @contextmanager
    def layer(self, stages):
        self.layers.append((stages, []))
        yield
        assert sorted(self.order()) == sorted(2 * [one.name for one in stages])

    @contextmanager
    def stage(self, one):
        seen = self.layers[-1][1]
        seen.append((one.name, threading.current_thread()))
        yield
        seen.append((one.name, threading.current_thread()))

    def order(self, layer=-1):
        return [name for name, _ in self.layers[layer][1]]


def check_what_is_seen(model, execute, declared):
    """Each stage once per layer, on the thread of its lane, and the bits of a run that nobody sees."""
    seen, own = Seen(), threading.current_thread()
    apart = execute is threads or isinstance(execute, Overlapped)
    assert bits(passes(model, observed(execute, seen))) == bits(passes(model, serial))
    # A pass for each prompt and one over 4 rows, which fp64 runs row by row.
    assert len(seen.layers) == 2 * (len(PROMPTS) + (4 if model.dtype == torch.float64 else 1))
    for number, (given, marks) in enumerate(seen.layers):
        assert given is declared
        for one in declared:
            on = {thread for name, thread in marks if name == one.name}
            assert len(on) == 1 and (own in on) == (not apart or not one.communicates)
        if execute is serial:
            assert seen.order(number) == [one.name for one in declared for _ in range(2)]


EXECUTORS = {"serial": serial, "threads": threads, "two lanes": Overlapped(), "any order": AnyOrder(3)}


@pytest.mark.parametrize("execute", EXECUTORS.values(), ids=EXECUTORS)
def test_an_observer_sees_each_stage_and_changes_no_bit(model, request, execute):
    check_what_is_seen(model, execute, ScMoELayer.STAGES)
    check_what_is_seen(request.getfixturevalue("joined"), execute, ScMoELayer.PARALLEL)


def test_every_stage_has_a_part_of_a_measured_decode():
    assert {one.name for one in (*ScMoELayer.STAGES, *ScMoELayer.PARALLEL)} == set(PART_OF)


def test_orders_differ():
    """The declarations leave more than one order, and all of them begin and end alike."""
    gives, seen = {one.name: one.gives for one in ScMoELayer.STAGES}, set()

    class Layer:
        def __getattr__(self, name):
            def method(order, *values):
                order.append(name)
                return tuple(gives[name]) if len(gives[name]) > 1 else gives[name][0]

            return method

    for seed in range(50):
        order: list[str] = []
        AnyOrder(seed)(Layer(), ScMoELayer.STAGES, order, {"x": 0}, "out")
        seen.add(tuple(order))
    assert len(seen) > 5 and all(order[0] == "attend_first" and order[-1] == "add" for order in seen)


@pytest.mark.parametrize("stages", [ScMoELayer.STAGES, ScMoELayer.PARALLEL], ids=["one rank", "several"])
def test_the_lists_are_legal(stages):
    check(stages, ("x",), ("out",))
    assert all(callable(getattr(ScMoELayer, one.name)) for one in stages)


@pytest.mark.parametrize(("change", "text"), [
    (lambda s: [*s[:1], s[2], s[1], *s[3:]], "stage run_experts needs `routing`, which no stage before it gives"),
    (lambda s: [*s, stage("again", "x", "p")], "stage again gives `p`, which there is already"),
    (lambda s: s[:-1], "no stage gives `out`"),
])  # fmt: skip
def test_a_list_that_is_not_legal(change, text):
    with pytest.raises(LongcatError, match=text):
        check(change(list(ScMoELayer.STAGES)), ("x",), ("out",))


class Counter:
    """A layer of three stages: the second changes what the first gave, in place, without saying so."""

    HIDDEN = (
        stage("make", "x", "a"),
        stage("double", "a", "b"),
        stage("change", "a", "c"),
        stage("join", "b c", "out"),
    )
    MISSING = (stage("make", "x", "a"), stage("double", "", "b"), stage("join", "a b", "out"))
    FEWER = (stage("make", "x", "a z"),)

    def make(self, rows, x):
        return x + 1

    def double(self, rows, a):
        return 2 * a

    def change(self, rows, a):
        time.sleep(0.001)
        return a.add_(5)

    def join(self, rows, *parts):
        return sum(parts)


def test_wrong_declarations_are_found():
    """A write in place that is not declared, a need that is not, a value that is not given."""
    layer = Counter()

    def outputs(execute):
        return execute(layer, Counter.HIDDEN, None, {"x": torch.ones(2)}, "out").tolist()

    assert outputs(serial) == [11.0, 11.0]  # 2 * 2 + 7
    assert {tuple(outputs(AnyOrder(seed))) for seed in range(20)} == {(11.0, 11.0), (21.0, 21.0)}
    for execute in (serial, threads, AnyOrder(0)):
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'a'"):
            execute(layer, Counter.MISSING, None, {"x": torch.ones(2)}, "out")
        with pytest.raises(LongcatError, match="stage make gave no 2 values"):
            execute(layer, Counter.FEWER, None, {"x": torch.ones(2)}, "a")


def test_threads_run_beside_each_other_and_end_together():
    """Each of two stages waits until the other has begun; an error of one ends both."""
    meet = threading.Barrier(2, timeout=20)
    both = (stage("first", "x", "a", True), stage("second", "x", "b"), stage("join", "a b", "out"))
    layer = SimpleNamespace(first=lambda r, x: meet.wait() >= 0, second=lambda r, x: meet.wait() >= 0,
                            join=lambda r, a, b: (a, b) == (True, True))  # fmt: skip
    assert threads(layer, both, None, {"x": 1}, "out") is True
    layer.first = lambda r, x: 1 // 0
    layer.second = lambda r, x: 0
    with pytest.raises(ZeroDivisionError):
        threads(layer, both, None, {"x": 1}, "out")
    assert threading.active_count() < 20


def test_values_go_when_nobody_needs_them():
    """The serial executor keeps no more than a layer written out would."""
    some = (stage("make", "x", "a"), stage("use", "a", "b"), stage("end", "b", "out"))
    held: dict[str, object] = {"x": 0}
    layer = SimpleNamespace(make=lambda r, x: "a", use=lambda r, a: sorted(held), end=lambda r, b: (b, sorted(held)))
    assert serial(layer, some, None, held, "out") == (["a"], ["b"]) and sorted(held) == ["out"]


def test_a_text_is_the_same_on_two_threads(model):
    if model.dtype == torch.float64:
        pytest.skip("one dtype less: generate runs fp64 row by row, which takes long")
    right = generate(model, PROMPTS, 6, eos_token_id=-1, graph=False)
    model.execute = threads
    try:
        again = generate(model, PROMPTS, 6, eos_token_id=-1, graph=False)
    finally:
        model.execute = serial
    assert bits(again.sequences) == bits(right.sequences)
    assert stages.serial is model.execute

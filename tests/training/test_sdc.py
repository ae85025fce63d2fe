"""A hundred planted flips of one bit, all found, the op or tensor of each named; `Watch`, which looks now and then."""

from __future__ import annotations

import pickle
import random
from collections import Counter

import pytest
import torch
from torch import nn

import longcat_ops
from longcat_ops import LongcatCorruptionError, LongcatShapeError
from longcat_ops.training import Checksums, Watch, tensors_of
from longcat_ops.training.determinism import check
from support import models
from support.flips import REDUCTIONS, Fault, flip

WEIGHTS, COMPUTED, IN_MEMORY, ADDENDS = 34, 20, 16, 30
assert WEIGHTS + COMPUTED + IN_MEMORY + ADDENDS == 100


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_flips_in_weights():
    """FP8 codes, scales, norms, router and bias of a whole network; running twice cannot see them."""
    model, draw = models.build(torch.bfloat16, precision="fp8", hidden_size=128), random.Random(0)
    tensors = tensors_of(model)
    sums, kinds = Checksums(tensors), Counter()
    for _ in range(WEIGHTS):
        name = draw.choice(list(tensors))
        flip(tensors[name], draw)
        assert sums.changed() == [name]
        sums.renew([name])
        kinds[tensors[name].dtype] += 1
    assert kinds.keys() == {torch.float8_e4m3fn, torch.float32, torch.bfloat16}
    x, weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), torch.eye(8)
    flip(weight, draw)
    assert check(lambda x: x @ weight, x).holds


def layer():
    """A dense and an MoE block out of this library's FP8 ops, as a function of rows [n,128]."""
    g = torch.Generator().manual_seed(0)
    w, gate_up, down = (torch.randn(*shape, generator=g) for shape in ((128, 128), (4, 256, 128), (4, 128, 128)))
    q, s = longcat_ops.per_block_quant_fp8(w)
    router, bias, ones = torch.randn(6, 128, generator=g), torch.zeros(6), torch.ones(128)
    gate_up, down = longcat_ops.interleave_gate_up(gate_up.bfloat16()), down.bfloat16()

    def run(x):
        rows, scales, normed, _ = longcat_ops.rms_norm_quant_fp8(x, ones, 1e-5)
        h = longcat_ops.fp8_gemm_nt((rows, scales), (q, s))
        y = longcat_ops.rms_norm(h, ones, 1e-5)
        routing = longcat_ops.moe_route(longcat_ops.router_gemm(y, router), bias, top_k=3, num_experts=6,
                                        num_zero_experts=2, scale=2.0)  # fmt: skip
        return longcat_ops.fused_moe(y, routing, gate_up, down), normed, routing  # also what no op has read

    return run, torch.randn(5, 128, generator=g).bfloat16()


OURS = ("longcat_ops",)


def count(fn, x, **options) -> int:
    """Of the places in one run where a fault can strike."""
    counting = Fault(-1, random.Random(0), **options)
    with counting:
        assert check(fn, x).holds
    return len(counting.calls) // 2


def struck(fn, x, at: int, draw: random.Random, *, in_memory: bool = False, **options):
    """A fault at the `at`-th place of two runs: the mode, which knows where it struck, and what the check says."""
    fault = Fault(at, draw, **options)
    if not in_memory:
        with fault:
            return fault, check(fn, x).difference

    def inside(x):
        with fault:
            return fn(x)

    return fault, check(inside, x).difference


def test_flips_in_what_ops_compute():
    (fn, x), draw, seen = layer(), random.Random(1), set()
    places = count(fn, x, kinds=OURS)
    for i in range(COMPUTED):
        fault, found = struck(fn, x, places + i % places, draw, kinds=OURS)
        assert found.op == fault.op and found.run == 2 and ("written" in found.what or "output" in found.what)
        assert found.elements == 1 and found.ulp is not None
        seen.add(found.op)
    assert len(seen) >= 5


def test_flips_in_memory_behind_an_op():
    """The next op that reads the tensor is named, even where its own result comes out the same."""
    (fn, x), draw = layer(), random.Random(2)
    places = count(fn, x, kinds=OURS)
    for i in range(IN_MEMORY):
        fault, found = struck(fn, x, places + i % places, draw, in_memory=True, kinds=OURS)
        assert fault.op is not None and found.run == 2 and found.elements == 1
        assert found.what.startswith(("argument", "result")) and "written" not in found.what


def test_flips_in_reductions():
    """One addend of a product, a sum, a norm or a softmax, forward and backward."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 5))
    target, draw, phases = torch.tensor([1, 0, 4]), random.Random(3), Counter()

    def loss(x):
        logits = net(x)
        return nn.functional.cross_entropy(logits, target) + logits.softmax(-1).square().sum()

    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    places = count(loss, x, kinds=REDUCTIONS, reduction=True)
    for i in range(ADDENDS):
        fault, found = struck(loss, x, places + i % places, draw, kinds=REDUCTIONS, reduction=True)
        assert found.op == fault.op and found.run == 2 and found.what.startswith("output") and found.ulp is not None
        phases[found.phase] += 1
    assert min(phases["forward"], phases["backward"]) >= 5


def test_a_watch_runs_twice_when_due_and_names_what_differs():
    weights = {"a": torch.ones(3), "b": torch.zeros(2)}
    watch, runs = Watch(weights, every=3), []

    def backward(x, wrong_at=None):
        runs.append(watch.step)
        noise = torch.rand(3)  # the same in both runs
        return {"a": weights["a"] * x + noise, "b": [weights["b"] + (len(runs) == wrong_at)]}

    torch.manual_seed(0)
    state = torch.get_rng_state()
    for _ in range(7):
        watch.run(backward, 2.0)
        watch.before_update()
        weights["a"] += 1
        watch.after_update()
    assert runs == [0, 0, 1, 2, 3, 3, 4, 5, 6, 6]
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    for _ in range(7):
        torch.rand(3)
    assert torch.equal(after, torch.get_rng_state())  # a look draws no numbers of its own
    watch.after_update()
    watch.after_update()
    with pytest.raises(
        LongcatCorruptionError, match=r"at step 9 the bits of result\['b'\]\[0\] differ between"
    ) as error:
        watch.run(backward, 2.0, len(runs) + 2)
    assert error.value.names == ["result['b'][0]"] and error.value.step == 9
    again = pickle.loads(pickle.dumps(error.value))
    assert str(again) == str(error.value) and again.names == error.value.names


def test_a_watch_compares_tensors_at_rest_in_turn():
    weights, draw = {name: torch.ones(4) for name in "abcde"}, random.Random(0)
    watch = Watch(weights, every=2, at_once=2)

    def step(change=None, between=None):
        watch.before_update()
        for t in weights.values():
            t += 1
        watch.after_update()
        if between:
            flip(weights[between], draw)

    for _ in range(4):
        step()  # writes of updates are none of its business; looks behind steps 1 (a, b) and 3 (c, d)
    step(between="e")  # nobody looks
    step(between="a")  # e and a are looked at
    with pytest.raises(LongcatCorruptionError, match="Watch: at step 6 the bits of a changed between two updates"):
        watch.before_update()
    watch.before_update()  # said once


def test_refusals_of_a_watch():
    for options, text in (({"every": 0}, "`every` is 0"), ({"at_once": True}, "`at_once` is True")):
        with pytest.raises(LongcatShapeError, match=text):
            Watch({}, **options)

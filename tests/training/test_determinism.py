"""`determinism.check` over functions that differ in a known way, and distances in ulp by hand."""

from __future__ import annotations

import ctypes
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

import longcat_ops
from longcat_ops import LongcatShapeError
from longcat_ops.ops import direct
from longcat_ops.training.determinism import check
from longcat_ops.training.ulp import furthest


class Once:
    """Something that happens in one run alone."""

    def __init__(self, run: int = 2) -> None:
        self.run, self.calls = run, 0

    def __call__(self) -> bool:
        self.calls += 1
        return self.calls == self.run


def poke(t: torch.Tensor, at: int, value: float) -> None:
    """Writes to the memory of a float32 tensor; no op of torch does it."""
    ctypes.c_float.from_address(t.data_ptr() + 4 * at).value = value


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.LayerNorm(8), nn.Linear(8, 3))


def test_forward_and_backward_of_a_deterministic_network():
    net, x = network(), torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    before = torch.get_rng_state()
    found = check(lambda x: net(x).softmax(-1), x, runs=3)
    assert found.holds and found.difference is None and found.runs == 3 and "the same bits" in str(found)
    assert found.calls > 20 and found.num_bytes > 4 * 4 * 6
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in net.parameters())
    plain = check(lambda x: net(x).detach(), x)
    assert plain.calls < found.calls  # no backward


@pytest.mark.parametrize("run", [2, 3])
def test_the_op_that_differs_is_named(run):
    other, x = Once(run), torch.arange(6.0).reshape(2, 3) + 1

    def fn(x):
        y = x * 2
        z = y + (2**-21 if other() else 0)  # 2 ulp of float32 at 4 .. 8, 4 ulp at 2 .. 4
        return z.exp().sum()

    found = check(fn, x, runs=4).difference
    assert (found.op, found.what, found.phase, found.run) == ("aten.add.Tensor", "output 0", "forward", run)
    assert found.call == 1 and found.elements == 3 and found.index == (0, 0) and found.ulp == 2
    assert (found.first, found.second) == (2.0, 2.0 + 2**-21) and found.line.startswith(__file__)
    assert f"output 0 of aten.add.Tensor, call 1 (forward), differs in run {run}: 3 elements, by up to 2 ulp" in str(
        found
    )


def test_memory_that_changes_between_two_ops_is_an_argument():
    other = Once()

    def fn(x):
        y = x * 2
        if other():
            poke(y, 1, np.nextafter(np.float32(2), np.float32(9)))
        return y.exp()

    found = check(fn, torch.ones(3)).difference
    assert (found.op, found.what, found.elements, found.index, found.ulp) == (
        "aten.exp.default",
        "argument 0",
        1,
        (1,),
        1,
    )


class Wrong(torch.autograd.Function):
    """Its backward adds `error()` to the gradient."""

    @staticmethod
    def forward(ctx, x, error):
        ctx.error = error
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.sub(ctx.error()), None


def test_a_backward_that_differs():
    net, other = network(), Once()
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    found = check(lambda x: Wrong.apply(net(x), lambda: float(other())).square().mean(), x).difference
    assert (found.op, found.phase, found.run, found.elements) == ("aten.sub.Tensor", "backward", 2, 12)
    assert found.line is None


def test_leaves_that_gradients_arrive_at():
    """A parameter of a closure, an argument, and a result that is itself a leaf; `.grad` stays None."""
    w, x = (torch.ones(2, requires_grad=True) for _ in range(2))
    found = check(lambda x: [(w * x).sum(), x], x)
    assert found.holds and w.grad is None and x.grad is None
    early = (w * 3).requires_grad_()  # its graph ends at the call
    assert check(lambda y: y.sum(), early).holds


def test_runs_that_call_other_ops():
    other = Once()
    found = check(lambda x: (x.exp() if other() else x.sin()).sum(), torch.ones(2)).difference
    assert (found.what, found.op, found.call) == ("order", "aten.exp.default", 0)
    assert "run 2 has another order of calls from aten.exp.default on, call 0 (forward)" in str(found)
    more = Once()
    found = check(lambda x: x.sin() if more() else x.sin().cos(), torch.ones(2)).difference
    assert (found.what, found.op, found.call) == ("order", "aten.cos.default", 1)
    fewer = Once(1)
    found = check(lambda x: x.sin() if fewer() else x.sin().cos(), torch.ones(2)).difference
    assert (found.what, found.op, found.call) == ("order", "aten.cos.default", 1)


def test_results_without_an_op():
    other, nothing = Once(), Once(9)
    found = check(lambda x: {"sum": float(other()), "nan": math.nan}, torch.ones(1)).difference
    assert (found.op, found.what) == ("fn", "result")
    assert check(lambda x: {"sum": float(nothing()), "nan": math.nan}, torch.ones(1)).holds
    values = Once()

    def fn(x):
        y = x.exp()
        poke(y, 1, 5.0 if values() else 6.0)
        return y

    found = check(fn, torch.ones(2)).difference
    assert (found.op, found.what, found.elements, found.second) == ("fn", "result 0", 1, 5.0)


def test_lists_that_an_op_writes_and_other_results():
    """Each tensor of a list counts; objects that cannot be compared do not."""
    other = Once()

    def fn(x):
        rows = [x.exp(), x.sin(), x.cos()]
        torch._foreach_add_(rows, [1.0, 2.0 + other(), 3.0])
        return rows, object(), np.ones(3), torch.eye(2).to_sparse()

    found = check(fn, torch.ones(2)).difference
    assert (found.op, found.what, found.elements) == ("aten._foreach_add_.ScalarList", "argument self, written 1", 2)
    assert check(lambda x: (object(), np.ones(3)), torch.ones(2)).holds


def test_a_run_that_raises():
    other = Once()

    def fn(x):
        if other():
            raise RuntimeError("it broke\nbadly")
        return x.exp()

    found = check(fn, torch.ones(2)).difference
    assert (found.op, found.what, found.run) == ("fn", "RuntimeError: it broke", 2)
    with pytest.raises(ZeroDivisionError):
        check(lambda x: x * (1 // 0), torch.ones(2))


def test_shapes_and_dtypes_that_differ():
    other = Once()
    found = check(lambda x: x.repeat(3 if other() else 2), torch.ones(2)).difference
    assert (found.op, found.elements, found.ulp) == ("aten.repeat.default", None, None)


def test_checksums_alone_find_it_too():
    other = Once()
    found = check(lambda x: x + float(other()), torch.ones(3), keep=0).difference
    assert (found.op, found.what, found.elements, found.ulp) == ("aten.add.Tensor", "output 0", None, None)


def test_uninitialised_memory_is_no_difference():
    def fn(x):
        rows = x.new_empty(500, 7)
        rows[0] = 1
        garbage = torch.empty(4, 3, dtype=torch.float8_e4m3fn), torch.empty_like(x), torch.empty_strided((2, 2), (2, 1))
        return rows.sum(), *garbage

    for _ in range(3):
        torch.full((500, 7), random.random())  # leaves other bytes behind
        assert check(fn, torch.ones(3)).holds


def test_ops_of_this_library_are_seen():
    x, w = torch.randn(3, 256, generator=torch.Generator().manual_seed(0)), torch.ones(256)
    other, before = Once(), direct.switch(True)

    def fn(x):
        q, _ = longcat_ops.per_token_group_quant_fp8(x * (1 + 2**-7 * other()))
        return longcat_ops.rms_norm(q.float(), w, 1e-5)

    try:
        found = check(fn, x).difference
        assert direct.switch(True) is True
    finally:
        direct.switch(before)
    assert found.op == "aten.mul.Tensor"
    q = Once()

    def late(x):
        y = longcat_ops.rms_norm(x, w, 1e-5)
        return longcat_ops.rms_norm(y, w, 1e-5 if not q() else 2e-5)

    found = check(late, x).difference
    assert found.op == "longcat_ops.rms_norm.default" and found.what.startswith("argument y, written")


def test_refusals():
    x = torch.ones(2)
    with pytest.raises(LongcatShapeError, match=r"`fn` is a function whose op aten.add_.Tensor writes to its tensor 0"):
        check(lambda x: x.add_(1), x)
    assert torch.equal(x, torch.ones(2))
    with pytest.raises(LongcatShapeError, match="`runs` is 1, expected an int of at least 2"):
        check(torch.sin, x, runs=1)
    with pytest.raises(LongcatShapeError, match="`keep` is -1"):
        check(torch.sin, x, keep=-1)
    with pytest.raises(LongcatShapeError, match="`fn` is a Tensor, expected a function"):
        check(x)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_ulp_beside_numpy(dtype):
    """Steps of nextafter from one number to another, through 0 as well."""
    for start, steps in ((1.0, 5), (-2.0, 3), (float(np.finfo(dtype).smallest_subnormal) * 2, -4), (0.0, 1)):
        a = b = dtype(start)
        for _ in range(abs(steps)):
            b = np.nextafter(b, dtype(math.copysign(math.inf, steps)))
        found = furthest(torch.tensor([[7, a]]), torch.tensor([[7, b]]))
        assert found == {"elements": 1, "index": (0, 1), "first": float(a), "second": float(b), "ulp": abs(steps)}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_ulp_counts_the_numbers_between(dtype):
    size = torch.tensor([], dtype=dtype).element_size()
    every = torch.arange(1 << (8 * size), dtype=torch.int32).to(torch.uint8 if size == 1 else torch.uint16).view(dtype)
    numbers = every.float()[every.float().isfinite()].unique()  # -0 and 0 are one
    draw = random.Random(0)
    for _ in range(50):
        i, j = draw.randrange(len(numbers)), draw.randrange(len(numbers))
        pair = [numbers[k].to(dtype)[None] for k in (i, j)]
        assert furthest(*pair)["ulp"] == abs(i - j)


def test_ulp_of_other_values():
    assert furthest(torch.tensor([3, 9]), torch.tensor([3, 4]))["ulp"] == 5
    assert furthest(torch.tensor([True]), torch.tensor([False]))["ulp"] == 1
    found = furthest(torch.tensor([1 + 2j]), torch.tensor([1 + 3j]))
    assert found["index"] == (0, 1) and (found["first"], found["second"]) == (2.0, 3.0)
    zero = furthest(torch.tensor([0.0, 5.0]), torch.tensor([-0.0, 5.0]))
    assert zero["elements"] == 1 and zero["ulp"] == 0 and zero["index"] == (0,)
    widest = furthest(torch.tensor([-math.inf], dtype=torch.float64), torch.tensor([math.inf], dtype=torch.float64))
    assert widest["ulp"] == 2 * 0x7FF0000000000000
    assert furthest(torch.tensor(1.0), torch.tensor(1.5))["index"] == ()

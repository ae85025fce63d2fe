"""What watches or changes calls in torch sees each call of an op's function, although most calls go past torch."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch
import torch.autograd.profiler_legacy
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

import longcat_ops
from longcat_ops.ops import direct
from longcat_ops.testing.op_cases import public
from longcat_ops.testing.op_results import bits
from support import carried
from support.direct_calls import CALLS, MAKERS, blank_call, by_torch, only_on_kernels

pytestmark = only_on_kernels
FIRST_CALLS = list({op: (op, name) for op, name in reversed(CALLS)}.values())


class DispatchRecorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


class FunctionRecorder(TorchFunctionMode):
    def __init__(self):
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        schema = getattr(func, "_schema", None)
        self.names.append(getattr(func, "__name__", "") if schema is None else schema.name)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def functorch_level():
    """One that a function under torch.vmap is run at."""
    level = torch._C._functorch._vmap_increment_nesting(2, "error")
    try:
        yield level
    finally:
        torch._C._functorch._vmap_decrement_nesting()


WATCHERS = {
    "dispatch mode": DispatchRecorder,
    "function mode": FunctionRecorder,
    "default device": lambda: torch.device("cpu"),
    "fakes": lambda: FakeTensorMode(allow_non_fake_inputs=True),
    "vmap": functorch_level,
    "forward AD": forward_ad.dual_level,
    "profiler": lambda: profile(activities=[ProfilerActivity.CPU]),
    "profiler of autograd": torch.autograd.profiler.profile,
    "old profiler": torch.autograd.profiler_legacy.profile,
}


@pytest.mark.parametrize("kind", WATCHERS)
def test_no_call_is_direct_while_torch_is_watched(kind):
    call, arguments = direct.caller("add_rows"), (torch.ones(2, 8), torch.ones(2, 8), torch.zeros(2, 8))
    make = direct.maker("add_rows", (0, 0), (0, 1), 0)
    with WATCHERS[kind]():
        assert call(*arguments) is False and make(*arguments[:2]) is None
        with torch.inference_mode():
            assert call(*arguments) is False and make(*arguments[:2]) is None
    assert not arguments[-1].any()
    assert call(*arguments) is True and make(*arguments[:2]) is not None


@pytest.mark.parametrize(("op", "name"), FIRST_CALLS)
def test_modes_see_every_op(op, name):
    made = longcat_ops.testing.op_cases.CASES[op][name]()
    for mode in (DispatchRecorder, FunctionRecorder):
        with mode() as recorder:
            public(op)(*made.args, **made.kwargs)
        assert recorder.names.count(f"longcat_ops::{op}") == 1, mode


@pytest.mark.parametrize("op", MAKERS)
def test_a_profiler_sees_the_op_and_its_allocation(op):
    args = MAKERS[op](2)
    seen = []
    for call in (public(op), lambda *args: by_torch(op, *args)):
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
            call(*args)
        seen.append([(event.key, event.count, event.input_shapes) for event in profiled.key_averages(True)])
    assert seen[0] == seen[1] and f"longcat_ops::{op}" in [key for key, *_ in seen[0]]


def test_a_profiler_of_all_threads_sees_the_op_in_another_thread():
    x, weight = torch.ones(2, 8), torch.ones(8)
    config = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with profile(activities=[ProfilerActivity.CPU], experimental_config=config) as profiled:
        thread = threading.Thread(target=longcat_ops.rms_norm, args=(x, weight, 1e-5))
        thread.start()
        thread.join()
    assert "longcat_ops::rms_norm" in [event.key for event in profiled.key_averages()]


@pytest.mark.parametrize("op", MAKERS)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated", "ignore:.*TracerWarning")
def test_tracers_record_the_op(op):
    leaves, structure = tree_flatten(MAKERS[op](2))
    flat = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def call(*tensors):
        given = iter(tensors)
        args = [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        return public(op)(*tree_unflatten(args, structure))

    expected, name = bits(call(*flat)), f"longcat_ops::{op}"
    traced = torch.jit.trace(call, tuple(flat), check_trace=False)
    assert str(traced.graph).count(name) == 1 and bits(traced(*flat)) == expected
    for keywords in ({}, {"pre_dispatch": True}):
        graph = make_fx(call, **keywords)(*flat)
        assert [node.target for node in graph.graph.nodes].count(getattr(torch.ops.longcat_ops, op).default) == 1
        assert bits(graph(*flat)) == expected


@pytest.mark.long
@pytest.mark.parametrize(("op", "name"), FIRST_CALLS)
def test_compiled_graphs_hold_the_op(op, name):
    made, targets = longcat_ops.testing.op_cases.CASES[op][name](), []

    def backend(graph, inputs):
        targets.extend(node.target for node in graph.graph.nodes)
        return graph.forward

    torch.compile(public(op), backend=backend, fullgraph=True)(*made.args, **made.kwargs)
    assert targets.count(getattr(torch.ops.longcat_ops, op).default) == 1
    _, arguments = blank_call(op, name)
    assert direct.caller(op)(*arguments) is True


def test_transforms_of_something_else_go_through():
    x, weight = torch.randn(3, 8), torch.rand(8)
    expected = longcat_ops.rms_norm(x, weight, 1e-5)
    scaled = torch.vmap(lambda s: longcat_ops.rms_norm(x, weight, 1e-5) * s)(torch.tensor([1.0, 2.0]))
    assert torch.equal(scaled, torch.stack([expected, 2 * expected]))


def test_kernels_that_tests_register_on_cpu_are_called(monkeypatch):
    calls = []
    monkeypatch.setattr(carried, "active", False)
    monkeypatch.setattr(carried, "carried", lambda overload, device: lambda *arguments: calls.append(overload))
    x, weight = torch.ones(2, 8), torch.ones(8)
    library = carried.register("cpu")
    try:
        longcat_ops.rms_norm(x, weight, 1e-5)
    finally:
        library._destroy()
        direct.switch(True)
    assert calls == [torch.ops.longcat_ops.rms_norm]
    assert torch.allclose(longcat_ops.rms_norm(x, weight, 0.0), x)

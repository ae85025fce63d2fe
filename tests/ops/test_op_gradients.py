"""No op has a gradient formula: each refuses inputs through which a gradient would have to flow."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

import longcat_ops
from longcat_ops import LongcatUnsupportedError
from longcat_ops.ops.registry import OPS
from longcat_ops.testing.op_cases import CASES, EVERY, FIRST, is_output, public, schema_call
from longcat_ops.testing.op_results import bits, tensors
from support.op_places import tensor_arguments, with_blank_outputs

pytestmark = pytest.mark.long

FLOATING = tensor_arguments(FIRST, torch.Tensor.is_floating_point)
FIRST_NAMES = {op: name for op, name in FIRST}
OF_FLOATS = [op for op in OPS if op in {param.values[0] for param in FLOATING}]  # no gradient passes the others


def replaced(arguments, i, value):
    return (*arguments[:i], value, *arguments[i + 1 :])


def with_gradient(value):
    return value.detach().clone().requires_grad_()


def swap(value, old, new):
    """Arguments of a public function with one tensor replaced by another, at any depth."""
    if value is old:
        return new
    if isinstance(value, tuple):
        parts = [swap(part, old, new) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def message(op, name, what="a tensor that requires a gradient"):
    return f"^{op}: argument `{name}` is {what}, expected one that does not"


@pytest.mark.parametrize(("op", "name", "i"), FLOATING)
def test_torch_ops_refuse_each_tensor_that_requires_a_gradient(op, name, i):
    overload, arguments, _ = schema_call(op, name)
    argument = overload._schema.arguments[i].name
    before = [bits(a) if isinstance(a, torch.Tensor) else a for a in arguments]
    with pytest.raises(LongcatUnsupportedError, match=message(op, argument)) as caught:
        overload(*replaced(arguments, i, with_gradient(arguments[i])))
    assert f"fix: {argument}.detach() or torch.no_grad()" in str(caught.value)
    assert [bits(a) if isinstance(a, torch.Tensor) else a for a in arguments] == before
    with torch.no_grad():
        overload(*replaced(arguments, i, with_gradient(arguments[i])))


@pytest.mark.parametrize(("op", "name", "i"), FLOATING)
def test_functions_refuse_each_input_that_requires_a_gradient(op, name, i):
    overload, arguments, made = schema_call(op, name)
    spec, value = overload._schema.arguments[i], arguments[i]
    args = tuple(swap(a, value, with_gradient(value)) for a in made.args)
    kwargs = {key: swap(a, value, with_gradient(value)) for key, a in made.kwargs.items()}
    if not any(a.requires_grad for a in tensors([*args, *kwargs.values()])):
        assert is_output(spec)  # one that the function makes itself
        return
    with pytest.raises(LongcatUnsupportedError, match=message(op, spec.name)) as caught:
        public(op)(*args, **kwargs)
    supported, reason, fix = longcat_ops.supports(op, *args, **kwargs)
    assert (supported, f"{reason}\n  fix: {fix}") == (False, str(caught.value))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert longcat_ops.supports(op, *args, **kwargs) == (True, "", "")
            public(op)(*args, **kwargs)


@pytest.mark.parametrize(("op", "name"), EVERY)
def test_results_do_not_depend_on_the_grad_mode(op, name):
    """Grad mode runs through the autograd kernel, inference mode does not; both have the same bits."""
    overload, arguments, _ = schema_call(op, name)
    specs, results = overload._schema.arguments, []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        fresh = with_blank_outputs(overload, arguments)
        with mode():
            overload(*fresh)
        results.append([a for spec, a in zip(specs, fresh, strict=True) if is_output(spec) and a is not None])
    assert not any(t.requires_grad for result in results for t in result)
    assert bits(results[0]) == bits(results[1]) == bits(results[2])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("way", ["function", "torch.ops"])
@pytest.mark.parametrize("op", OF_FLOATS)
def test_transforms_are_refused(op, way):
    overload, arguments, made = schema_call(op, FIRST_NAMES[op])
    floating = [
        i
        for i, (spec, a) in enumerate(zip(overload._schema.arguments, arguments, strict=True))
        if isinstance(a, torch.Tensor) and a.dtype in (torch.float32, torch.bfloat16) and not is_output(spec)
    ]
    i = floating[0]
    value, argument = arguments[i], overload._schema.arguments[i].name

    def run(x):
        if way == "torch.ops":
            overload(*replaced(arguments, i, x))
        else:
            public(op)(
                *(swap(a, value, x) for a in made.args), **{k: swap(a, value, x) for k, a in made.kwargs.items()}
            )
        return x.float().sum()

    with pytest.raises(LongcatUnsupportedError, match=message(op, argument)):
        torch.func.grad(run)(value)
    with pytest.raises(LongcatUnsupportedError, match=message(op, argument)):
        torch.func.vjp(run, value)
    with pytest.raises(LongcatUnsupportedError, match=message(op, argument)), torch.no_grad():
        torch.func.grad(run)(value)
    with pytest.raises(LongcatUnsupportedError, match=message(op, argument)):
        torch.func.grad(torch.func.grad(run))(value)
    tangent = message(op, argument, "a tensor with a tangent of forward-mode differentiation")
    with pytest.raises(LongcatUnsupportedError, match=tangent):
        torch.func.jvp(run, (value,), (torch.ones_like(value),))
    with pytest.raises(LongcatUnsupportedError, match=tangent), forward_ad.dual_level():
        run(forward_ad.make_dual(value, torch.ones_like(value)))
    with pytest.raises(LongcatUnsupportedError, match=f"^{op}: argument `"):
        torch.func.jacrev(run)(value)
    with pytest.raises(LongcatUnsupportedError, match=f"^{op}: argument `"):
        torch.func.jacfwd(run)(value)


@pytest.mark.parametrize("way", ["function", "torch.ops"])
def test_transforms_of_something_else_go_through(way):
    """A transform passes if the op's inputs are constants, or detached, in the differentiated function."""
    x, weight, scale = torch.randn(3, 8), torch.rand(8), torch.tensor(2.0)
    normed = longcat_ops.rms_norm(x, weight, 1e-5)

    def loss(scale, detached):
        y = torch.empty_like(x)
        if way == "torch.ops":
            torch.ops.longcat_ops.rms_norm(detached.detach(), weight, 1e-5, None, y, None)
        else:
            y = longcat_ops.rms_norm(detached.detach(), weight, 1e-5)
        return (y * scale).sum() + 0 * detached.sum()

    assert torch.allclose(torch.func.grad(loss)(scale, x), normed.sum())
    _, tangent = torch.func.jvp(lambda s: loss(s, x), (scale,), (torch.tensor(1.0),))
    assert torch.allclose(tangent, normed.sum())


def test_part_of_a_loss_does_not_lose_its_gradient_silently():
    x, weight = torch.randn(3, 8, requires_grad=True), torch.rand(8)
    with pytest.raises(LongcatUnsupportedError, match=message("rms_norm", "x")):
        (longcat_ops.rms_norm(x, weight, 1e-5) + x).sum().backward()
    with pytest.raises(LongcatUnsupportedError, match=message("rms_norm", "x")):  # not a leaf either
        longcat_ops.rms_norm(2 * x, weight, 1e-5)
    (longcat_ops.rms_norm(x.detach(), weight, 1e-5) + x).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_calls_are_refused_too(backend):
    x, weight = torch.randn(3, 8), torch.rand(8)
    compiled = torch.compile(lambda x: longcat_ops.rms_norm(x, weight, 1e-5) + x, backend=backend, fullgraph=True)
    assert torch.equal(compiled(x), longcat_ops.rms_norm(x, weight, 1e-5) + x)
    with pytest.raises(Exception, match="rms_norm: argument `x` is a tensor that requires a gradient"):
        compiled(x.clone().requires_grad_())


def test_every_op_has_an_autograd_kernel():
    for op in CASES:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"longcat_ops::{op}", "Autograd"), op

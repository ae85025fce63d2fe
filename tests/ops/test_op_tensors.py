"""Tensors that an op cannot read: their memory is gone, or they are not dense memory."""

from __future__ import annotations

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

import longcat_ops
from longcat_ops import LongcatShapeError
from longcat_ops.ops import checking
from longcat_ops.testing.op_cases import CASES, EVERY, FIRST, is_output, public, schema_call
from longcat_ops.testing.op_results import bits
from support.op_places import (
    ALL_PLACES,
    READ_PLACES,
    call_with,
    refused_alike,
    tensor_arguments,
    tensor_at,
    with_blank_outputs,
)

TENSORS = tensor_arguments(EVERY, torch.Tensor.numel)


def freed(value):
    copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).copy_(value)
    copy.untyped_storage().resize_(0)
    return copy


def shrunk(value):
    """A copy whose storage lacks its last byte."""
    copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).copy_(value)
    reach = sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True)) + 1
    copy.untyped_storage().resize_(reach * value.element_size() - 1)
    return copy


def freed_behind_an_offset(value):
    whole = torch.zeros(value.numel() * 3 + 64, dtype=value.dtype)
    view = whole.as_strided(value.shape, value.stride(), 16)
    whole.untyped_storage().resize_(16 * value.element_size())
    return view


@pytest.mark.parametrize("take", [freed, shrunk, freed_behind_an_offset])
@pytest.mark.parametrize(("op", "name", "i"), TENSORS)
def test_memory_that_is_gone_is_refused_by_torch_ops(op, name, i, take):
    overload, arguments, _ = schema_call(op, name)
    specs = overload._schema.arguments
    mixed, untouched = (list(with_blank_outputs(overload, arguments)) for _ in range(2))
    mixed[i] = take(mixed[i])
    argument = {"gate_up_scales": "w_gate_up scales", "down_scales": "w_down scales"}.get(specs[i].name, specs[i].name)
    expected = rf"\[LC-SHAPE\] {op}: argument `{argument}` is (without memory|in a storage of \d+ bytes), expected the"
    with pytest.raises(RuntimeError, match=expected):
        overload(*mixed)
    code, reason, _ = checking.find_problem(op, *mixed)  # the check of the reference and the emulator
    assert code == "LC-SHAPE" and f"argument `{argument}`" in reason
    mixed[i] = mixed[i].as_subclass(Renamed)
    assert checking.find_problem(op, *mixed)[:2] == (code, reason)
    assert all(
        bits(a) == bits(old)
        for j, (s, a, old) in enumerate(zip(specs, mixed, untouched, strict=True))
        if j != i and is_output(s) and a is not None
    )


@pytest.mark.parametrize(("op", "path", "argument"), ALL_PLACES)
def test_memory_that_is_gone_is_refused_by_functions(op, path, argument):
    made, value = tensor_at(op, path)
    if not value.numel():
        return
    args, kwargs = call_with(op, made, path, freed(value))
    if argument is None:
        public(op)(*args, **kwargs)  # a field that the op does not read
        return
    assert "is without memory, expected the" in refused_alike(op, args, kwargs)


def test_an_empty_tensor_needs_no_memory():
    x = torch.empty(0, 8)
    x.untyped_storage().resize_(0)
    assert longcat_ops.rms_norm(x, torch.ones(8), 1e-5).shape == (0, 8)
    meta = torch.empty(4, 8, device="meta")
    meta.untyped_storage().resize_(0)
    assert longcat_ops.rms_norm(meta, torch.ones(8, device="meta"), 1e-5).shape == (4, 8)


class Bare(torch.Tensor):
    """A shape without memory."""

    @staticmethod
    def __new__(cls, like):
        return torch.Tensor._make_wrapper_subclass(cls, like.shape, strides=like.stride(), dtype=like.dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        with torch._C._DisableTorchDispatch():
            return func(*args, **(kwargs or {}))


class Renamed(torch.Tensor):
    """Plain memory under another class name."""


def test_a_null_pointer_is_refused_by_torch_ops():
    x, weight = torch.ones(4, 8), torch.ones(8)
    for arguments in (
        (Bare(x), weight, 1e-5, None, x.clone(), None),
        (x, Bare(weight), 1e-5, None, x.clone(), None),
        (x, weight, 1e-5, None, Bare(x), None),
    ):
        with pytest.raises(RuntimeError, match=r"rms_norm: argument `\w+` is without memory"):
            torch.ops.longcat_ops.rms_norm(*arguments)


def kinds(value):
    """(words of the text, a tensor of this shape that is not dense memory)."""
    wide = torch.zeros(value.shape)
    yield "of layout torch.sparse_coo", wide.to_sparse()
    if value.dim() == 2:
        yield "of layout torch.sparse_csr", wide.to_sparse_csr()
    yield "of layout torch._mkldnn", torch.ones(value.shape).to_mkldnn()
    yield "quantised by torch, torch.qint8", torch.quantize_per_tensor(wide, 0.1, 0, torch.qint8)
    yield "a nested tensor", torch.nested.nested_tensor([torch.zeros(3, 8), torch.zeros(2, 8)])
    yield "a nested tensor", torch.nested.nested_tensor([torch.zeros(3, 8), torch.zeros(2, 8)], layout=torch.jagged)
    yield "a TwoTensor, a tensor subclass", TwoTensor(value.clone(), value.clone())
    yield "a Bare, a tensor subclass", Bare(value)
    yield "a UninitializedParameter without a shape", torch.nn.UninitializedParameter(requires_grad=False)


@pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors", "ignore:Sparse CSR", "ignore:.*quantize_per_tensor"
)
@pytest.mark.parametrize(("op", "path", "argument"), READ_PLACES)
def test_functions_refuse_tensors_that_are_no_dense_memory(op, path, argument):
    made, value = tensor_at(op, path)
    for words, odd in kinds(value):
        args, kwargs = call_with(op, made, path, odd)
        text = refused_alike(op, args, kwargs)
        assert f"argument `{argument}` is {words}" in text
        with torch.inference_mode():
            assert refused_alike(op, args, kwargs) == text


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize(("op", "name", "i"), [p for p in TENSORS if p.values[:2] in FIRST])
def test_torch_ops_refuse_layouts_without_a_kernel(op, name, i, mode):
    overload, arguments, _ = schema_call(op, name)
    argument = overload._schema.arguments[i].name
    for words, odd in kinds(arguments[i]):
        if "layout" in words or "quantised" in words:
            with pytest.raises(LongcatShapeError, match=f"^{op}: argument `{argument}` is {words}"), mode():
                overload(*arguments[:i], odd, *arguments[i + 1 :])


@pytest.mark.parametrize(("op", "name"), FIRST)
def test_subclasses_of_plain_memory_pass(op, name):
    overload, arguments, _ = schema_call(op, name)
    for kind in (Renamed, torch.nn.Buffer):

        def changed(a, kind=kind):
            return (a.as_subclass(kind) if kind is Renamed else kind(a)) if isinstance(a, torch.Tensor) else a

        outputs, plain = (with_blank_outputs(overload, arguments) for _ in range(2))
        overload(*map(changed, outputs))
        overload(*plain)
        for spec, a, b in zip(overload._schema.arguments, outputs, plain, strict=True):
            assert not is_output(spec) or a is None or bits(a) == bits(b), spec.name


def test_the_function_takes_a_subclass_of_plain_memory():
    made = CASES["rms_norm"]["odd"]()
    expected = longcat_ops.rms_norm(*made.args)
    assert bits(longcat_ops.rms_norm(made.args[0].as_subclass(Renamed), *made.args[1:])) == bits(expected)


def test_vmap_is_refused_by_name():
    def run(row):
        return longcat_ops.rms_norm(row, torch.ones(8), 1e-5)

    with pytest.raises(
        longcat_ops.LongcatUnsupportedError, match=r"rms_norm: argument `x` is a tensor under torch\.vmap"
    ):
        torch.vmap(run)(torch.ones(2, 3, 8))

"""A direct call gives what torch's call gives: bits, outputs, errors; it takes dense tensors of plain memory alone."""

from __future__ import annotations

import sys

import pytest
import torch

import longcat_ops
from longcat_ops.ops import direct
from longcat_ops.testing.op_cases import CASES, public
from longcat_ops.testing.op_results import bits, settled, tensors
from support.direct_calls import CALLS, MAKERS, blank_call, by_torch, facts, only_on_kernels, outcome, outputs
from support.op_places import READ_PLACES, call_with, tensor_at

pytestmark = only_on_kernels
MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("op", "name"), CALLS)
def test_every_kernel_has_the_bits_of_torchs_call(op, name, mode):
    overload, arguments = blank_call(op, name)
    _, expected = blank_call(op, name)
    overload(*expected)
    versions = [a._version for a in tensors(arguments)]
    with mode():
        assert direct.caller(op)(*arguments) is True
    assert outputs(overload, arguments) == outputs(overload, expected)
    assert [a._version for a in tensors(arguments)] == versions


@pytest.mark.parametrize(("op", "name"), CALLS)
def test_functions_give_the_same_both_ways(op, name):
    made, other = CASES[op][name](), CASES[op][name]()
    result = public(op)(*made.args, **made.kwargs)
    expected = by_torch(op, *other.args, **other.kwargs)
    assert bits(settled(op, made, result)) == bits(settled(op, other, expected))
    assert list(map(facts, tensors(result))) == list(map(facts, tensors(expected)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("op", MAKERS)
def test_outputs_made_by_direct_calls(op, rows, mode):
    args = MAKERS[op](rows)
    with mode():
        result, expected = public(op)(*args), by_torch(op, *args)
    assert facts(result) == facts(expected) and bits(result) == bits(expected)
    assert result.data_ptr() % 64 == 0
    if mode is not torch.inference_mode and result.is_floating_point():
        result.requires_grad_()
        (2 * result.float()).sum().backward()
        assert (result.grad == 2).all()


@pytest.mark.parametrize("op", MAKERS)
def test_direct_calls_make_outputs_without_torchs_functions(op, monkeypatch):
    args = MAKERS[op](3)
    expected = public(op)(*args)
    for owner, name in ((torch, "empty"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, None)
    assert bits(public(op)(*args)) == bits(expected)
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        by_torch(op, *args)


def test_parameters_are_plain_tensors_where_no_gradient_is_wanted():
    add, x, y, out = (
        direct.caller("add_rows"),
        torch.randn(4, 8),
        torch.nn.Parameter(torch.rand(4, 8)),
        torch.zeros(4, 8),
    )
    assert add(x, y, out) is False
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert add(x, y, out.zero_()) is True and torch.equal(out, x + y)
    assert add(x, y.requires_grad_(False), out) is True


def storage_of(value, nbytes):
    copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).copy_(value)
    copy.untyped_storage().resize_(nbytes(copy))
    return copy


def freed_behind_an_offset(value):
    whole = torch.zeros(value.numel() * 3 + 64, dtype=value.dtype)
    view = whole.as_strided(value.shape, value.stride(), 16)
    whole.untyped_storage().resize_(0)
    return view


BAD = {
    "freed": lambda t: storage_of(t, lambda copy: 0),
    "one byte short": lambda t: storage_of(t, lambda copy: copy.untyped_storage().nbytes() - 1),
    "freed behind an offset": freed_behind_an_offset,
    "another dtype": lambda t: t.to(torch.float64),
    "one dimension more": lambda t: t[None],
    "every other element": lambda t: torch.stack([t, t], -1)[..., 0],
    "too long": lambda t: torch.cat([t, t]),
    "on the meta device": lambda t: t.to("meta"),
    "another type": lambda t: t.tolist(),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize(("op", "path", "argument"), READ_PLACES)
def test_both_ways_refuse_alike(op, path, argument, kind):
    """A change that is none to this op, too, gives the same results; each call has state of its own."""

    def run():
        made, value = tensor_at(op, path)
        return outcome(op, made, *call_with(op, made, path, BAD[kind](value))) if value.numel() else None

    with direct.switched_off():
        expected = run()
    assert run() == expected


@pytest.mark.parametrize("kind", ["freed", "one byte short", "freed behind an offset"])
@pytest.mark.parametrize(("op", "name"), CALLS)
def test_memory_that_is_gone_is_not_touched(op, name, kind):
    overload, arguments = blank_call(op, name)
    before = outputs(overload, arguments)
    for i, value in enumerate(arguments):
        if isinstance(value, torch.Tensor) and value.numel():
            mixed = (*arguments[:i], BAD[kind](value), *arguments[i + 1 :])
            assert direct.caller(op)(*mixed) is False
    assert outputs(overload, arguments) == before


def leaked(batch):
    """What a function under torch.vmap has kept of its argument."""
    kept = []
    torch.vmap(lambda part: kept.append(part) or part)(batch)
    return kept[0]


ODD = {
    "a subclass": lambda t: t.as_subclass(type("Renamed", (torch.Tensor,), {})),
    "its sign is pending": torch._neg_view,
    "zeros without memory": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
    "sparse": lambda t: t.to_sparse(),
    "in rows": lambda t: t.to_sparse_csr(),
    "nested": lambda t: torch.nested.nested_tensor([t, t]),
    "of vmap": lambda t: leaked(t.expand(2, *t.shape)),
    "named": lambda t: t.rename("N", "C") if hasattr(t, "rename") else None,
    "of mkldnn": lambda t: t.to_mkldnn(),
    "of another device": lambda t: t.to("meta"),
    "functional": torch._to_functional_tensor,
    "needs a gradient": lambda t: t.clone().requires_grad_(),
    "not a tensor": lambda t: t.tolist(),
    "absent": lambda t: None,
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse CSR", "ignore:Named tensors")
@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_torch_must_see(kind, capfd):
    add, make = direct.caller("add_rows"), direct.maker("add_rows", (0, 0), (0, 1), 0)
    arguments = torch.randn(4, 8), torch.randn(4, 8), torch.zeros(4, 8)
    for i, value in enumerate(arguments):
        changed = (*arguments[:i], ODD[kind](value), *arguments[i + 1 :])
        assert add(*changed) is False
        if i < 2:
            assert make(*changed[:2]) is None
    assert not arguments[2].any()
    assert add(*arguments) is True and make(*arguments[:2]) is not None
    assert capfd.readouterr() == ("", "")


def test_a_pending_sign_is_applied():
    x = torch.complex(torch.zeros(4, 1), torch.tensor([[1.0], [-2.0], [3.0], [4.0]])).conj().imag
    assert x.is_neg()
    assert longcat_ops.rms_norm(x, torch.ones(1), 0.0).tolist() == [[-1.0], [1.0], [-1.0], [-1.0]]


def test_numbers_of_another_type_are_left_to_torch():
    call = direct.caller("bf16_gemm_nt")
    a, b, out = torch.ones(2, 8), torch.ones(8, 8), torch.zeros(2, 8)
    for split_k in (1.0, True, 2**63, torch.tensor(1), None, "1"):
        assert call(a, b, split_k, out) is False
    assert call(a, b, 1) is False and call(a, b, 1, out, 1) is False and call() is False
    assert not out.any()
    assert direct.caller("rms_norm")(a, b[0], 1, None, out, None) is False  # an int for a float
    assert longcat_ops.rms_norm(a, b[0], 1).shape == (2, 8)
    assert sys.exc_info() == (None, None, None)


def test_inputs_that_share_memory_until_they_are_written_still_do():
    x, out = torch.randn(4, 8), torch.zeros(4, 8)
    lazy = torch._lazy_clone(x)
    assert direct.caller("add_rows")(lazy, x, out) is True
    assert torch._C._is_cow_tensor(lazy) and torch.equal(out, x + x)


def test_outputs_that_share_memory_until_they_are_written_get_their_own():
    add, x, other = direct.caller("add_rows"), torch.randn(4, 8), torch.randn(4, 8)
    lazy, before = torch._lazy_clone(other), other.clone()
    assert add(x, x, lazy) is True
    assert not torch._C._is_cow_tensor(lazy) and torch.equal(other, before) and torch.equal(lazy, x + x)
    lazy = torch._lazy_clone(x)  # shares the memory of an input
    assert add(x, other, lazy) is False
    assert torch._C._is_cow_tensor(lazy)
    with pytest.raises(RuntimeError, match="argument `out` is in memory shared with `x`"):
        torch.ops.longcat_ops.add_rows(x, other, lazy)

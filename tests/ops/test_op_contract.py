"""The contract of every op in the registry: registration, schema, tracing, layouts of its arguments."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import longcat_ops
from longcat_ops import _library, doctor, reference
from longcat_ops.ops import checking, registration
from longcat_ops.ops.parameters import flatten, schema_form
from longcat_ops.ops.registry import OPS
from longcat_ops.testing.op_cases import CASES, EVERY, FIRST, is_output, public, schema_call
from longcat_ops.testing.op_results import bits, settled
from support import op_bounds
from support.op_places import with_blank_outputs

ROOT = Path(__file__).resolve().parents[2]
FP8 = torch.float8_e4m3fn
TYPES = {"DraftScores", "PackedRows", "Placement", "Plan", "Routing"}
# Arguments that must be contiguous; the others need only a last stride of 1, and scales may have any strides.
CONTIGUOUS = {"weight", "offsets", "masked_m", "m_indices", "bias", "ids", "row_of", "src_of", "weights", "zero_weight",
              "split", "slots", "replicas", "hidden"}  # fmt: skip
STACKED = {"w", "w_gate_up", "w_down"}  # contiguous if 3-D
STACKED_FP8 = {"b", "gate_up"}  # the same, if e4m3


def test_every_list_of_ops_is_the_same():
    names = set(OPS)
    assert set(_library.load().checked_ops()) == names
    known = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("longcat_ops::")}
    assert {name for name in known if not name.startswith("comm_")} == names  # those of communicators are no ops
    assert set(longcat_ops.ops.__all__) - {"supports", *TYPES} == names
    assert names <= set(longcat_ops.__all__)
    assert set(reference.__all__) - TYPES == names
    assert set(CASES) == names
    assert {name for name, op in OPS.items() if not op.chain} == registration.CPU_KERNELS
    assert {row.name for row in doctor.op_rows()} == names
    assert all((ROOT / "tests" / "ops" / f"test_{name}.py").is_file() for name in names)


@pytest.mark.parametrize("op", OPS)
def test_schema_form(op):
    """An op is an out-variant: inputs first, then outputs, which alone are marked as written; it returns nothing."""
    schema = getattr(torch.ops.longcat_ops, op).default._schema
    written = [is_output(spec) for spec in schema.arguments]
    assert any(written) and written == sorted(written)
    assert not schema.returns
    assert all(spec.default_value is None and not spec.kwarg_only for spec in schema.arguments)


@pytest.mark.parametrize("op", OPS)
def test_function_and_reference_have_one_signature(op):
    def parameters(function):
        return [(p.name, p.kind) for p in inspect.signature(function).parameters.values() if p.name != "deepgemm"]

    ours = parameters(public(op))
    theirs = parameters(getattr(reference, op))
    assert [p for p in theirs if p in ours] == ours[: len(theirs)]


@pytest.mark.parametrize("op", OPS)
def test_docstring_has_every_section(op):
    text = inspect.getdoc(public(op))
    for section in ("Args:", "Returns:", "Raises:"):
        assert section in text, section
    missing = [p for p in inspect.signature(public(op)).parameters if not re.search(rf"\b{p}\b", text)]
    assert not missing


@pytest.mark.parametrize(("op", "name"), EVERY)
def test_flattened_as_the_function_does(op, name):
    _, arguments, made = schema_call(op, name)
    for ours, theirs in zip(flatten(op, made.args, made.kwargs), arguments, strict=True):
        if isinstance(ours, tuple):  # the descriptor of an output
            assert ours[:3] == checking.describe(theirs)[:3]
        elif ours is not None:
            assert ours is theirs or ours == theirs
    assert longcat_ops.supports(op, *made.args, **made.kwargs) == (True, "", "")


@pytest.mark.parametrize(("op", "name"), EVERY)
def test_only_marked_arguments_change(op, name):
    overload, arguments, _ = schema_call(op, name)
    arguments = with_blank_outputs(overload, arguments)
    before = [bits(a) if isinstance(a, torch.Tensor) else a for a in arguments]
    overload(*arguments)
    for spec, old, new in zip(overload._schema.arguments, before, arguments, strict=True):
        if isinstance(new, torch.Tensor):
            changed = bits(new) != old
            assert changed <= is_output(spec), spec.name
            # errors stays 0 where no row is bad; with tokens, every other output is not all 0
            if name != "empty" and is_output(spec) and spec.name != "errors":
                assert changed, spec.name


@pytest.mark.long
@pytest.mark.parametrize(("op", "name"), EVERY)
def test_opcheck(op, name):
    overload, arguments, _ = schema_call(op, name)
    arguments = with_blank_outputs(overload, arguments)
    tests = ["test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if not any(isinstance(a, torch.Tensor) and a.dtype == FP8 for a in arguments):
        tests.append("test_schema")  # it compares with allclose, which e4m3 lacks; the test above compares bytes
    torch.library.opcheck(overload, arguments, test_utils=tests)


@pytest.mark.long
@pytest.mark.parametrize(("op", "name"), FIRST)
def test_compiles_to_one_graph_for_any_number_of_rows(op, name):
    made = CASES[op][name]()
    compiled = torch.compile(public(op), fullgraph=True, dynamic=True, backend="aot_eager")
    expected = public(op)(*made.args, **made.kwargs)
    made = CASES[op][name]()  # an output that is passed in must be fresh
    assert bits(settled(op, made, compiled(*made.args, **made.kwargs))) == bits(settled(op, made, expected))
    for other in list(CASES[op])[1:]:
        made = CASES[op][other]()
        compiled(*made.args, **made.kwargs)


@pytest.mark.parametrize(("op", "name"), EVERY)
def test_fakes_and_meta_tensors_have_the_real_outputs(op, name):
    made = CASES[op][name]()
    real = layout(public(op)(*made.args, **made.kwargs))
    meta = [to_meta(a) for a in made.args], {key: to_meta(a) for key, a in made.kwargs.items()}
    assert layout(public(op)(*meta[0], **meta[1])) == real
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        fake = [to_fake(mode, a) for a in made.args], {key: to_fake(mode, a) for key, a in made.kwargs.items()}
        assert layout(public(op)(*fake[0], **fake[1])) == real


@pytest.mark.parametrize(("op", "name"), EVERY)
def test_rows_apart_and_misaligned_inputs_give_the_same_bits(op, name):
    """Each tensor argument in turn, one element off its alignment or with its rows apart, changes no bit."""
    overload, arguments, _ = schema_call(op, name)
    expected = run_blank(overload, arguments)
    for i, (spec, value) in enumerate(zip(overload._schema.arguments, arguments, strict=True)):
        if not isinstance(value, torch.Tensor) or not value.numel() or is_output(spec):
            continue
        assert run_blank(overload, replaced(arguments, i, misaligned(value))) == expected, spec.name
        if value.dim() < 2 or (spec.name in CONTIGUOUS and spec.name != "ids"):
            continue
        apart = rows_apart(value)
        stacked = spec.name in STACKED or (spec.name in STACKED_FP8 and value.dtype == FP8)
        stacked |= spec.name == "logits"  # 3-D: a view of packed rows
        if spec.name in ("ids", "row_of", "src_of", "weights", "page_table") or (stacked and value.dim() == 3):
            with pytest.raises(RuntimeError, match=rf"argument `{spec.name}.* is of strides .* expected contiguous"):
                overload(*replaced(arguments, i, apart))
        elif (op, spec.name) != ("interleave_gate_up", "s"):
            assert run_blank(overload, replaced(arguments, i, apart)) == expected, spec.name


@pytest.mark.parametrize(("op", "name"), EVERY)
def test_kernel_and_reference_agree(op, name):
    """CPU kernels equal the reference bit for bit, except for sums in another order and for exp."""
    overload, arguments, _ = schema_call(op, name)
    theirs = with_blank_outputs(overload, arguments)
    schema_form(op, getattr(reference, op))(*theirs)
    ours = with_blank_outputs(overload, arguments)
    overload(*ours)
    outputs = [i for i, spec in enumerate(overload._schema.arguments) if is_output(spec) and ours[i] is not None]
    if op in op_bounds.BOUNDED:
        for values in (ours, theirs):
            op_bounds.assert_right(op, values, [values[i] for i in outputs])
        return
    for i in outputs:
        if op in op_bounds.ROUNDED and ours[i].dtype.is_floating_point:
            op_bounds.assert_near(arguments, ours[i], theirs[i])
        else:
            assert bits(ours[i]) == bits(theirs[i]), overload._schema.arguments[i].name


def run_blank(overload, arguments):
    arguments = with_blank_outputs(overload, arguments)
    overload(*arguments)
    return bits([a for spec, a in zip(overload._schema.arguments, arguments, strict=True) if is_output(spec)])


def replaced(arguments, index, value):
    return (*arguments[:index], value, *arguments[index + 1 :])


def misaligned(t):
    """A copy that starts one element past an aligned address."""
    storage = torch.empty(t.numel() + 65, dtype=t.dtype)
    start = (-storage.data_ptr() // t.element_size()) % 16 + 1
    copy = storage[start : start + t.numel()].view(t.shape) if t.is_contiguous() else None
    if copy is None:  # column-major scales
        copy = storage[start : start + t.numel()].view(t.shape[::-1]).permute(*range(t.dim())[::-1])
    return copy.copy_(t)


def rows_apart(t):
    """A copy whose rows have garbage between them."""
    wide = torch.full((*t.shape[:-1], t.shape[-1] + 24), 77).to(t.dtype)
    return wide[..., 8 : 8 + t.shape[-1]].copy_(t)


def layout(result):
    if isinstance(result, torch.Tensor):
        return result.shape, result.dtype, result.stride()
    return [None if t is None else layout(t) for t in result]


def to_meta(value):
    return _map(value, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta"))


def to_fake(mode, value):
    return _map(value, mode.from_tensor)


def _map(value, change):
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple):
        parts = [_map(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value

"""An object that is not the tensor or number an op takes: the call and `supports` refuse it with the same text."""

from __future__ import annotations

import numpy
import pytest
import torch

import longcat_ops
from longcat_ops import LongcatShapeError
from longcat_ops.ops.registry import OPS
from longcat_ops.testing.op_cases import CASES, FIRST, schema_call
from support.op_places import READ_PLACES, call_with, refused_alike, tensor_at

OBJECTS = [
    [1.0],
    [],
    (),
    (torch.ones(2, 8), torch.ones(2)),
    (1, 2, 3, 4, 5, 6),
    ("torch.float32", (4, 8), (8, 1), "cpu", 0, 0),
    [[torch.ones(8)]],
    ((torch.ones(8),),),
    numpy.zeros((4, 8), numpy.float32),
    numpy.float32(1),
    None,
    "x",
    b"x",
    3,
    2.5,
    True,
    {"x": torch.ones(8)},
    torch.Size([4, 8]),
    torch.Tensor,
    object(),
    torch.float32,
]
MAY_BE_NONE = {"out", "residual", "add", "num_valid", "errors", "gate_up_scales", "down_scales", "split", "draft_probs",
               "first_row", "joint_before"}  # fmt: skip


@pytest.mark.parametrize(("op", "path", "name"), READ_PLACES)
def test_what_is_no_tensor_is_refused_by_name(op, path, name):
    made, _ = tensor_at(op, path)
    for odd in OBJECTS:
        may_be_none = name in MAY_BE_NONE or (op, name) == ("moe_plan", "weights")
        legal = (odd is None and may_be_none) or (name == "num_valid" and isinstance(odd, int))
        if not legal:
            args, kwargs = call_with(op, made, path, odd)
            assert f"argument `{name}`" in refused_alike(op, args, kwargs), odd


@pytest.mark.parametrize("op", OPS)
def test_what_is_no_pair_plan_or_routing_is_refused_by_name(op):
    made = CASES[op][next(iter(CASES[op]))]()
    flat = (*made.args, *made.kwargs.values())
    for i, value in enumerate(flat):
        if isinstance(value, tuple):
            for odd in (*OBJECTS, torch.ones(4, 8), value[0], (*value, None), value[:1], [None, None], ("a", 1)):
                if odd is not None or i < len(made.args):
                    refused_alike(op, *call_with(op, made, (i,), odd))


def test_a_pair_for_two_tensors():
    w, s = CASES["interleave_gate_up"]["one"]().args
    text = refused_alike("interleave_gate_up", ((w, s),), {})
    assert text == (
        "interleave_gate_up: argument `w` is of type tuple, expected a torch.Tensor.\n"
        "  fix: pass each tensor by itself, as interleave_gate_up(*pair) does"
    )
    assert "`w` is of type tuple" in refused_alike("interleave_gate_up", ((w, s), s), {})
    assert "`q` is of type tuple" in refused_alike("dequant_fp8", ((w[0], s[0]),), {})


def test_numbers_that_are_none():
    x, weight = torch.ones(4, 8), torch.ones(8)
    for eps in ("1e-5", None, x, [1e-5], 1j):
        assert "argument `eps` is of type" in refused_alike("rms_norm", (x, weight, eps), {})
    for size in (2**63, -(2**70)):
        assert "argument `group_size` is" in refused_alike("per_token_group_quant_fp8", (x, size), {})
    assert "argument `dtype`" in refused_alike("dequant_fp8", (*longcat_ops.per_block_quant_fp8(x), None), {})
    assert longcat_ops.supports("rms_norm", x, weight, numpy.float32(1e-5)) == (True, "", "")


def test_none_for_a_tensor_of_torch_ops():
    for op, name in FIRST:
        overload, arguments, _ = schema_call(op, name)
        for i, spec in enumerate(overload._schema.arguments):
            if str(spec.type) == "Tensor":
                text = f"{op}: argument `{spec.name}` is None, expected a torch.Tensor"
                with pytest.raises((RuntimeError, LongcatShapeError), match=text):
                    overload(*arguments[:i], None, *arguments[i + 1 :])


def test_a_number_beyond_float_is_refused_by_name():
    x, weight = torch.ones(2, 8), torch.ones(8)
    supported, reason, _ = longcat_ops.supports("rms_norm", x, weight, 10**400)
    assert not supported and reason == "rms_norm: argument `eps` is of type int, expected a finite float."
    with pytest.raises(LongcatShapeError, match="argument `eps` is of type int, expected a finite float"):
        longcat_ops.rms_norm(x, weight, 10**400)

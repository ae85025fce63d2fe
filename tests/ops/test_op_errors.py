"""Bad tensors for every op, in a table made from the schemas: nothing is written, and the text names op, argument, what
it is and what is expected.
"""

from __future__ import annotations

import math
import re

import pytest
import torch

from longcat_ops.ops import checking
from longcat_ops.testing.op_cases import FIRST, is_output, schema_call
from longcat_ops.testing.op_results import bits, blank

SHAPE = re.compile(r"(\w+): argument `([^`]+)` is (.+?), expected (.+?)\.(\n|$)", re.DOTALL)
# Sizes that no other argument fixes: (op, argument, dimension).
FREE = {
    ("moe_combine", "y", 0),
    ("moe_permute", "row_of", 1),
    ("moe_permute_quant", "row_of", 1),
    ("moe_place", "ids", 0),
    ("moe_place", "ids", 1),
    ("moe_place", "slots", 1),
    ("m_grouped_bf16_gemm_nt_contiguous", "b", 0),
    ("router_gemm", "w", 0),
    ("embed_rows", "table", 0),
    ("embed_rows", "ids", 0),
    ("pack_rows", "num_rows", 0),
    ("advance_lengths", "tokens", 1),
    ("advance_lengths", "stop_ids", 0),
    ("mla_write", "rope", 0),
    ("mla_write", "page_table", 0),
    ("mla_write", "page_table", 1),
    ("mla_write", "rows", 0),
    ("mla_query", "rope", 0),
    ("mla_decode", "rows", 0),
    ("mla_decode", "page_table", 0),
    ("mla_decode", "page_table", 1),
    ("verify_greedy", "logits", 2),
    ("filter_drafts", "logits", 1),
}
OTHER_DTYPE = {torch.float32: torch.float64, torch.bfloat16: torch.float64, torch.int32: torch.int64}


def described(value):
    """A descriptor with the real address, so that parts of it can be changed."""
    if not isinstance(value, torch.Tensor):
        return value
    return (*checking.describe(value)[:5], value.data_ptr())


def changed(descriptor, **fields):
    names = ("dtype", "sizes", "strides", "device", "index", "address")
    return tuple(fields.get(name, old) for name, old in zip(names, descriptor, strict=True))


def contiguous_strides(sizes):
    return tuple(math.prod(sizes[i + 1 :]) for i in range(len(sizes)))


def mutations(op, spec, value, arguments):
    """(kind, bad descriptor) for one tensor argument of a legal call."""
    good = described(value)
    _, sizes, strides, *_ = good
    yield "dtype", changed(good, dtype=str(OTHER_DTYPE.get(value.dtype, torch.bool)))
    yield "unknown dtype", changed(good, dtype="torch.complex64")
    yield "rank up", changed(good, sizes=(1, *sizes), strides=(0, *strides))
    yield "rank down", changed(good, sizes=sizes[1:], strides=strides[1:])
    for i, size in enumerate(sizes):
        for other in (size + 1, size - 1):
            if (op, spec.name, i) not in FREE and other >= 0:
                bad = (*sizes[:i], other, *sizes[i + 1 :])
                yield f"size {i}", changed(good, sizes=bad, strides=contiguous_strides(bad))
    yield "device", changed(good, device="cuda")
    yield "device index", changed(good, index=1)
    yield "device type", changed(good, device="xpu")
    if value.element_size() > 1:
        yield "alignment", changed(good, address=good[5] + 1)
    if sizes[-1] > 1 and not of_any_stride(op, spec):
        yield "inner stride", changed(good, strides=tuple(2 * s for s in strides))
    if is_output(spec):
        if value.numel() > 1:
            yield "expanded", changed(good, strides=(0,) * len(sizes))
        for other_spec, other in zip(arguments[0]._schema.arguments, arguments[1], strict=True):
            if isinstance(other, torch.Tensor) and other is not value:
                yield f"shares memory with {other_spec.name}", changed(good, address=other.data_ptr())


def of_any_stride(op, spec):
    return spec.name in {"s", "sa", "sb", "sh", "s_gate_up", "gate_up_scales", "down_scales"} or (
        (op, spec.name) in {("interleave_gate_up", "s"), ("advance_lengths", "newest"), ("sample_tokens", "tokens")}
    )


def table():
    for op, name in FIRST:
        call = schema_call(op, name)
        for index, (spec, value) in enumerate(zip(call[0]._schema.arguments, call[1], strict=True)):
            if isinstance(value, torch.Tensor):
                kinds = dict.fromkeys(kind for kind, _ in mutations(op, spec, value, call))
                yield from ((op, name, index, spec.name, kind) for kind in kinds)


@pytest.mark.parametrize(("op", "name", "index", "argument", "kind"), list(table()))
def test_every_tensor_argument(op, name, index, argument, kind):
    call = schema_call(op, name)
    spec = call[0]._schema.arguments[index]
    legal = [described(a) for a in call[1]]
    assert checking.find_problem(op, *legal) == ("", "", "")
    for found, bad in mutations(op, spec, call[1][index], call):
        if found == kind:
            code, reason, _ = checking.find_problem(op, *legal[:index], bad, *legal[index + 1 :])
            assert code == "LC-SHAPE", bad
            text = SHAPE.match(reason)
            assert text, reason
            assert text[1] == op
            assert text[3] != text[4]
            if not kind.startswith(("size", "rank", "device", "shares")):
                # here the argument itself is at fault; of two that do not fit together the check may name either
                assert argument_name(op, text[2]) == argument, reason


def argument_name(op, name):
    """The schema's name of an argument that a text calls by its public name."""
    public_names = {"w_gate_up scales": "gate_up_scales", "w_down scales": "down_scales"}
    if op == "dequant_fp8" and name == "dtype":
        return "out"
    return public_names.get(name, name)


@pytest.mark.parametrize(("op", "name"), FIRST)
def test_nothing_is_written_when_a_call_is_refused(op, name):
    overload, arguments, _ = schema_call(op, name)
    specs = overload._schema.arguments
    outputs = [
        blank(a) if is_output(spec) and a is not None else None for spec, a in zip(specs, arguments, strict=True)
    ]
    refused = 0
    for i, (spec, value) in enumerate(zip(specs, arguments, strict=True)):
        if not isinstance(value, torch.Tensor) or value.dtype == torch.uint8:
            continue
        bad = value.to(torch.float16) if value.dtype == torch.int32 else value.to(torch.int32)
        mixed = [bad if j == i else (outputs[j] if outputs[j] is not None else a) for j, a in enumerate(arguments)]
        with pytest.raises(RuntimeError, match=rf"\[LC-SHAPE\] {op}: argument `"):
            overload(*mixed)
        refused += 1
        assert all(not any(bits(t)[0]) for j, t in enumerate(outputs) if t is not None and j != i), spec.name
    assert refused >= 2

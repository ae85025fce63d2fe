"""Replaces one tensor in the first call of every op with something else, and checks how the op refuses the call."""

from __future__ import annotations

import pytest
import torch

import longcat_ops
from longcat_ops import LongcatShapeError
from longcat_ops.ops.parameters import flatten
from longcat_ops.testing.op_cases import CASES, FIRST, is_output, public, schema_call
from longcat_ops.testing.op_results import blank


def places(value, path=()):
    """Paths to the tensors of a call, through pairs, plans and routings."""
    if isinstance(value, torch.Tensor):
        yield path
    elif isinstance(value, tuple | list):
        for i, part in enumerate(value):
            yield from places(part, (*path, i))


def put(value, path, new):
    if not path:
        return new
    parts = [put(part, path[1:], new) if i == path[0] else part for i, part in enumerate(value)]
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)


def call_with(op, made, path, new):
    """(args, kwargs) of a call with `new` at one place."""
    names = list(made.kwargs)
    flat = put((*made.args, *made.kwargs.values()), path, new)
    return flat[: len(made.args)], dict(zip(names, flat[len(made.args) :], strict=True))


# State of which an op reads more than 0.
STATE = {("filter_drafts", "num_drafts"): 3}


def with_blank_outputs(overload, arguments):
    """The same call into zeroed outputs; what `STATE` names has that value everywhere."""
    pairs = list(zip(overload._schema.arguments, arguments, strict=True))
    made = [blank(a) if is_output(spec) and a is not None else a for spec, a in pairs]
    for (spec, _), value in zip(pairs, made, strict=True):
        state = STATE.get((overload._schema.name.removeprefix("longcat_ops::"), spec.name))
        if state is not None:
            value.fill_(state)
    return tuple(made)


def tensor_arguments(cases, wanted):
    """(op, case, place in the schema) of each tensor in these calls for which `wanted` is true."""
    return [
        pytest.param(op, name, i, id=f"{op}-{name}-{spec.name}")
        for op, name in cases
        for overload, arguments, _ in [schema_call(op, name)]
        for i, (spec, value) in enumerate(zip(overload._schema.arguments, arguments, strict=True))
        if isinstance(value, torch.Tensor) and wanted(value)
    ]


def tensor_at(op, path):
    """A call, and the tensor at one of its places."""
    made = CASES[op][next(iter(CASES[op]))]()
    value = (*made.args, *made.kwargs.values())
    for i in path:
        value = value[i]
    return made, value


def refused_alike(op, args, kwargs):
    """The text of the error; `supports` must give the same text."""
    with pytest.raises(LongcatShapeError) as caught:
        public(op)(*args, **kwargs)
    text = str(caught.value)
    assert text.startswith(f"{op}: argument `")
    supported, reason, fix = longcat_ops.supports(op, *args, **kwargs)
    assert (supported, reason + f"\n  fix: {fix}" * bool(fix)) == (False, text)
    assert "six fields" not in text
    return text


def schema_name(op, path):
    """The schema's name of the tensor at this place of a call; None for a field that the op does not read."""
    made, value = tensor_at(op, path)
    flat = flatten(op, made.args, made.kwargs)
    index = next((i for i, a in enumerate(flat) if a is value), None)
    return None if index is None else getattr(torch.ops.longcat_ops, op).default._schema.arguments[index].name


# Every place that holds a tensor in an op's first call, with its name in the schema; then the places that the op reads.
ALL_PLACES = [
    pytest.param(op, path, schema_name(op, path), id=f"{op}-{'.'.join(map(str, path))}")
    for op, name in FIRST
    for made in [CASES[op][name]()]
    for path in places((*made.args, *made.kwargs.values()))
]
READ_PLACES = [place for place in ALL_PLACES if place.values[2] is not None]

"""The first call of every op with something else in the place of one of its tensors, and how it must be refused."""

from __future__ import annotations

import pytest
import torch

import longcat_ops
from longcat_ops import LongcatShapeError
from longcat_ops.ops.registry import OPS
from longcat_ops.testing.op_cases import CASES, FIRST, public


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
    """(args, kwargs) of a call with something else at one place."""
    names = list(made.kwargs)
    flat = put((*made.args, *made.kwargs.values()), path, new)
    return flat[: len(made.args)], dict(zip(names, flat[len(made.args) :], strict=True))


FUNCTION_PLACES = [
    pytest.param(op, path, id=f"{op}-{'.'.join(map(str, path))}")
    for op, name in FIRST
    for made in [CASES[op][name]()]
    for path in places((*made.args, *made.kwargs.values()))
]


def tensor_at(op, path):
    """A call, and the tensor at one of its places."""
    made = CASES[op][next(iter(CASES[op]))]()
    value = (*made.args, *made.kwargs.values())
    for i in path:
        value = value[i]
    return made, value


def refused_alike(op, args, kwargs):
    """The text of the error, which `supports` must give too."""
    with pytest.raises(LongcatShapeError) as caught:
        public(op)(*args, **kwargs)
    text = str(caught.value)
    assert text.startswith(f"{op}: argument `")
    supported, reason, fix = longcat_ops.supports(op, *args, **kwargs)
    assert (supported, reason + f"\n  fix: {fix}" * bool(fix)) == (False, text)
    assert "six fields" not in text
    return text


def schema_index(op, made, value):
    """Which argument of the schema this tensor of a call is; None for a field that the op does not read."""
    flat = OPS[op].arguments(*made.args, **made.kwargs)
    return next((i for i, a in enumerate(flat) if a is value), None)

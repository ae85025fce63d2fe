"""Converts the arguments of a call to those of its op's schema, and checks that each is of the schema's kind."""

from __future__ import annotations

import contextlib
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ..errors import LongcatShapeError, message
from . import tensors
from .described import Described
from .parameters import flatten, function_signature

_NUMBERS: dict[str, tuple[type, type]] = {"int": (Integral, int), "float": (Real, float), "bool": (bool, bool)}


def schema_arguments(op: str, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of a call as the C++ check of its op takes them.

    Raises LongcatShapeError or LongcatUnsupportedError for one that is not of the schema's kind (such as a list for a
    tensor), and TypeError for a call that does not fit the function's signature.
    """
    try:
        arguments = flatten(op, args, kwargs)
    except TypeError:
        _refuse_misplaced(op, args, kwargs)
        raise
    schema = getattr(torch.ops.longcat_ops, op).default._schema.arguments
    return tuple(_typed(op, spec, value) for spec, value in zip(schema, arguments, strict=True))


def _typed(op: str, spec: Any, value: Any) -> Any:
    kind = str(spec.type)
    if value is None and (kind.startswith("Optional") or spec.is_out or spec.alias_info is not None):
        return None
    kind = kind.removeprefix("Optional[").removesuffix("]")
    if kind == "Tensor":
        return _tensor(op, spec.name, value)
    number, convert = _NUMBERS[kind]
    if not isinstance(value, number):
        raise LongcatShapeError(message(op, spec.name, f"of type {type(value).__name__}", f"of type {kind}"))
    if kind == "int" and not -(2**63) <= value < 2**63:
        raise LongcatShapeError(message(op, spec.name, value, "an integer of 64 bits"))
    try:
        return convert(value)
    except OverflowError:
        raise LongcatShapeError(message(op, spec.name, f"of type {type(value).__name__}", "a finite float")) from None


def _tensor(op: str, name: str, value: Any) -> Tensor | Described:
    if isinstance(value, Described):
        return value
    if not isinstance(value, Tensor):
        got = "None" if value is None else f"of type {type(value).__name__}"
        raise LongcatShapeError(message(op, name, got, "a torch.Tensor"))
    problem = tensors.layout_problem(op, name, value) or tensors.gradient_problem(op, name, value)
    if problem:
        raise problem
    return value


def _refuse_misplaced(op: str, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raises LongcatShapeError where a call lacks arguments because a pair stands for the first of its tensors."""
    signature = function_signature(op)
    with contextlib.suppress(TypeError):
        for name, value in signature.bind_partial(*args, **kwargs).arguments.items():
            if signature.parameters[name].annotation == "Tensor" and not isinstance(value, Tensor):
                got, fix = f"of type {type(value).__name__}", f"pass each tensor by itself, as {op}(*pair) does"
                raise LongcatShapeError(message(op, name, got, "a torch.Tensor", fix=fix))

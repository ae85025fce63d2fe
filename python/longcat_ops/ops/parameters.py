"""The two forms of an op's call: by the parameters of its function, and by the arguments of its schema. The function's
signature and the schema say how to convert each into the other, so no op repeats that.

In a schema, a pair, a Placement, a Plan and a Routing are separate tensors. Those of a pair have the names of `PAIRS`.
Those of the others have the names of their fields, and an op takes the fields that it reads. All else has one name in
both.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import _library
from ..errors import LongcatShapeError, message
from ..types import Placement, Plan, Routing
from .deepgemm import deepgemm_keywords
from .registry import OPS

if TYPE_CHECKING:
    from ..types import Fp8Pair

# The schema's names of values and scales, by the parameter that holds both.
PAIRS = {
    "lhs": ("a", "sa"),
    "rhs": ("b", "sb"),
    "gate_up": ("gate_up", "s_gate_up"),
    "w_gate_up": ("w_gate_up", "gate_up_scales"),
    "w_down": ("w_down", "down_scales"),
}
_TUPLES: dict[str, type[Placement] | type[Plan] | type[Routing]] = {
    "Placement": Placement,
    "Plan": Plan,
    "Routing": Routing,
}


def pair(op: str, name: str, value: Any) -> Fp8Pair:
    """`value` if it is a pair. The check of the call finds parts that are no tensors."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        got = "None" if value is None else f"a {type(value).__name__}"
        got += f" of {len(value)}" if isinstance(value, tuple | list) else ""
        raise LongcatShapeError(message(op, name, got, "a pair (e4m3 values, float32 scales)"))
    return value[0], value[1]


def weight(op: str, name: str, value: Any) -> tuple[Any, Any]:
    """(values, scales) of an FP8 weight, (tensor, None) of a dense one."""
    return pair(op, name, value) if isinstance(value, tuple | list) else (value, None)


def output(op: str, out: Any) -> Tensor:
    """`out`, which the caller must give."""
    if out is None:
        raise LongcatShapeError(message(op, "out", "None", "a torch.Tensor"))
    return out


def flatten(op: str, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The call of a function as its schema takes it, outputs None where the function allocates them.

    Raises TypeError for a call that does not fit the signature, LongcatShapeError or LongcatUnsupportedError for a
    malformed pair, plan, routing, output or keyword.
    """
    signature = function_signature(op)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{op}() {error}") from None
    bound.apply_defaults()
    given = bound.arguments
    deepgemm_keywords(op, given.pop("deepgemm", {}))
    values: dict[str, Any] = {}
    for name, value in given.items():
        values.update(_parts(op, signature.parameters[name], value))
    if OPS[op].adapt is not None:
        OPS[op].adapt(values)
    return tuple(values.get(name) for name in _schema_names(op))


def _parts(op: str, parameter: inspect.Parameter, value: Any) -> Iterable[tuple[str, Any]]:
    """One parameter's values by the schema's names."""
    name, kind = parameter.name, parameter.annotation
    if (fields := _fields(op, kind)) is not None:
        if value is None and kind.endswith(" | None"):
            return dict.fromkeys(fields).items()
        if not all(hasattr(value, field) for field in fields):
            expected = f"a {kind.removesuffix(' | None')}"
            raise LongcatShapeError(message(op, name, f"of type {type(value).__name__}", expected))
        return ((field, getattr(value, field)) for field in fields)
    if "Fp8Pair" in kind:
        return zip(PAIRS[name], (weight if "Tensor" in kind else pair)(op, name, value), strict=True)
    return ((name, output(op, value) if (name, kind) == ("out", "Tensor") else value),)


def schema_form(op: str, function: Callable[..., Any]) -> Callable[..., None]:
    """Turns `function`, which has the op's parameters, into a kernel that takes the arguments of the schema.

    A function with a parameter `out` gets the outputs there (a tuple if there are several) and writes them. The results
    of any other function are copied into the outputs. If there are fewer, the function has written the first outputs
    itself, which are its parameters.
    """
    schema = getattr(torch.ops.longcat_ops, op).default._schema.arguments
    first_output = next(i for i, spec in enumerate(schema) if spec.alias_info is not None)
    wanted = inspect.signature(function).parameters
    makers = {name: maker for name in wanted if (maker := _maker(op, name, first_output)) is not None}

    def kernel(*arguments: Any) -> None:
        result = function(**{name: make(arguments) for name, make in makers.items()})
        if "out" in makers:
            return
        results = (result, *[None] * (len(schema) - first_output - 1)) if isinstance(result, Tensor) else result
        own = len(schema) - first_output - len(results)
        assert own >= 0 and all(spec.name in wanted for spec in schema[first_output : first_output + own]), op
        for target, source in zip(arguments[first_output + own :], results, strict=True):
            if target is not None:
                target.copy_(source)

    return kernel


def _maker(op: str, name: str, first_output: int) -> Callable[[tuple], Any] | None:
    """Makes a parameter from the schema's arguments; None if the parameter only says how outputs are allocated."""
    place = {argument: i for i, argument in enumerate(_schema_names(op))}
    if name == "out":
        return lambda a: a[-1] if first_output == len(a) - 1 else a[first_output:]
    kind = function_signature(op).parameters[name].annotation
    if (fields := _fields(op, kind)) is not None:
        made, first = _TUPLES[kind.removesuffix(" | None")], place[fields[0]]
        at = [place.get(field) for field in made._fields]  # a field that the op does not read is None
        return lambda a: None if a[first] is None else made(*(None if i is None else a[i] for i in at))
    if "Fp8Pair" in kind:
        values, scales = (place[part] for part in PAIRS[name])
        return lambda a: a[values] if a[scales] is None else (a[values], a[scales])
    if name == "dtype":
        return lambda a: a[first_output].dtype
    return None if name not in place else lambda a: a[place[name]]


@functools.cache
def function_signature(op: str) -> inspect.Signature:
    """The signature of `longcat_ops.<op>`; annotations are text."""
    return inspect.signature(getattr(_library.import_module(f"ops.{OPS[op].module}"), op))


@functools.cache
def _schema_names(op: str) -> tuple[str, ...]:
    return tuple(spec.name for spec in getattr(torch.ops.longcat_ops, op).default._schema.arguments)


def _fields(op: str, kind: str) -> list[str] | None:
    """The fields of a Placement, a Plan or a Routing that the op reads; None for a parameter of another kind."""
    made = _TUPLES.get(kind.removesuffix(" | None"))
    return None if made is None else [field for field in made._fields if field in _schema_names(op)]

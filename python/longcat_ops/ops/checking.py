"""Arguments of an op as its C++ check sees them, and the exceptions that a refusal becomes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch

from .. import _library
from ..errors import LongcatError, LongcatShapeError, LongcatUnsupportedError, message


def describe(tensor: torch.Tensor) -> tuple[Any, ...]:
    """The descriptor that C++ checks take for a tensor that need not exist: dtype, sizes, strides, device type and
    index, address (0: unknown)."""
    return str(tensor.dtype), tuple(tensor.shape), tensor.stride(), tensor.device.type, tensor.device.index or 0, 0


def find_problem(op: str, *arguments: Any) -> tuple[str, str, str]:
    """(code, reason, fix) of the C++ check of `op` for its schema arguments, outputs optional; empty when legal."""
    return _library.load().check(op, *arguments)


def require(op: str, *arguments: Any) -> None:
    """The check as a kernel makes it: a RuntimeError whose text starts with the code, as C++ raises it."""
    code, reason, fix = find_problem(op, *arguments)
    if code:
        raise RuntimeError(f"[{code}] {reason}" + (f"\n  fix: {fix}" if fix else ""))


def refuse(op: str, flatten: Callable[..., tuple[Any, ...]], args: tuple, kwargs: dict, error: Exception) -> NoReturn:
    """Raises what is wrong with the arguments of a failed call, or `error` itself if nothing is.

    flatten: from the call's arguments to those of the schema. An error of the check inside `torch.ops.longcat_ops`
    becomes the exception its code names.
    """
    if isinstance(error, LongcatError):
        raise error
    text = str(error)
    for code in ("LC-SHAPE", "LC-UNSUPPORTED"):
        marker = f"[{code}] "
        if marker in text:
            raise _exception_class(code)(text.split(marker, 1)[1]) from None
    try:
        arguments = flatten(*args, **kwargs)
    except (TypeError, AttributeError):  # the call itself is malformed; Python's own text says how
        raise error from None
    require_types(op, arguments)
    check(op, *arguments)
    raise error


def require_types(op: str, arguments: tuple[Any, ...]) -> None:
    """Raises `LongcatShapeError` for an argument that is not of the kind its schema names, a list for a tensor say."""
    kinds = {"Tensor": (torch.Tensor,), "int": (int,), "float": (float, int), "bool": (bool,)}
    _library.load()
    for spec, value in zip(getattr(torch.ops.longcat_ops, op).default._schema.arguments, arguments, strict=False):
        kind = str(spec.type)
        if value is None and (kind.startswith("Optional") or spec.is_out or spec.alias_info is not None):
            continue
        legal = kinds[kind.removeprefix("Optional[").removesuffix("]")]
        described = legal[0] is torch.Tensor and isinstance(value, tuple)  # one that need not exist
        if not isinstance(value, legal) and not described:
            expected = "a torch.Tensor" if legal[0] is torch.Tensor else f"of type {legal[0].__name__}"
            raise LongcatShapeError(message(op, spec.name, f"of type {type(value).__name__}", expected))


def check(op: str, *arguments: Any) -> None:
    """Raises `LongcatShapeError` or `LongcatUnsupportedError` if the C++ check of `op` refuses the arguments."""
    code, reason, fix = find_problem(op, *arguments)
    if code:
        raise _exception_class(code)(f"{reason}\n  fix: {fix}" if fix else reason)


def _exception_class(code: str) -> type[LongcatError]:
    return LongcatShapeError if code == "LC-SHAPE" else LongcatUnsupportedError

"""Arguments of an op as its C++ check sees them, and the exceptions that a refusal becomes."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from .. import _library
from ..errors import LongcatError, LongcatShapeError, LongcatUnsupportedError
from .arguments import schema_arguments
from .described import Described


def describe(tensor: torch.Tensor) -> Described:
    """The descriptor of a tensor, its address left out."""
    device = tensor.device
    return Described(str(tensor.dtype), tuple(tensor.shape), tensor.stride(), device.type, device.index or 0, 0)


def on_cuda(tensor: torch.Tensor) -> Described:
    """The descriptor of a tensor that lay on a GPU, at the same address."""
    return describe(tensor)._replace(device="cuda", index=0, address=tensor.data_ptr())


def find_problem(op: str, *arguments: Any) -> tuple[str, str, str]:
    """(code, reason, fix) of the C++ check of `op` for its schema arguments, outputs optional; empty when legal."""
    return _library.load().check(op, *arguments)


def require(op: str, *arguments: Any) -> None:
    """The check as a kernel makes it: a RuntimeError whose text starts with the code, as C++ raises it."""
    code, reason, fix = find_problem(op, *arguments)
    if code:
        raise RuntimeError(f"[{code}] {reason}" + (f"\n  fix: {fix}" if fix else ""))


def supports(op: str, args: tuple, kwargs: dict[str, Any]) -> tuple[bool, str, str]:
    """See `longcat_ops.supports`."""
    try:
        arguments = schema_arguments(op, args, kwargs)
    except (LongcatShapeError, LongcatUnsupportedError) as error:
        reason, _, fix = str(error).partition("\n  fix: ")
        return False, reason, fix
    code, reason, fix = find_problem(op, *arguments)
    return not code, reason, fix


def refuse(op: str, args: tuple, kwargs: dict[str, Any], error: Exception) -> NoReturn:
    """Raises what is wrong with the arguments of a failed call, or `error` itself if nothing is.

    An error of the check inside `torch.ops.longcat_ops` becomes the exception its code names.
    """
    if isinstance(error, LongcatError):
        raise error
    text = str(error)
    for code in ("LC-SHAPE", "LC-UNSUPPORTED"):
        marker = f"[{code}] "
        if marker in text:
            raise _exception_class(code)(text.split(marker, 1)[1]) from None
    try:
        arguments = schema_arguments(op, args, kwargs)
    except TypeError:  # the call itself is malformed; Python's own text says how
        raise error from None
    check(op, *arguments)
    raise error


def check(op: str, *arguments: Any) -> None:
    """Raises `LongcatShapeError` or `LongcatUnsupportedError` if the C++ check of `op` refuses the arguments."""
    code, reason, fix = find_problem(op, *arguments)
    if code:
        raise _exception_class(code)(f"{reason}\n  fix: {fix}" if fix else reason)


def _exception_class(code: str) -> type[LongcatError]:
    return LongcatShapeError if code == "LC-SHAPE" else LongcatUnsupportedError

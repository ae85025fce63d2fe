"""What every public op function shares: its errors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

import torch

from .. import _library
from .checking import refuse
from .registry import OPS

P = ParamSpec("P")
R = TypeVar("R")


def public(function: Callable[P, R]) -> Callable[P, R]:
    """An op's function: whatever fails in it becomes a LongcatShapeError or LongcatUnsupportedError if the arguments
    are to blame. A call that succeeds is checked once, in C++, by the kernel it reaches.
    """
    op = function.__name__
    flatten = OPS[op].arguments

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            problem = error
        _refuse(problem, args, kwargs)

    def _refuse(error: Exception, args: tuple, kwargs: dict) -> NoReturn:
        refuse(op, flatten, args, kwargs, error)

    # torch.compile counts recompilations by code object: one of its own for each op, or they would share a limit of 8.
    call.__code__ = call.__code__.replace(co_name=op)
    return call


def kernel(op: str) -> torch._ops.OpOverload:
    """torch.ops.longcat_ops.<op>, with the library loaded."""
    _library.load()
    return getattr(torch.ops.longcat_ops, op).default


def empty_scales(rows: int, groups: int, device: torch.device, column_major: bool) -> torch.Tensor:
    """f32 [rows, groups]; column-major: strides (1, rows rounded up to 4), as TMA loads them."""
    if column_major:
        return torch.empty((groups, rows + -rows % 4), dtype=torch.float32, device=device).t()[:rows]
    return torch.empty((rows, groups), dtype=torch.float32, device=device)

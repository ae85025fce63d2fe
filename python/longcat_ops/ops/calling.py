"""What all public op functions share: errors, and the call of the kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

from .. import _library
from ..types import BLOCK
from . import direct, tensors
from .checking import refuse

P = ParamSpec("P")
R = TypeVar("R")


def public(function: Callable[P, R]) -> Callable[P, R]:
    """Wraps an op's function: any failure in it becomes a LongcatShapeError or LongcatUnsupportedError if the arguments
    are to blame. A call that succeeds is checked once, in C++, by the kernel it reaches.
    """
    op = function.__name__

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            problem = error
        refuse(op, args, kwargs, problem)

    # torch.compile counts recompilations per code object. Each op gets its own, or all would share a limit of 8.
    call.__code__ = call.__code__.replace(co_name=op)
    return call


def kernel(op: str) -> Callable[..., None]:
    """Runs the op with the arguments of its schema: a CPU kernel directly, or else by torch."""
    _library.load()
    by_torch, directly = _by_torch(op), direct.caller(op)
    is_compiling = torch.compiler.is_dynamo_compiling

    def run(*arguments: Any) -> None:
        if is_compiling() or not directly(*arguments):
            by_torch(*arguments)

    return run


def maker(op: str, allocate: Callable[..., torch.Tensor], *, rows: direct.Place, columns: direct.Place,
          dtype: torch.dtype | int = 0) -> Callable[..., torch.Tensor]:  # fmt: skip
    """`kernel` of an op that writes every element of its first output, for calls that have no other and leave that one
    to it: takes the inputs, returns the output.

    allocate: makes the output of the inputs, for torch. A direct call makes it contiguous, [rows, columns]: each is
    (input, dimension). dtype: of the output, or the input that has it.
    """
    _library.load()
    by_torch, directly = _by_torch(op), direct.maker(op, rows, columns, dtype)
    is_compiling = torch.compiler.is_dynamo_compiling
    schema = getattr(torch.ops.longcat_ops, op).default._schema.arguments
    absent = (None,) * (sum(spec.alias_info is not None for spec in schema) - 1)

    def make(*inputs: Any) -> torch.Tensor:
        if not is_compiling():
            made = directly(*inputs)
            if made is not None:
                return made
        out = allocate(*inputs)
        by_torch(*inputs, out, *absent)
        return out

    return make


def _by_torch(op: str) -> Callable[..., None]:
    """torch.ops.longcat_ops.<op>. Makes the checks of the op's autograd kernel, then skips that kernel, which would
    cost a second pass through the dispatcher. Its steps count in units of 0.1 us."""
    overload = getattr(torch.ops.longcat_ops, op).default
    dispatch = overload._op  # what a call of the overload is, without its Python frame
    is_compiling, in_inference_mode = torch.compiler.is_compiling, torch.is_inference_mode_enabled
    check_gradients = tensors.gradient_check(op)
    are_plain, below_autograd = tensors.PLAIN.issuperset, torch._C._AutoDispatchBelowAutograd

    def run(*arguments: Any) -> None:
        if is_compiling():
            return overload(*arguments)
        if not are_plain(map(type, arguments)):
            tensors.require_dense(op, arguments)
        if in_inference_mode() and not tensors.in_forward_mode():
            return dispatch(*arguments)
        check_gradients(arguments)
        with below_autograd():
            return dispatch(*arguments)

    return run


def empty_hidden(rows: int, width: int, plain: torch.dtype, device: torch.device,
                 quantise: bool) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """h [rows, width] and sh of the products with SwiGLU: e4m3 and its scales, or `plain` and None."""
    if not quantise:
        return torch.empty((rows, width), dtype=plain, device=device), None
    h = torch.empty((rows, width), dtype=torch.float8_e4m3fn, device=device)
    return h, empty_scales(rows, -(-width // BLOCK), device, False)


def empty_scales(rows: int, groups: int, device: torch.device, column_major: bool) -> torch.Tensor:
    """f32 [rows, groups]; column-major: strides (1, rows rounded up to 4), as TMA loads them."""
    if column_major:
        return torch.empty((groups, rows + -rows % 4), dtype=torch.float32, device=device).t()[:rows]
    return torch.empty((rows, groups), dtype=torch.float32, device=device)

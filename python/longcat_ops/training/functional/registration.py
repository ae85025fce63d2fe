"""torch.ops.longcat_training: how the functional ops of this folder, and the ops that are their backward, are
registered. What both use: the ops of this library, or for float64 the references.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ... import _library, ops, reference
from ...errors import LongcatShapeError, LongcatUnsupportedError, message
from ...ops import tensors

NAMESPACE = "longcat_training"
_registered = torch.library.Library(NAMESPACE, "DEF")


def define(schema: str, run: Callable[..., Any], fake: Callable[..., Any], *, setup: Callable[..., None] | None = None,
           backward: Callable[..., Any] | None = None) -> Callable[..., Any]:  # fmt: skip
    """Registers one op and returns it.

    run: the op on every device; no tensor that it gets needs a gradient there. fake: its outputs without values. setup
    and backward: as `torch.library.register_autograd` takes them. An op without them is the backward of another one:
    it refuses to be differentiated.
    """
    _library.load()
    name = schema.partition("(")[0]
    _registered.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _registered.impl(name, run, "CompositeExplicitAutograd")
    full = f"{NAMESPACE}::{name}"
    torch.library.register_fake(full, fake, lib=_registered)
    formula = backward or _refuse_twice(name.removesuffix("_backward"))
    torch.library.register_autograd(full, formula, setup_context=setup, lib=_registered)
    return getattr(getattr(torch.ops, NAMESPACE), name)


def _refuse_twice(op: str) -> Callable[..., Any]:
    def backward(ctx: Any, *_: Any) -> Any:
        text = message(op, "gradient", "differentiated again", "used as it is: the op has no second derivative",
                       fix="leave create_graph out, or detach the gradient")  # fmt: skip
        raise LongcatUnsupportedError(text)

    return backward


def require_tensors(op: str, **named: Any) -> None:
    """Refuses what is no dense tensor, and the transforms of torch that would pass an op by: those of torch.func, and
    forward mode, whose tangents would be lost."""
    if torch.compiler.is_compiling():
        return
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise LongcatShapeError(message(op, name, f"of type {type(value).__name__}", "a torch.Tensor"))
        if problem := tensors.layout_problem(op, name, value):
            raise problem
        if torch._C._functorch.is_gradtrackingtensor(value):
            got = "a tensor of a transform of torch.func"
        elif tensors.has_tangent(value):
            got = "a tensor with a tangent of forward-mode differentiation"
        else:
            continue
        text = message(op, name, got, "one without", fix="use torch.autograd.grad or backward()")
        raise LongcatUnsupportedError(text)


def library_of(x: Tensor) -> ModuleType:
    """What computes with tensors of the dtype of x, by the names of the ops."""
    return reference if x.dtype == torch.float64 else ops


def left_out(like: Tensor) -> Tensor:
    """What a backward op returns in the place of a gradient that nobody needs: it must return a tensor."""
    return like.new_empty(0)


def only(needed: list[bool], gradients: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """The gradients that are needed, None for the others."""
    return tuple(g if wanted else None for g, wanted in zip(gradients, needed, strict=True))

"""Which tensors an op computes with: dense ones of plain memory that need no gradient. Fakes of tracing pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad

from ..errors import LongcatError, LongcatShapeError, LongcatUnsupportedError, message

FAKES = (FakeTensor, FunctionalTensor)  # tensors of tracing
# Types of arguments that need no second look.
PLAIN = frozenset({Tensor, torch.nn.Parameter, int, float, bool, type(None)})
_WITHOUT_KERNEL = ("Sparse", "SparseCsr", "Quantized", "NestedTensor")
# Ops beside which `longcat_ops.training.functional` has one with a gradient.
WITH_GRADIENT = frozenset({"moe_route", "moe_permute", "moe_combine", "fused_moe"})
# Dispatch keys of tensors that no op computes with.
REFUSED_KEYS = (*(f"{kind}{place}" for kind in _WITHOUT_KERNEL for place in ("CPU", "CUDA")), "MkldnnCPU")


def require_dense(op: str, arguments: tuple[Any, ...]) -> None:
    """Raises LongcatShapeError for a tensor that is not dense, strided memory."""
    for i, value in enumerate(arguments):
        if isinstance(value, Tensor) and (problem := layout_problem(op, _argument(op, i), value)):
            raise problem


def gradient_check(op: str) -> Callable[[tuple[Any, ...]], None]:
    """A check of the op's arguments that raises LongcatUnsupportedError for a tensor through which a gradient, or a
    tangent, would have to flow."""
    schema = getattr(torch.ops.longcat_ops, op).default._schema
    places = tuple(i for i, spec in enumerate(schema.arguments) if "Tensor" in str(spec.type))
    is_grad_enabled = torch.is_grad_enabled

    def check(arguments: tuple[Any, ...]) -> None:
        suspect = in_forward_mode()
        if is_grad_enabled():
            for i in places:
                suspect = suspect or getattr(arguments[i], "requires_grad", False)
        if suspect:
            for i in places:
                if isinstance(arguments[i], Tensor) and (
                    problem := gradient_problem(op, _argument(op, i), arguments[i])
                ):
                    raise problem

    return check


def layout_problem(op: str, name: str, value: Tensor) -> LongcatError | None:
    """Why the op cannot read the memory of `value`, whatever its shape and dtype; None if it can."""
    kind = type(value)
    if isinstance(value, FAKES):
        return None
    if value.is_nested:
        return _not_dense(
            op, name, "a nested tensor", f"{name}.to_padded_tensor(0.0), or {name}.unbind() and each part"
        )
    if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        got = f"a {kind.__name__}, a tensor subclass with operations of its own"
        return _not_dense(op, name, got, "pass the plain tensor it holds")
    if torch._C._functorch.is_batchedtensor(value):
        text = message(op, name, "a tensor under torch.vmap", "one that is not", fix="pass all rows in one call")
        return LongcatUnsupportedError(text)
    if value.layout is not torch.strided:
        return _not_dense(op, name, f"of layout {value.layout}", f"{name}.to_dense()")
    if value.is_quantized:
        return _not_dense(op, name, f"quantised by torch, {value.dtype}", f"{name}.dequantize()")
    try:
        _ = value.shape, value.stride(), value.dtype, value.device, torch._C._functorch.is_gradtrackingtensor(value)
    except (RuntimeError, ValueError) as error:
        return _not_dense(op, name, f"a {kind.__name__} without a shape: {str(error).splitlines()[0]}", None)
    return None


def _not_dense(op: str, name: str, got: str, fix: str | None) -> LongcatError:
    return LongcatShapeError(message(op, name, got, "a dense torch.Tensor", fix=fix))


def gradient_problem(op: str, name: str, value: Tensor) -> LongcatError | None:
    """Why `value` cannot be an argument, since no op has a gradient formula; None if it can."""
    if torch.is_grad_enabled() and value.requires_grad:
        got = "a tensor that requires a gradient"
    elif has_tangent(value):
        got = "a tensor with a tangent of forward-mode differentiation"
    else:
        return None
    fix = f"{name}.detach() or torch.no_grad(), where the gradient is not wanted"
    if op in WITH_GRADIENT:
        fix += f"; longcat_ops.training.functional.{op}, where it is"
    return LongcatUnsupportedError(message(op, name, got, "one that does not: the op has no gradient formula", fix=fix))


def has_tangent(value: Tensor) -> bool:
    return in_forward_mode() and value.is_floating_point() and forward_ad.unpack_dual(value).tangent is not None


def in_forward_mode() -> bool:
    return getattr(forward_ad, "_current_level", 0) >= 0


def _argument(op: str, index: int) -> str:
    return getattr(torch.ops.longcat_ops, op).default._schema.arguments[index].name

"""What the functions of this folder ask of their arguments, and the one text of a refusal."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import LongcatShapeError, message


def require(holds: bool, op: str, argument: str, got: object, expected: object, fix: str | None = None) -> None:
    """Raises LongcatShapeError with the text of `errors.message` unless `holds`."""
    if not holds:
        raise LongcatShapeError(message(op, argument, got, expected, fix=fix))


def require_int(op: str, argument: str, value: object, low: int, high: float = math.inf) -> None:
    """`value` is an int in low .. high."""
    expected = f"an int of at least {low}" if high == math.inf else f"an int in {low} .. {high:.0f}"
    require(isinstance(value, int) and not isinstance(value, bool) and low <= value <= high, op, argument, value,
            expected)  # fmt: skip


def require_number(
    op: str, argument: str, value: object, *, above: float | None = None, least: float | None = None
) -> None:
    """`value` is a finite number above `above` or of at least `least`."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    holds = number and (above is None or value > above) and (least is None or value >= least)
    bound = f"above {above:g}" if above is not None else f"of at least {least:g}"
    require(holds, op, argument, value, f"a finite number {bound}")


def require_floats(op: str, argument: str, tensor: object, shape: str, ndim: int | None = None) -> None:
    """`tensor` is a floating tensor with elements, of `ndim` dimensions, or of one or more; `shape` names them."""
    got = f"of type {type(tensor).__name__}"
    if isinstance(tensor, Tensor):
        got = f"{str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}"
    holds = isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.numel() > 0
    holds = holds and (tensor.ndim >= 1 if ndim is None else tensor.ndim == ndim)
    require(holds, op, argument, got, f"a floating tensor {shape} with elements")


def wide(tensor: Tensor) -> Tensor:
    """In float32, or in float64 if it is that: what the formulas are computed in."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()

"""The gradients of FFN experts over rows that lie by expert.

The data gradients are the grouped products of this library over transposed weights, which each backward makes: the
kernels read both operands along K. The weight gradients are products of torch, one an expert, between offsets that the
host reads. Gate and up are computed again: the forward keeps no activation of an expert.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...reference.sums import acc_dtype
from ...types import ROW_GROUP
from .registration import library_of
from .rows import ROWS_AT_ONCE


class Needed(NamedTuple):
    """Which gradients are wanted: of the rows, of the numbers that they are weighed with, of the weights."""

    rows: bool
    scale: bool
    gate_up: bool
    down: bool


class Gradients(NamedTuple):
    """rows [n, H] and the weights in their dtypes, scale f32 [n]; n, the rows of all experts. None: not wanted."""

    rows: Tensor | None
    scale: Tensor | None
    gate_up: Tensor | None
    down: Tensor | None


def expert_gradients(rows: Tensor, of_y: Tensor, scale: Tensor | None, offsets: Tensor, gate_up: Tensor, down: Tensor,
                     hint: int | None, needed: Needed) -> Gradients:  # fmt: skip
    """The backward of y[i] = scale[i] * down[g] @ h[i], h = silu(gate) * up, gate and up = gate_up[g] @ rows[i].

    The gradients of gate and up, and scale * h, which a product of torch reads, are rounded to the dtype of the
    weights. All else between the products is float32, or float64.

    Args:
        rows, of_y: [>= n, H] of the dtype of the weights: what went in, and the gradient of y without scale. Rows from
            n on are not read.
        scale: f32 [>= n]; None: 1. offsets: i32 [G + 1]. hint: of the rows of the largest expert.
        gate_up: [G, 2I, H], from `interleave_gate_up`. down: [G, H, I], of the same dtype.
    """
    bounds = [min(max(at, 0), len(rows)) for at in offsets.tolist()]  # the host read
    count, width = bounds[-1], down.shape[2]
    rows, of_y, scale = rows[:count], of_y[:count], None if scale is None else scale[:count]
    both = _product(rows, gate_up, offsets, hint)
    to_h = needed.rows or needed.scale or needed.gate_up
    of_h = _product(of_y, _transposed(down), offsets, hint) if to_h else None
    h = rows.new_empty(count, width) if needed.down else None
    of_scale = both.new_empty(count) if needed.scale else None
    of_both = rows.new_empty(count, 2 * width) if needed.rows or needed.gate_up else None
    for first in range(0, count, ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        _swiglu_gradients(*(None if t is None else t[part] for t in (both, of_h, scale, h, of_scale, of_both)))
    del both, of_h
    return Gradients(
        _product(of_both, _transposed(gate_up), offsets, hint, rows.dtype) if needed.rows else None,
        of_scale,
        _weight_gradients(of_both, rows, bounds, gate_up) if needed.gate_up else None,
        _weight_gradients(of_y, h, bounds, down) if needed.down else None,
    )


def _product(a: Tensor, b: Tensor, offsets: Tensor, hint: int | None, dtype: torch.dtype | None = None) -> Tensor:
    """a[i] @ b[g].T, in the dtype of the sums unless said otherwise."""
    out = a.new_empty((len(a), b.shape[1]), dtype=dtype or acc_dtype(a.dtype))
    return library_of(a).m_grouped_bf16_gemm_nt_offset(a, b, out, offsets, max_m_hint=hint)


def _transposed(weight: Tensor) -> Tensor:
    """[G, K, N] of a weight [G, N, K]: reads and writes all of it."""
    return weight.transpose(1, 2).contiguous()


def _swiglu_gradients(both: Any, of_h: Any, scale: Any, h: Any, of_scale: Any, of_both: Any) -> None:
    """Writes scale * h, and the gradients of scale and of gate and up, of some rows; those that are None are left out.

    both, of_both [m, 2I]: gate and up in turn, 8 columns each.
    """
    rows, halves = len(both), (both.shape[1] // (2 * ROW_GROUP), 2, ROW_GROUP)
    gate, up = both.view(rows, *halves).unbind(2)
    sigmoid = gate.sigmoid()
    act = gate * sigmoid
    hidden = act * up
    if of_h is not None:
        of_h = of_h.view(rows, halves[0], ROW_GROUP)
        if of_scale is not None:
            of_scale.copy_((of_h * hidden).sum((1, 2)))
        if scale is not None:
            of_h = of_h * scale[:, None, None]
    if h is not None:
        h.copy_((hidden if scale is None else hidden * scale[:, None, None]).reshape(h.shape))
    if of_both is not None:
        of_gate, of_up = of_both.view(rows, *halves).unbind(2)
        of_up.copy_(of_h * act)
        of_gate.copy_(of_h * up * (sigmoid + act * (1 - sigmoid)))


def _weight_gradients(of_out: Tensor, rows: Tensor, bounds: list[int], weight: Tensor) -> Tensor:
    """[G, N, K]: of_out[i] outer rows[i], summed over the rows of each expert by torch; 0 for one without rows."""
    found = torch.empty_like(weight, memory_format=torch.contiguous_format)
    for of_weight, (start, end) in zip(found, pairwise(bounds), strict=True):
        if end > start:
            torch.mm(of_out[start:end].t(), rows[start:end], out=of_weight)
        else:
            of_weight.zero_()
    return found

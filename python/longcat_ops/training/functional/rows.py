"""Permute and combine with a gradient. Each is the transpose of a part of the other, and the plan says where every row
came from: no backward adds into rows in an order that is not fixed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import LongcatShapeError, message
from ...reference.sums import acc_dtype
from ...types import Plan, Routing
from .registration import define, left_out, library_of, only, require_tensors

ROWS_AT_ONCE = 1024


def moe_permute(x: Tensor, plan: Plan) -> Tensor:
    """`longcat_ops.moe_permute`, differentiable in x: dx[t] = sum over k, rising, of drows[row_of[t, k]], in float32,
    rounded once.

    Args:
        x: [T, H], bfloat16, float16 or float32; float64 runs the reference. plan: from `longcat_ops.moe_plan`.

    Returns:
        [R, H] of x's dtype. Rows from plan.offsets[G] on are 0, so that the whole tensor is the same on every run.

    Raises:
        LongcatShapeError: x and plan do not fit each other.
    """
    require_tensors("moe_permute", x=x)
    return _permute(x, *plan)


def moe_combine(y: Tensor, plan: Plan, routing: Routing, x: Tensor, add: Tensor | None = None) -> Tensor:
    """`longcat_ops.moe_combine`, differentiable in y, routing.weights, routing.zero_weight, x and add.

    With d = dout[t] of the token t = src_of[r] // K and the choice k of row r: dy[r] = weights[t, k] * d,
    dweights[t, k] = d . y[r] and dzero_weight[t] = d . x[t], dx[t] = zero_weight[t] * d, dadd = dout. Sums run in
    float32, and each result is rounded once. Rows of y behind the last have gradient 0, and so has the weight of a
    choice that has no row: in a plan made with the weights, one of weight 0.

    Args:
        y: [R, H], R the rows of the plan. The others: as in `longcat_ops.moe_combine`; float64 runs the reference.

    Returns:
        [T, H] of x's dtype, with the bits of `longcat_ops.moe_combine`.

    Raises:
        LongcatShapeError: the arguments do not fit each other.
    """
    given = {"y": y, "routing.weights": routing.weights, "routing.zero_weight": routing.zero_weight, "x": x}
    require_tensors("moe_combine", **given, **({} if add is None else {"add": add}))
    if len(y) != len(plan.src_of):
        expected = f"{len(plan.src_of)}, those of the plan"
        raise LongcatShapeError(message("moe_combine", "y", f"of {len(y)} rows", expected))
    return _combine(y, plan.row_of, plan.src_of, routing.weights, routing.zero_weight, x, add)


def summed(y: Tensor, row_of: Tensor, weights: Tensor, zero_weight: Tensor, x: Tensor,
           add: Tensor | None = None) -> Tensor:  # fmt: skip
    """The op `moe_combine`, by what it reads of a plan and of a routing."""
    plan = Plan(row_of, row_of, row_of)
    routing = Routing(row_of, weights, zero_weight, row_of, row_of, row_of)
    return library_of(x).moe_combine(y, plan, routing, x, add)


def dots(a: Tensor, b: Tensor) -> Tensor:
    """a[i] . b[i] of each row i of two matrices, in float32, or float64."""
    acc = acc_dtype(a.dtype)
    parts = zip(a.split(ROWS_AT_ONCE), b.split(ROWS_AT_ONCE), strict=True)
    found = [(p.to(acc) * q.to(acc)).sum(-1) for p, q in parts]
    return torch.cat(found) if found else a.new_empty(0, dtype=acc)


def per_row(of_choices: Tensor, src_of: Tensor) -> Tensor:
    """What each row of a plan has of a [T, K]; 0 behind the last row."""
    if not of_choices.numel():
        return of_choices.new_zeros(len(src_of))
    return of_choices.reshape(-1)[src_of.clamp(min=0).long()].masked_fill(src_of < 0, 0)


def per_choice(of_rows: Tensor, row_of: Tensor) -> Tensor:
    """[T, K]: what the row of each choice has, 0 for a choice without a row."""
    if not len(of_rows):
        return of_rows.new_zeros(row_of.shape)
    absent = (row_of < 0) | (row_of >= len(of_rows))
    return of_rows[row_of.masked_fill(absent, 0).long()].masked_fill(absent, 0)


def _run_permute(x: Tensor, offsets: Tensor, row_of: Tensor, src_of: Tensor) -> Tensor:
    return cleared_behind(library_of(x).moe_permute(x, Plan(offsets, row_of, src_of)), src_of)


def cleared_behind(rows: Tensor, src_of: Tensor) -> Tensor:
    """The rows, those behind the last one of the plan made 0. On a GPU without a read by the host, so all pass by."""
    if rows.is_cuda:
        return rows.masked_fill_((src_of < 0)[:, None], 0)
    rows[int((src_of >= 0).sum()) :] = 0
    return rows


def _fake_permute(x: Tensor, offsets: Tensor, row_of: Tensor, src_of: Tensor) -> Tensor:
    return x.new_empty(src_of.shape[0], x.shape[1])


def _setup_permute(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[2])


def _backward_permute(ctx: Any, of_rows: Tensor) -> tuple:
    return _permute_backward(of_rows, *ctx.saved_tensors), None, None, None


def _run_permute_backward(of_rows: Tensor, row_of: Tensor) -> Tensor:
    tokens, width = row_of.shape[0], of_rows.shape[1]
    acc = acc_dtype(of_rows.dtype)
    nothing = of_rows.new_zeros(1, width).expand(tokens, width)
    ones, none = of_rows.new_ones(row_of.shape, dtype=acc), of_rows.new_zeros(tokens, dtype=acc)
    return summed(of_rows.contiguous(), row_of, ones, none, nothing)


def _fake_permute_backward(of_rows: Tensor, row_of: Tensor) -> Tensor:
    return of_rows.new_empty(row_of.shape[0], of_rows.shape[1])


def _run_combine(y: Tensor, row_of: Tensor, src_of: Tensor, weights: Tensor, zero_weight: Tensor, x: Tensor,
                 add: Tensor | None) -> Tensor:  # fmt: skip
    return summed(y, row_of, weights, zero_weight, x, add)


def _fake_combine(y: Tensor, row_of: Tensor, src_of: Tensor, weights: Tensor, zero_weight: Tensor, x: Tensor,
                  add: Tensor | None) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape)


def _setup_combine(ctx: Any, inputs: tuple, output: Tensor) -> None:
    """Keeps what a needed gradient reads: y for those of the weights, x for those of zero_weight."""
    y, row_of, src_of, weights, zero_weight, x, _ = inputs
    needs = ctx.needs_input_grad
    keep_y, keep_x = (y if needs[3] else None), (x if needs[4] else None)
    ctx.save_for_backward(keep_y, row_of, src_of, weights, zero_weight, keep_x)
    ctx.dtypes = y.dtype, x.dtype


def _backward_combine(ctx: Any, of_out: Tensor) -> tuple:
    needs = ctx.needs_input_grad
    needed = [needs[i] for i in (0, 3, 4, 5)]
    found = _combine_backward(of_out, *ctx.saved_tensors, *ctx.dtypes, needed)
    of_y, of_weights, of_zero, of_x = only(needed, found)
    return of_y, None, None, of_weights, of_zero, of_x, of_out if needs[6] else None


def _run_combine_backward(of_out: Tensor, y: Tensor | None, row_of: Tensor, src_of: Tensor, weights: Tensor,
                          zero_weight: Tensor, x: Tensor | None, y_dtype: torch.dtype, x_dtype: torch.dtype,
                          needed: list[bool]) -> tuple[Tensor, ...]:  # fmt: skip
    of_out = of_out.contiguous()
    of_y, of_weights, of_zero, of_x = (left_out(of_out) for _ in needed)
    if needed[0] or needed[1]:
        rows = library_of(of_out).moe_permute(of_out, Plan(row_of, row_of, src_of))
        if needed[1]:
            of_weights = per_choice(dots(rows, y), row_of)
        if needed[0]:
            of_y = cleared_behind(scaled(rows, per_row(weights, src_of), y_dtype), src_of)
    if needed[2]:
        of_zero = dots(of_out, x)
    if needed[3]:
        of_x = scaled(of_out, zero_weight, x_dtype)
    return of_y, of_weights, of_zero, of_x


def scaled(rows: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """rows[i] * scale[i] in float32, rounded once to dtype."""
    out = rows.new_empty(rows.shape, dtype=dtype)
    for part, by, to in zip(*(t.split(ROWS_AT_ONCE) for t in (rows, scale, out)), strict=True):
        to.copy_(part.to(scale.dtype) * by[:, None])
    return out


def _fake_combine_backward(of_out: Tensor, y: Tensor | None, row_of: Tensor, src_of: Tensor, weights: Tensor,
                           zero_weight: Tensor, x: Tensor | None, y_dtype: torch.dtype, x_dtype: torch.dtype,
                           needed: list[bool]) -> tuple[Tensor, ...]:  # fmt: skip
    made = (
        of_out.new_empty((src_of.shape[0], of_out.shape[1]), dtype=y_dtype),
        torch.empty_like(weights),
        torch.empty_like(zero_weight),
        torch.empty_like(of_out, dtype=x_dtype, memory_format=torch.contiguous_format),
    )
    return tuple(t if wanted else left_out(of_out) for t, wanted in zip(made, needed, strict=True))


_permute_backward = define(
    "moe_permute_backward(Tensor of_rows, Tensor row_of) -> Tensor", _run_permute_backward, _fake_permute_backward
)
_permute = define(
    "moe_permute(Tensor x, Tensor offsets, Tensor row_of, Tensor src_of) -> Tensor",
    _run_permute,
    _fake_permute,
    setup=_setup_permute,
    backward=_backward_permute,
)
_combine_backward = define(
    "moe_combine_backward(Tensor of_out, Tensor? y, Tensor row_of, Tensor src_of, Tensor weights, Tensor zero_weight, "
    "Tensor? x, ScalarType y_dtype, ScalarType x_dtype, bool[] needed) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_combine_backward,
    _fake_combine_backward,
)
_combine = define(
    "moe_combine(Tensor y, Tensor row_of, Tensor src_of, Tensor weights, Tensor zero_weight, Tensor x, Tensor? add) "
    "-> Tensor",
    _run_combine,
    _fake_combine,
    setup=_setup_combine,
    backward=_backward_combine,
)

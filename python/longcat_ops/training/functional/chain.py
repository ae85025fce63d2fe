"""FFN experts with a gradient: over rows that lie by expert, and the chain of one rank around them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...errors import LongcatShapeError, message
from ...ops.expert_chain import most_rows
from ...reference.experts import check_ids, products
from ...reference.gemm import halves_of
from ...types import Fp8Pair, Plan, Routing
from .experts import Needed, expert_gradients
from .registration import define, left_out, library_of, only, require_tensors
from .rows import dots, per_choice, per_row, summed

Fp8Experts = tuple[Fp8Pair, Fp8Pair]


def fused_moe(x: Tensor, routing: Routing, w_gate_up: Tensor, w_down: Tensor, *, plan: Plan | None = None,
              fp8: Fp8Experts | None = None) -> Tensor:  # fmt: skip
    """`longcat_ops.fused_moe` over dense weights, differentiable in x, routing.weights, routing.zero_weight and both
    weights.

    The forward has its bits and keeps nothing but its arguments and the plan. The backward computes gate and up again:
    with 6 R H I flops for the products of a forward, R the rows of all experts, it takes 16 R H I. It makes a
    transposed copy of both weights (docs/training_gradients.md). The gradient of a weight of a choice is dout @ down of
    the expert, times h, and 0 for a choice without a row. A zero expert gives dx its part of zero_weight * dout.

    Args:
        x: [T, H], bfloat16, float16 or float32. With float64, x and weights, the references run.
        routing: from `moe_route` of this module, or of `longcat_ops` where it needs no gradient.
        w_gate_up: [G, 2I, H] bfloat16, on a CPU also float32; from `interleave_gate_up`, whose order its gradient has.
        w_down: [G, H, I] of the same dtype. H and I are multiples of 8.
        plan: moe_plan(routing.ids, G, routing.weights) where there is one already.
        fp8: both weights as FP8 pairs, from `quantise_experts`. The forward computes with these, as
            `longcat_ops.fused_moe` does; the backward takes each quantisation for the identity (straight-through): the
            gradients are those of the dense chain at the same x, and those of the weights go to w_gate_up and w_down.

    Returns:
        [T, H] in x's dtype.

    Raises:
        LongcatShapeError: the arguments do not fit each other, or an id is that of no expert, as in
            `longcat_ops.fused_moe`; a compiled graph does not look at ids.
    """
    of_routing = {"routing.weights": routing.weights, "routing.zero_weight": routing.zero_weight}
    require_tensors("fused_moe", x=x, **of_routing, w_gate_up=w_gate_up, w_down=w_down)
    _require_dtypes("fused_moe", x, w_gate_up, w_down, fp8)
    if plan is None:
        if not (torch.compiler.is_compiling() or x.is_cuda):
            check_ids(routing.ids, len(w_down))
        plan = library_of(x).moe_plan(routing.ids, len(w_down), routing.weights.detach())
    return _fused(x, routing.weights, routing.zero_weight, *plan, w_gate_up, w_down, *_four(fp8))


def expert_rows(rows: Tensor, offsets: Tensor, w_gate_up: Tensor, w_down: Tensor, *, max_m_hint: int | None = None,
                fp8: Fp8Experts | None = None) -> Tensor:  # fmt: skip
    """y[i] = down[g] @ (silu(gate) * up), gate and up = gate_up[g] @ rows[i], for rows that lie by expert, as
    `moe_permute` and `dispatch` leave them; differentiable in rows and both weights. Keeps its arguments alone.

    Args:
        rows: [R, H] of the dtype of the weights. offsets: i32 [G + 1], rising: rows offsets[g] .. offsets[g + 1] - 1
            are those of expert g.
        w_gate_up, w_down, fp8: as in `fused_moe`. max_m_hint: rows of the largest expert, an upper estimate.

    Returns:
        [R, H] of the dtype of rows. Rows from offsets[G] on are 0, and so are their gradients.

    Raises:
        LongcatShapeError: the arguments do not fit each other.
    """
    require_tensors("expert_rows", rows=rows, offsets=offsets, w_gate_up=w_gate_up, w_down=w_down)
    _require_dtypes("expert_rows", rows, w_gate_up, w_down, fp8)
    if rows.dtype != w_down.dtype:
        raise LongcatShapeError(message("expert_rows", "rows", rows.dtype, f"{w_down.dtype}, as `w_down`"))
    return _rows(rows, offsets, w_gate_up, w_down, max_m_hint, *_four(fp8))


def quantise_experts(w_gate_up: Tensor, w_down: Tensor) -> Fp8Experts:
    """FP8 pairs of both weights, 128 x 128, for the forward of `fused_moe`: once after each step of the optimiser.

    Args:
        w_gate_up: [G, 2I, H] from `interleave_gate_up`, w_down: [G, H, I]: bfloat16, float16 or float32.

    Returns:
        Pairs (e4m3, f32 scales) in the layouts of `longcat_ops.fused_moe`.
    """
    with torch.no_grad():
        width = w_gate_up.shape[1] // 2
        halves = halves_of(w_gate_up.detach())
        gate, up = (_quantised(half) for half in halves.split(width, 1))
        both = ops.interleave_gate_up(*(torch.cat(parts, 1) for parts in zip(gate, up, strict=True)))
        return both, _quantised(w_down.detach())


def _quantised(w: Tensor) -> Fp8Pair:
    pairs = [ops.per_block_quant_fp8(one.contiguous()) for one in w]
    return torch.stack([q for q, _ in pairs]), torch.stack([s for _, s in pairs])


def _require_dtypes(op: str, x: Tensor, w_gate_up: Tensor, w_down: Tensor, fp8: Fp8Experts | None) -> None:
    if w_gate_up.dtype != w_down.dtype:
        raise LongcatShapeError(message(op, "w_gate_up", w_gate_up.dtype, f"{w_down.dtype}, as `w_down`"))
    if (x.dtype == torch.float64) != (w_down.dtype == torch.float64):
        raise LongcatShapeError(message(op, "w_down", w_down.dtype, f"float64 beside float64 alone: x is {x.dtype}"))
    if fp8 is not None and x.dtype == torch.float64:
        raise LongcatShapeError(message(op, "fp8", "given", "None for float64, which has no FP8 form"))


def _four(fp8: Fp8Experts | None) -> tuple[Tensor | None, ...]:
    return (None,) * 4 if fp8 is None else (*fp8[0], *fp8[1])


def _weights(gate_up: Tensor, down: Tensor, four: tuple[Tensor | None, ...]) -> tuple[Any, Any]:
    """What the forward computes with."""
    return (gate_up, down) if four[0] is None else (four[:2], four[2:])


def _run_fused(x: Tensor, weights: Tensor, zero_weight: Tensor, offsets: Tensor, row_of: Tensor, src_of: Tensor,
               gate_up: Tensor, down: Tensor, *four: Tensor | None) -> Tensor:  # fmt: skip
    routing = Routing(row_of, weights, zero_weight, row_of, row_of, row_of)
    plan = Plan(offsets, row_of, src_of)
    return library_of(x).fused_moe(x, routing, *_weights(gate_up, down, four), plan=plan)


def _fake_fused(x: Tensor, *rest: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


def _setup_fused(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:8])


def _backward_fused(ctx: Any, of_out: Tensor) -> tuple:
    needed = [ctx.needs_input_grad[i] for i in (0, 1, 2, 6, 7)]
    of_x, of_weights, of_zero, *of_experts = only(needed, _fused_backward(of_out, *ctx.saved_tensors, needed))
    return of_x, of_weights, of_zero, None, None, None, *of_experts, *(None,) * 4


def _run_fused_backward(of_out: Tensor, x: Tensor, weights: Tensor, zero_weight: Tensor, offsets: Tensor,
                        row_of: Tensor, src_of: Tensor, gate_up: Tensor, down: Tensor,
                        needed: list[bool]) -> tuple[Tensor, ...]:  # fmt: skip
    of_out, dtype, plan = of_out.contiguous(), down.dtype, Plan(offsets, row_of, src_of)
    wanted = Needed(needed[0], needed[1], *needed[3:])
    found: list[Tensor | None] = [None] * 5
    if any(wanted):
        permute = library_of(x).moe_permute
        of_rows, of_scale, *found[3:] = expert_gradients(
            permute(x.to(dtype), plan), permute(of_out.to(dtype), plan), per_row(weights, src_of), offsets, gate_up,
            down, most_rows(len(x), row_of.shape[1], len(down)), wanted,
        )  # fmt: skip
        if needed[0]:
            found[0] = summed(of_rows, row_of, torch.ones_like(weights), zero_weight, of_out)
        if needed[1]:
            found[1] = per_choice(of_scale, row_of)
    if needed[2]:
        found[2] = dots(of_out, x)
    return tuple(left_out(of_out) if t is None else t for t in found)


def _fake_fused_backward(of_out: Tensor, x: Tensor, weights: Tensor, zero_weight: Tensor, offsets: Tensor,
                         row_of: Tensor, src_of: Tensor, gate_up: Tensor, down: Tensor,
                         needed: list[bool]) -> tuple[Tensor, ...]:  # fmt: skip
    return _alike(of_out, (x, weights, zero_weight, gate_up, down), needed)


def _alike(of_out: Tensor, inputs: tuple[Tensor, ...], needed: list[bool]) -> tuple[Tensor, ...]:
    """Fakes of the gradients."""
    parts = zip(inputs, needed, strict=True)
    return tuple(t.new_empty(t.shape) if wanted else left_out(of_out) for t, wanted in parts)


def _run_rows(rows: Tensor, offsets: Tensor, gate_up: Tensor, down: Tensor, hint: int | None,
              *four: Tensor | None) -> Tensor:  # fmt: skip
    library, weights = library_of(rows), _weights(gate_up, down, four)
    given = rows if four[0] is None else library.per_token_group_quant_fp8(rows)
    return products((library,) * 3, given, offsets, *weights, rows.new_zeros(rows.shape), max_m_hint=hint)


def _fake_rows(rows: Tensor, *rest: Any) -> Tensor:
    return rows.new_empty(rows.shape)


def _setup_rows(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.hint = inputs[4]


def _backward_rows(ctx: Any, of_y: Tensor) -> tuple:
    needed = [ctx.needs_input_grad[i] for i in (0, 2, 3)]
    of_rows, *of_experts = only(needed, _rows_backward(of_y, *ctx.saved_tensors, ctx.hint, needed))
    return of_rows, None, *of_experts, *(None,) * 5


def _run_rows_backward(of_y: Tensor, rows: Tensor, offsets: Tensor, gate_up: Tensor, down: Tensor, hint: int | None,
                       needed: list[bool]) -> tuple[Tensor, ...]:  # fmt: skip
    wanted = Needed(needed[0], False, *needed[1:])
    found = expert_gradients(rows, of_y.contiguous(), None, offsets, gate_up, down, hint, wanted)
    of_rows = None
    if needed[0]:
        of_rows = rows.new_zeros(rows.shape)
        of_rows[: len(found.rows)] = found.rows
    return tuple(left_out(of_y) if t is None else t for t in (of_rows, found.gate_up, found.down))


def _fake_rows_backward(of_y: Tensor, rows: Tensor, offsets: Tensor, gate_up: Tensor, down: Tensor, hint: int | None,
                        needed: list[bool]) -> tuple[Tensor, ...]:  # fmt: skip
    return _alike(of_y, (rows, gate_up, down), needed)


_PAIRS = "Tensor? q_gate_up, Tensor? s_gate_up, Tensor? q_down, Tensor? s_down"
_PLAN = "Tensor offsets, Tensor row_of, Tensor src_of"
_fused_backward = define(
    f"fused_moe_backward(Tensor of_out, Tensor x, Tensor weights, Tensor zero_weight, {_PLAN}, Tensor w_gate_up, "
    "Tensor w_down, bool[] needed) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_fused_backward,
    _fake_fused_backward,
)
_fused = define(
    f"fused_moe(Tensor x, Tensor weights, Tensor zero_weight, {_PLAN}, Tensor w_gate_up, Tensor w_down, {_PAIRS}) "
    "-> Tensor",
    _run_fused,
    _fake_fused,
    setup=_setup_fused,
    backward=_backward_fused,
)
_rows_backward = define(
    "expert_rows_backward(Tensor of_y, Tensor rows, Tensor offsets, Tensor w_gate_up, Tensor w_down, int? max_m_hint, "
    "bool[] needed) -> (Tensor, Tensor, Tensor)",
    _run_rows_backward,
    _fake_rows_backward,
)
_rows = define(
    f"expert_rows(Tensor rows, Tensor offsets, Tensor w_gate_up, Tensor w_down, int? max_m_hint, {_PAIRS}) -> Tensor",
    _run_rows,
    _fake_rows,
    setup=_setup_rows,
    backward=_backward_rows,
)

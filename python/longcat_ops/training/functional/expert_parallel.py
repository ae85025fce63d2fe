"""Dispatch and combine between ranks with a gradient. Each moves rows by the same routes, one there and one back, so
the backward of each is the other.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...comm.expert_parallel import ExpertParallel
from ...comm.row_exchange import RowExchange, refusing
from ...errors import LongcatShapeError, message
from ...ops.expert_chain import most_rows
from ...types import Plan, Routing
from .chain import Fp8Experts, expert_rows
from .registration import library_of
from .rows import moe_combine, moe_permute


class Sent(NamedTuple):
    """One dispatch, for its combine: the plan of this rank's tokens over all experts, and the routes of its rows."""

    plan: Plan
    exchange: RowExchange


def dispatch(ep: ExpertParallel, x: Tensor, routing: Routing) -> tuple[Tensor, Tensor, Sent]:
    """The rows that all ranks have for this rank's experts, differentiable in x: `ep.dispatch` of a bf16 payload.

    dx[t] is the sum over k, rising, of the gradients of the rows that went out for t, in float32, rounded once. A
    collective, and so is its backward: every rank makes the same calls and lets its loss depend on them, a rank without
    tokens too. The plan's counts are read on the host once, in the forward.

    Args:
        ep: of the backend `local` or `torch`, of any payload: what travels here has the dtype of x. The calls take none
            of its buffers.
        x: [T, H], bfloat16, float16 or float32; float64 runs the reference. T up to max_tokens, another on each rank.
        routing: of x.

    Returns:
        rows [R, H], those of local expert e at offsets[e] .. offsets[e + 1] - 1 in the order of `ep.dispatch`;
            offsets, i32 [local experts + 1]; what `combine` takes.

    Raises:
        LongcatShapeError: an argument is not as above; the other ranks then raise LongcatCommError.
        LongcatUnsupportedError: a backend whose ways cannot be reversed.
        LongcatTimeoutError: a rank did not come.
    """
    with refusing(ep, "dispatch"):
        plan = library_of(x).moe_plan(routing.ids, ep.num_ffn_experts, routing.weights.detach())
        rows = moe_permute(x, plan)
    exchange = RowExchange(ep, plan)
    return _Forth.apply(rows, exchange), exchange.offsets, Sent(plan, exchange)


def combine(ep: ExpertParallel, y: Tensor, sent: Sent, x: Tensor, routing: Routing,
            add: Tensor | None = None) -> Tensor:  # fmt: skip
    """`ep.combine`, differentiable in y, routing.weights, routing.zero_weight, x and add. A collective, and so is its
    backward. Weights do not travel: it keeps the rows of y that came back, of which their gradient is made.

    Args:
        y: [R, H] of x's dtype: the local experts' outputs, row by row as `dispatch` left them.
        sent: of that dispatch. x, routing: as there. add: [T, H] or None.

    Returns:
        [T, H] of x's dtype.

    Raises:
        LongcatShapeError: an argument is not as above.
    """
    with refusing(ep, "combine"):
        _require_like_dispatch(sent, {"x": x, "routing.weights": routing.weights, "add": add})
    return moe_combine(_Back.apply(y, sent.exchange), sent.plan, routing, x, add)


def fused_moe_over(ep: ExpertParallel, x: Tensor, routing: Routing, w_gate_up: Tensor, w_down: Tensor, *,
                   add: Tensor | None = None, fp8: Fp8Experts | None = None) -> Tensor:  # fmt: skip
    """`fused_moe` over the ranks of ep: dispatch, `expert_rows`, combine. Besides its arguments the forward keeps the
    rows that arrived and the results that came back.

    Args:
        x, routing: as in `dispatch`. w_gate_up, w_down, fp8: this rank's experts, as `expert_rows` takes them.
        add: as in `combine`.

    Returns:
        [T, H] of x's dtype, with the bits of `fused_moe` on one rank that has all experts.
    """
    tokens, k = len(x), routing.ids.shape[1]
    rows, offsets, sent = dispatch(ep, x, routing)
    hint = most_rows(ep.ranks * max(tokens, 1), k, ep.num_ffn_experts)
    y = expert_rows(rows, offsets, w_gate_up, w_down, max_m_hint=hint, fp8=fp8)
    return combine(ep, y, sent, x, routing, add)


class _Forth(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: RowExchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.forth(rows)

    @staticmethod
    def backward(ctx: Any, of_rows: Tensor) -> tuple:
        return _Back.apply(of_rows, ctx.exchange), None


class _Back(torch.autograd.Function):
    """The transpose of `_Forth`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: RowExchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.back(rows.contiguous())

    @staticmethod
    def backward(ctx: Any, of_rows: Tensor) -> tuple:
        return _Forth.apply(of_rows.contiguous(), ctx.exchange), None


def _require_like_dispatch(sent: Sent, given: dict[str, Tensor | None]) -> None:
    tokens = len(sent.plan.row_of)
    for name, value in given.items():
        if value is not None and len(value) != tokens:
            raise LongcatShapeError(message("combine", name, f"of {len(value)} tokens", f"{tokens}, as the dispatch"))

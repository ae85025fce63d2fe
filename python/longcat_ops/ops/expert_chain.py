"""What `fused_moe` runs on every backend: the other ops in a row."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _environment
from ..reference.experts import check_ids, count_of, expert_rows
from ..types import Fp8Pair, Plan, Routing
from . import bf16_gemm, gemm, moe


def fused_moe(x: Tensor, routing: Routing, w_gate_up: Tensor | Fp8Pair, w_down: Tensor | Fp8Pair, *, plan: Plan | None,
              out: Tensor) -> None:  # fmt: skip
    """See `longcat_ops.fused_moe`; `out` [T,H] is written. FP8 weights are pairs.

    With a plan these are four launches, whose sizes depend on shapes alone. counts_ready holds for both products,
    whoever made the plan: `moe_plan` is before the permute on the stream, and each block of the latter waits for what
    is ahead of it before it lets the next kernel start. The second product starts after the first has started
    (docs/fused_moe.md).
    """
    ids, weights, experts = routing.ids, routing.weights, count_of(w_down)
    plan = _plan(ids, weights, experts) if plan is None else plan
    hint = most_rows(x.shape[0], plan.row_of.shape[1], experts)
    y = expert_rows((moe, gemm, bf16_gemm), x, plan, w_gate_up, w_down, max_m_hint=hint, counts_ready=True)
    torch.ops.longcat_ops.moe_combine(y, plan.row_of, weights, routing.zero_weight, x, None, out)


def _plan(ids: Tensor, weights: Tensor, experts: int) -> Plan:
    # On a GPU a look at the ids would wait for it, and moe_plan gives an id of no expert no row; so in the emulator.
    if not ids.is_cuda and _environment.backend() != "emu":
        check_ids(ids, experts)
    return moe.moe_plan(ids, experts, weights)


def most_rows(tokens: int, choices: int, experts: int) -> int:
    """Rows that the largest expert is expected to have, from shapes alone: the mean m of an even spread, and six times
    its deviation in a Poisson process. Choices of zero experts are counted, too, which makes m up to 1.5 times too
    large. No expert has more rows than there are tokens.
    """
    mean = tokens * choices / experts
    return max(1, min(tokens, math.ceil(mean + 6 * math.sqrt(mean))))

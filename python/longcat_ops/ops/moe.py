"""Routing, dispatch, combine and the EP=1 expert chain of a ScMoE layer (LongCat-Flash technical report,
arXiv:2509.01322, section 2.1). A choice of id -1 or of weight 0 is a zero expert, or no expert: it is safe in every op
and costs no row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import BLOCK, Fp8Pair, Placement, Plan, Routing
from .calling import empty_scales, kernel, maker, public
from .parameters import weight
from .registry import check_num_valid

__all__ = [
    "Placement",
    "Plan",
    "Routing",
    "fused_moe",
    "moe_combine",
    "moe_permute",
    "moe_permute_quant",
    "moe_place",
    "moe_plan",
    "moe_route",
]

_moe_route = kernel("moe_route")
_moe_place = maker(
    "moe_place",
    lambda ids, slots, replicas, layer: torch.empty(ids.shape, dtype=torch.int32, device=ids.device),
    rows=(0, 0),
    columns=(0, 1),
)
_moe_plan = kernel("moe_plan")
_moe_permute = kernel("moe_permute")
_moe_permute_quant = kernel("moe_permute_quant")
_moe_combine = maker(
    "moe_combine",
    lambda y, row_of, weights, zero_weight, x, add: torch.empty(x.shape, dtype=x.dtype, device=x.device),
    rows=(4, 0),
    columns=(4, 1),
    dtype=4,
)
_fused_moe = kernel("fused_moe")


@public
def moe_route(logits: Tensor, bias: Tensor, *, top_k: int, num_experts: int, num_zero_experts: int, scale: float,
              num_valid: Tensor | int | None = None, errors: Tensor | None = None) -> Routing:  # fmt: skip
    """Choose `top_k` of E = `num_experts` experts, the last `num_zero_experts` of which are zero experts (identity).

    p = softmax(logits) over all E in float32; the top_k of p + bias are chosen, larger first, equal ones lower id
    first; weight = p * scale, neither biased nor renormalised (report, eq. 1). Zero experts leave the list as id -1,
    weight 0, and their weights are summed in zero_weight. An FFN expert whose weight is so small that it is 0 keeps its
    id; num_real and counts include it, and `fused_moe` computes nothing for it.

    Args:
        logits: [T, E] float32 or bfloat16, E <= 1024, last stride 1. T may be 0.
        bias: float32 [E].
        top_k: 1 .. min(E, 32). num_experts: E. num_zero_experts: 0 .. E.
        scale: finite; multiplies the weights of zero experts too.
        num_valid: rows from here on are padding: i32 [1] on the device of logits, read there, or an int.
        errors: i32 [1], counted up by the bad rows of this call and returned; None starts at 0.

    Returns:
        Routing. A row with NaN or +inf, or all of it -inf, leaves ids -1, zero_weight NaN and one count in `errors`, as
            does every row if bias holds a NaN; padding leaves ids -1 and weights 0. counts are of logical experts, zero
            experts included.

    Raises:
        LongcatShapeError: an argument is not as above.
    """
    (tokens, experts), device = logits.shape, logits.device
    if isinstance(num_valid, int):
        check_num_valid(num_valid, logits)
        num_valid = torch.full((1,), num_valid, dtype=torch.int32, device=device)
    routing = Routing(
        ids=torch.empty((tokens, top_k), dtype=torch.int32, device=device),
        weights=torch.empty((tokens, top_k), dtype=torch.float32, device=device),
        zero_weight=torch.empty(tokens, dtype=torch.float32, device=device),
        num_real=torch.empty(tokens, dtype=torch.uint8, device=device),
        counts=torch.empty(experts, dtype=torch.int32, device=device),
        errors=torch.zeros(1, dtype=torch.int32, device=device) if errors is None else errors,
    )
    _moe_route(logits, bias, num_valid, top_k, num_experts, num_zero_experts, scale, *routing)
    return routing


@public
def moe_place(ids: Tensor, placement: Placement, layer: int) -> Tensor:
    """The slot of each choice, where experts have several replicas: slots[id, h % replicas[id]].

    h is the 32-bit finaliser of MurmurHash3 of t + layer * 0x9e3779b9, modulo 2^32, of token t: h ^= h >> 16,
    h *= 0x85ebca6b, h ^= h >> 13, h *= 0xc2b2ae35, h ^= h >> 16. So ranks that see the same tokens choose the same
    replicas, on every run, and the tokens of an expert spread evenly over them. Zero experts have no slot; counts of a
    Routing stay those of logical experts.

    Args:
        ids: i32 [T, K] contiguous, K <= 32: FFN experts, or -1. Ids outside 0 .. N - 1 have no slot.
        placement: gives slots and replicas, contiguous, N and M up to 1024. `longcat_ops.comm.balance_experts` makes
            one. An expert whose number of replicas is not in 1 .. M has no slot.
        layer: 0 .. 2^31 - 1, so that the busy tokens of one layer are not those of the next.

    Returns:
        i32 [T, K]: what `slots` holds there; -1 for a choice without a slot.

    Raises:
        LongcatShapeError: ids, placement or layer is not as above.
    """
    return _moe_place(ids, placement.slots, placement.replicas, layer)


@public
def moe_plan(ids: Tensor, num_local: int, weights: Tensor | None = None) -> Plan:
    """Sort the choices of T tokens by expert: a counting sort, stable in (token, k), the same on every run.

    A choice without a row is in no count, and its row_of is -1.

    Args:
        ids: i32 [T, K] contiguous, K <= 32. Ids outside 0 .. num_local - 1 have no row. A token must not name an
            expert twice, but for choices of weight 0; if one does, choices that find no row left in R get none.
        num_local: G, 1 .. 1024.
        weights: f32 [T, K] contiguous, or None. A choice of weight +0 or -0 has no row, whatever its id: some engines
            hand over a zero expert as id 0, weight 0. A NaN is not 0: its choice has a row, and shows in the sum.

    Returns:
        Plan with R = T * min(K, G), enough for any routing, so that no size depends on the data.

    Raises:
        LongcatShapeError: ids, num_local or weights is not as above.
    """
    (tokens, k), device = ids.shape, ids.device
    plan = Plan(
        offsets=torch.empty(num_local + 1, dtype=torch.int32, device=device),
        row_of=torch.empty((tokens, k), dtype=torch.int32, device=device),
        src_of=torch.empty(tokens * min(k, num_local), dtype=torch.int32, device=device),
    )
    _moe_plan(ids, num_local, weights, *plan)
    return plan


@public
def moe_permute(x: Tensor, plan: Plan) -> Tensor:
    """Each row of x once at every row the plan gives it, its bits unchanged.

    Args:
        x: [T, H], bfloat16, float16 or float32; H a multiple of 8; last stride 1, rows any distance apart.
        plan: from `moe_plan`, of the same T tokens. A row on which row_of and src_of disagree may stay unset.

    Returns:
        [R, H] of x's dtype, contiguous. Rows from plan.offsets[G] on are not set.

    Raises:
        LongcatShapeError: x and plan do not fit each other.
    """
    out = torch.empty((plan.src_of.shape[0], x.shape[1]), dtype=x.dtype, device=x.device)
    _moe_permute(x, plan.row_of, plan.src_of, out)
    return out


@public
def moe_permute_quant(x: Tensor, plan: Plan, *, column_major_scales: bool = False) -> Fp8Pair:
    """Each row of x, quantised 1x128 as `per_token_group_quant_fp8` does, once at every row the plan gives it.

    Args:
        x: [T, H], bfloat16, float16 or float32; H a multiple of 8; last stride 1, rows any distance apart.
        plan: from `moe_plan`, of the same T tokens. A row on which row_of and src_of disagree may stay unset.
        column_major_scales: store s with strides (1, R rounded up to 4); the padding is not set.

    Returns:
        q, e4m3 [R, H]; s, f32 [R, ceil(H / 128)]. Rows from plan.offsets[G] on are not set.

    Raises:
        LongcatShapeError: x and plan do not fit each other.
    """
    rows, width = plan.src_of.shape[0], x.shape[1]
    q = torch.empty((rows, width), dtype=torch.float8_e4m3fn, device=x.device)
    s = empty_scales(rows, -(-width // BLOCK), x.device, column_major_scales)
    _moe_permute_quant(x, plan.row_of, plan.src_of, q, s)
    return q, s


@public
def moe_combine(y: Tensor, plan: Plan, routing: Routing, x: Tensor, add: Tensor | None = None) -> Tensor:
    """out[t] = sum over k of weights[t, k] * y[row_of[t, k]] + zero_weight[t] * x[t] + add[t].

    In float32 and in this order, k rising, with one rounding at the end. A token without FFN experts is a normal row.
    A choice without a row adds nothing, whatever its weight. One that has a row and weight 0 adds 0 * y, which is NaN
    where y is inf or NaN; a plan made with the weights gives it no row.

    Args:
        y: [R, H], bfloat16, float16 or float32: the experts' outputs. Rows that no choice points to are not read.
        plan: gives row_of; -1 has no row. routing: gives weights and zero_weight.
        x: [T, H], bfloat16, float16 or float32: what the router saw, the identity path of the zero experts.
        add: [T, H] of x's dtype, for example the output of the dense path. All with last stride 1.

    Returns:
        [T, H] of x's dtype, contiguous.

    Raises:
        LongcatShapeError: the arguments do not fit each other.
    """
    return _moe_combine(y, plan.row_of, routing.weights, routing.zero_weight, x, add)


@public
def fused_moe(x: Tensor, routing: Routing, w_gate_up: Tensor | Fp8Pair, w_down: Tensor | Fp8Pair, *,
              plan: Plan | None = None) -> Tensor:  # fmt: skip
    """The expert chain of one rank: sum over k of weights[:, k] * SwiGLU_{ids[:, k]}(x), plus zero_weight * x.

    On every backend: `moe_plan`, `moe_permute_quant`, `m_grouped_fp8_swiglu_gemm_nt_offset`,
    `m_grouped_fp8_gemm_nt_offset`, `moe_combine`, of which on a GPU no host code reads a result. Around a dense weight
    `moe_permute` and the bf16 products stand in their place: x is converted to the dtype of gate_up, and h is bf16, or
    that of dense gate_up, until down asks for another.

    A choice of id -1 or of weight 0 is none: it is not sent, not computed and not counted. Where an FFN expert's weight
    is 0, the result is that of adding 0 * y for it, but for the sign of a zero, and an inf or NaN of y does not show.

    Source: LongCat-Flash technical report (arXiv:2509.01322), eq. 1 and eq. 8.

    Args:
        x: [T, H], bfloat16, float16 or float32; H a multiple of 8; last stride 1, rows any distance apart.
        routing: from `moe_route`, ids in 0 .. G - 1 or -1.
        w_gate_up: [G, 2I, H] bfloat16, on a CPU also float32, or an FP8 pair; from `interleave_gate_up`.
        w_down: [G, H, I] bfloat16, on a CPU also float32, or an FP8 pair (e4m3, f32 [G, ceil(H / 128),
            ceil(I / 128)]). H and I are multiples of 8.
        plan: moe_plan(routing.ids, G, routing.weights) where there is one already. routing.ids is then not read, and a
            choice of weight 0 that has a row in it is computed, and adds 0 * y.

    Returns:
        [T, H] in x's dtype, contiguous; summed as in `moe_combine`.

    Raises:
        LongcatShapeError: the arguments do not fit each other, or an id is that of no expert, even with weight 0. With
            a plan, and on a GPU, ids are not checked: one of no expert counts as -1.
    """
    gate_up, gate_up_scales = weight("fused_moe", "w_gate_up", w_gate_up)
    down, down_scales = weight("fused_moe", "w_down", w_down)
    offsets, row_of, src_of = (None,) * 3 if plan is None else (plan.offsets, plan.row_of, plan.src_of)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _fused_moe(
        x, routing.ids, routing.weights, routing.zero_weight, gate_up, gate_up_scales, down, down_scales,
        offsets, row_of, src_of, out,
    )  # fmt: skip
    return out

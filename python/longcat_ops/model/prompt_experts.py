"""The experts of a chunk of a prompt by torch's products: bf16 in an order of sums that decoding may not use."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..types import ROW_GROUP, Plan, Routing
from .products import torch_multiplies

WORTH_IT = 32  # rows an expert; below, the library's products are faster


def pay(x: Tensor, gate_up: Tensor, down: Tensor, rows: float) -> bool:
    """Whether a chunk x [T,H] with about so many `rows` for each expert runs here."""
    dense = {x.dtype, gate_up.dtype, down.dtype} == {torch.bfloat16}
    return dense and x.device.type == "cpu" and rows >= WORTH_IT and torch_multiplies(x.dtype, "cpu")


def fused_moe(x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor, plan: Plan) -> Tensor:
    """`longcat_ops.fused_moe` of bf16 weights, the products rounded to bf16 before SwiGLU."""
    bounds, rows = plan.offsets.tolist(), ops.moe_permute(x, plan)
    wide = _by_expert(rows, gate_up, bounds)
    halves = wide.unflatten(1, (-1, 2, ROW_GROUP)).transpose(1, 2).flatten(1)
    return ops.moe_combine(_by_expert(ops.silu_and_mul(halves), down, bounds), plan, routing, x)


def _by_expert(x: Tensor, weight: Tensor, bounds: list[int]) -> Tensor:
    """x [R,K] @ weight[e].T for the rows of each expert e; other rows are not set."""
    out = x.new_empty((len(x), weight.shape[1]))
    for w, a, b in zip(weight, bounds, bounds[1:], strict=False):
        if a < b:
            torch.mm(x[a:b], w.t(), out=out[a:b])
    return out

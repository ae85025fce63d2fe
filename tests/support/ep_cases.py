"""Problems of expert parallelism: tokens and choices of every rank; what one rank with all experts makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import longcat_ops
from longcat_ops import Plan, Routing
from support.fused_moe_cases import BF16, dense_weights, fp8_weights

TOKENS = [5, 0, 3, 9, 1, 0, 4, 2]  # of each rank


@dataclass(frozen=True)
class Shape:
    """experts: FFN experts, a multiple of 2, 3 and 4."""

    experts: int = 12
    zero: int = 6
    top_k: int = 5
    hidden: int = 64
    width: int = 48


SHAPES = {
    "usual": Shape(),
    "twelve": Shape(experts=24, zero=12, top_k=12, hidden=272, width=24),
    "one choice": Shape(experts=12, zero=0, top_k=1, hidden=16, width=8),
    "more choices than local experts": Shape(experts=12, zero=4, top_k=12, hidden=144, width=16),
}
CASES = ("uneven", "nobody", "hot", "extremes", "holes")


def inputs(case: str, shape: Shape, ranks: int, seed: int = 0) -> list[tuple[Tensor, Routing]]:
    """x and routing of each rank. extremes: tokens without FFN expert, and with nothing else. holes: ids -1 with and
    without a weight, chosen experts of weight +0 and -0, ids of no expert, padding behind."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for tokens in [0] * ranks if case == "nobody" else TOKENS[:ranks]:
        x = torch.randn(tokens, shape.hidden, generator=g).to(BF16)
        logits = torch.randn(tokens, shape.experts + shape.zero, generator=g) * 2
        if case == "hot":
            logits[:, 1] += 20
        if case == "extremes":
            logits[::2, : shape.experts] -= 40
            logits[1::2, : shape.experts] += 40
        total = shape.experts + shape.zero
        routing = longcat_ops.moe_route(
            logits, torch.zeros(total), top_k=shape.top_k, num_experts=total, num_zero_experts=shape.zero, scale=6.0
        )
        if case == "holes" and tokens:
            ids, weights = routing.ids, routing.weights
            weights[0, 0], weights[tokens // 2, -1] = -0.0, 0.0
            ids[tokens // 3, 0] = shape.experts + 1
            ids[-1], weights[-1], routing.zero_weight[-1] = -1, 0.0, 0.0
            ids[0, -1] = -1  # keeps its weight
        found.append((x, routing))
    return found


def joined(parts: list[tuple[Tensor, Routing]]) -> tuple[Tensor, Routing]:
    """The tokens of all ranks as one rank would have them."""
    x = torch.cat([part for part, _ in parts])
    names = ("ids", "weights", "zero_weight", "num_real")
    fields = {name: torch.cat([getattr(routing, name) for _, routing in parts]) for name in names}
    return x, parts[0][1]._replace(**fields)


def weights(shape: Shape, payload: str, seed: int = 1) -> tuple:
    g = torch.Generator().manual_seed(seed)
    gate_up = (torch.randn(shape.experts, 2 * shape.width, shape.hidden, generator=g) * 0.1).to(BF16)
    down = (torch.randn(shape.experts, shape.hidden, shape.width, generator=g) * 0.1).to(BF16)
    return fp8_weights(gate_up, down) if payload == "fp8" else dense_weights(gate_up, down)


def local(weight: object, rank: int, ranks: int) -> object:
    """A rank's experts of a stacked weight."""
    if isinstance(weight, tuple):
        return tuple(local(part, rank, ranks) for part in weight)
    size = len(weight) // ranks
    return weight[rank * size : (rank + 1) * size]


def dispatched(x: Tensor, routing: Routing, experts: int, payload: str) -> tuple[Plan, Tensor, Tensor | None]:
    """What one rank makes of all tokens: the plan, and the rows by expert."""
    plan = longcat_ops.moe_plan(routing.ids, experts, routing.weights)
    if payload == "fp8":
        return plan, *longcat_ops.moe_permute_quant(x, plan)
    return plan, longcat_ops.moe_permute(x, plan), None

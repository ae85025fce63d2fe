"""Problems of the ops with a gradient, whose choices finite differences do not move; their gradients by fp64 loops."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longcat_ops import Routing, moe_plan, moe_route, reference
from longcat_ops.training import functional

F64, F32, BF16 = torch.float64, torch.float32, torch.bfloat16
SCALE = 6.0


@dataclass(frozen=True)
class Shape:
    experts: int = 6
    zero: int = 3
    top_k: int = 4
    hidden: int = 64
    width: int = 48


SMALL = Shape(experts=4, zero=2, top_k=3, hidden=8, width=8)  # of gradcheck


@dataclass
class Problem:
    """logits, x, gate_up (in the order of `interleave_gate_up`), down; up: the gradient that reaches the output."""

    shape: Shape
    logits: Tensor
    bias: Tensor
    x: Tensor
    gate_up: Tensor
    down: Tensor
    up: Tensor

    def routing(self) -> Routing:
        route = reference.moe_route if self.logits.dtype == F64 else moe_route
        return route(self.logits, self.bias, **self.sizes)

    @property
    def sizes(self) -> dict[str, object]:
        total = self.shape.experts + self.shape.zero
        return {"top_k": self.shape.top_k, "num_experts": total, "num_zero_experts": self.shape.zero, "scale": SCALE}


def make(tokens: int, dtype: torch.dtype, shape: Shape = Shape(), seed: int = 0) -> Problem:
    g = torch.Generator().manual_seed(seed)

    def drawn(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(size, generator=g, dtype=F64) * scale).to(dtype)

    total, width = shape.experts + shape.zero, shape.width
    logits = gapped(tokens, total, g).to(F64 if dtype == F64 else F32)
    gate_up = reference.interleave_gate_up(drawn(shape.experts, 2 * width, shape.hidden, scale=0.1))
    return Problem(shape, logits, torch.randn(total, generator=g) * 1e-3, drawn(tokens, shape.hidden), gate_up,
                   drawn(shape.experts, shape.hidden, width, scale=0.1), drawn(tokens, shape.hidden))  # fmt: skip


def gapped(tokens: int, total: int, g: torch.Generator) -> Tensor:
    """Logits whose probabilities differ by far more than finite differences and the bias of `make` move them: each row
    is a permutation of 0, 0.4, 0.8, .. and a shift."""
    order = torch.rand(tokens, total, generator=g, dtype=F64).argsort(1)
    return order * 0.4 + torch.randn(tokens, 1, generator=g, dtype=F64)


def holes(p: Problem) -> Routing:
    """A routing with an FFN choice of weight +0 and of -0, one of id -1 that keeps a weight, a row of padding, and no
    token of expert 2."""
    routing = p.routing()
    ids, weights, zero_weight = routing.ids, routing.weights, routing.zero_weight
    ids[ids == 2] = -1
    weights[0, 0], weights[1, -1] = 0.0, -0.0
    ids[-1], weights[-1], zero_weight[-1] = -1, 0.0, 0.0
    return routing


def loop(x: Tensor, ids: Tensor, weights: Tensor, zero_weight: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The dense chain, one token and one choice at a time, by the text of its formula. gate_up: gate rows, then up."""
    rows = []
    for t, chosen in enumerate(ids.tolist()):
        total = zero_weight[t] * x[t]
        for k, e in enumerate(chosen):
            if e >= 0:
                gate, up = (gate_up[e] @ x[t]).chunk(2)
                total = total + weights[t, k] * (down[e] @ (gate * torch.sigmoid(gate) * up))
        rows.append(total)
    return torch.stack(rows) if rows else x * 1


def loop_gradients(p: Problem, routing: Routing) -> dict[str, Tensor]:
    """Gradients of sum(up * chain) in fp64, by torch through `loop`; that of gate_up in the interleaved order."""
    halves = reference.gemm.halves_of(p.gate_up.double())
    given = {"x": p.x, "weights": routing.weights, "zero_weight": routing.zero_weight, "gate_up": halves,
             "down": p.down}  # fmt: skip
    wide = {name: t.detach().double().requires_grad_() for name, t in given.items()}
    out = loop(wide["x"], routing.ids, *list(wide.values())[1:])
    (out * p.up.double()).sum().backward()
    found = {name: torch.zeros_like(t) if t.grad is None else t.grad for name, t in wide.items()}
    found["gate_up"] = reference.interleave_gate_up(found["gate_up"])
    return found


def pieces(x: Tensor, routing: Routing, gate_up: Tensor, down: Tensor, add: Tensor | None = None) -> Tensor:
    """Permute, experts and combine, one by one."""
    planned = reference.moe_plan if x.dtype == F64 else moe_plan
    plan = planned(routing.ids, len(down), routing.weights.detach())
    rows = functional.moe_permute(x, plan)
    y = functional.expert_rows(rows, plan.offsets, gate_up, down)
    return functional.moe_combine(y, plan, routing, x, add)


def leaf(t: Tensor) -> Tensor:
    return t.detach().clone().requires_grad_()


def relative(got: Tensor, want: Tensor) -> float:
    """Norm of the error over the norm of the value; of nothing, and of 0 where 0 is right, 0."""
    error, size = (got.double() - want).norm().item(), want.norm().item()
    return error / size if size else error

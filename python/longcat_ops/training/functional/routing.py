"""The choice of experts with a gradient: through the weights of the choice, not through the choice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ops.registry import check_num_valid
from ...reference.sums import acc_dtype
from ...types import Routing
from .registration import define, library_of, require_tensors


def moe_route(logits: Tensor, bias: Tensor, *, top_k: int, num_experts: int, num_zero_experts: int, scale: float,
              num_valid: Tensor | int | None = None) -> tuple[Routing, Tensor]:  # fmt: skip
    """`longcat_ops.moe_route`, differentiable in logits through `weights`, `zero_weight` and the probabilities.

    With p = softmax(logits), weight = p * scale of the chosen expert, and zero_weight is the sum over the chosen zero
    experts (report, eq. 1). Where g[t, e] is the gradient of p[t, e], which is scale times that of the weight that
    it became, or of zero_weight, plus that of probs,

        dlogits[t] = p[t] * (g[t] - sum over e of p[t, e] * g[t, e])

    in float32, rounded once. Ids, counts and bias get no gradient: top-k has none, and at a tie even the choice jumps.
    A row of padding has gradient 0, and one whose logits have no softmax has NaN. `bias` may be that of a
    `BiasController`: it takes no part in the weights.

    Args:
        logits: [T, E] float32 or bfloat16; float64 runs the reference. Contiguous where it needs a gradient. The
            others: as in `longcat_ops.moe_route`.

    Returns:
        (routing, probs). routing has the values of `longcat_ops.moe_route`. probs: f32 [T, E], p by torch, 0 in rows
            of padding, for `device_balance_loss`; they agree with weights / scale to rounding.

    Raises:
        LongcatShapeError: an argument is not as above.
    """
    require_tensors("moe_route", logits=logits, bias=bias)
    if isinstance(num_valid, int):
        check_num_valid(num_valid, logits)
        num_valid = torch.full((1,), num_valid, dtype=torch.int32, device=logits.device)
    needed = torch.is_grad_enabled() and logits.requires_grad
    weights, zero_weight, probs, ids, num_real, counts, errors, _ = _route(
        logits, bias.detach(), num_valid, top_k, num_experts, num_zero_experts, float(scale), needed
    )
    return Routing(ids, weights, zero_weight, num_real, counts, errors), probs


def _run(logits: Tensor, bias: Tensor, num_valid: Tensor | None, top_k: int, num_experts: int, num_zero_experts: int,
         scale: float, with_choices: bool) -> tuple[Tensor, ...]:  # fmt: skip
    """What has a gradient, then what has none. Last, for the backward, the choices with zero experts under their ids,
    which Routing leaves out: those of the same call with no zero experts."""
    route = library_of(logits).moe_route
    sizes = {"top_k": top_k, "num_experts": num_experts, "scale": scale, "num_valid": num_valid}
    routing = route(logits, bias, num_zero_experts=num_zero_experts, **sizes)
    choices = routing.ids
    if with_choices:
        choices = route(logits, bias, num_zero_experts=0, **sizes).ids
    probs = logits.softmax(-1, dtype=acc_dtype(logits.dtype))
    if num_valid is not None:
        padding = torch.arange(len(logits), device=logits.device) >= num_valid
        probs.masked_fill_(padding[:, None], 0)
    ids, weights, zero_weight, *rest = routing
    return weights, zero_weight, probs, ids, *rest, choices.clone()


def _fake(logits: Tensor, bias: Tensor, num_valid: Tensor | None, top_k: int, num_experts: int, num_zero_experts: int,
          scale: float, with_choices: bool) -> tuple[Tensor, ...]:  # fmt: skip
    (tokens, experts), acc = logits.shape, acc_dtype(logits.dtype)

    def made(*shape: Any, dtype: torch.dtype) -> Tensor:
        return logits.new_empty(shape, dtype=dtype)

    return (
        made(tokens, top_k, dtype=acc), made(tokens, dtype=acc), made(tokens, experts, dtype=acc),
        made(tokens, top_k, dtype=torch.int32), made(tokens, dtype=torch.uint8), made(experts, dtype=torch.int32),
        made(1, dtype=torch.int32), made(tokens, top_k, dtype=torch.int32),
    )  # fmt: skip


def _setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    logits, _, _, _, num_experts, num_zero_experts, scale, _ = inputs
    _, _, probs, *integers, choices = output
    ctx.mark_non_differentiable(*integers, choices)
    ctx.save_for_backward(probs, choices)
    ctx.numbers = num_experts - num_zero_experts, scale, logits.dtype


def _backward(ctx: Any, *grads: Any) -> tuple:
    of_logits = _route_backward(*grads[:3], *ctx.saved_tensors, *ctx.numbers)
    return of_logits, *(None,) * 7


def _run_backward(of_weights: Tensor, of_zero: Tensor, of_probs: Tensor, probs: Tensor, choices: Tensor,
                  num_ffn_experts: int, scale: float, dtype: torch.dtype) -> Tensor:  # fmt: skip
    """A row names no expert twice, so no element of g has two terms."""
    chosen = torch.where(choices < num_ffn_experts, of_weights, of_zero[:, None]) * scale
    chosen = chosen.masked_fill(choices < 0, 0)
    at = choices.clamp(min=0).long()
    # A row without choices, of padding or with NaN, writes its 0 to one place only: p is 0 or NaN throughout.
    g = of_probs + torch.zeros_like(probs).scatter(1, at, chosen)
    return (probs * (g - (probs * g).sum(-1, keepdim=True))).to(dtype)


def _fake_backward(of_weights: Tensor, of_zero: Tensor, of_probs: Tensor, probs: Tensor, choices: Tensor,
                   num_ffn_experts: int, scale: float, dtype: torch.dtype) -> Tensor:  # fmt: skip
    return torch.empty_like(probs, dtype=dtype)


_route_backward = define(
    "moe_route_backward(Tensor of_weights, Tensor of_zero, Tensor of_probs, Tensor probs, Tensor choices, "
    "SymInt num_ffn_experts, float scale, ScalarType dtype) -> Tensor",
    _run_backward,
    _fake_backward,
)
_route = define(
    "moe_route(Tensor logits, Tensor bias, Tensor? num_valid, int top_k, SymInt num_experts, SymInt num_zero_experts, "
    "float scale, bool with_choices) -> (Tensor weights, Tensor zero_weight, Tensor probs, Tensor ids, "
    "Tensor num_real, Tensor counts, Tensor errors, Tensor choices)",
    _run,
    _fake,
    setup=_setup,
    backward=_backward,
)

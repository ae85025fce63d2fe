"""Routing and the EP=1 expert chain of a ScMoE layer."""

from __future__ import annotations

from torch import Tensor

from ..errors import LongcatShapeError, message
from ..reference import moe as reference
from ..reference.moe import Routing
from .gemm import Fp8Pair

__all__ = ["Routing", "fused_moe", "moe_route"]


def moe_route(logits: Tensor, bias: Tensor, *, top_k: int, num_experts: int, num_zero_experts: int, scale: float,
              num_valid: int | None = None) -> Routing:  # fmt: skip
    """Choose `top_k` of E = `num_experts` experts, the last `num_zero_experts` of which are zero experts (identity).

    Args:
        logits: [T,E] f32 or bf16. bias: f32[E], steers the choice and never the weights.
        top_k: 1 .. min(E, 32). scale: multiplies every weight, those of zero experts too. num_valid: rows from here on
            are padding.

    Returns: Routing; softmax over all E in fp32, no renormalisation, order by score + bias descending, lower id first.
        A row with NaN or +inf, or all of it -inf, leaves ids -1, zero_weight NaN and counts in `errors`;
        rows >= num_valid: ids -1, weights 0.
    Raises: LongcatShapeError. Source: LongCat-Flash technical report (arXiv 2509.01322), eq. 1 and section 2.1.
    """
    if logits.dim() != 2 or logits.shape[1] != num_experts:
        raise LongcatShapeError(message("moe_route", "logits", list(logits.shape), f"[T, num_experts={num_experts}]"))
    if not logits.is_floating_point():
        raise LongcatShapeError(message("moe_route", "logits", logits.dtype, "float32 or bfloat16"))
    if bias.shape != (num_experts,):
        raise LongcatShapeError(message("moe_route", "bias", list(bias.shape), [num_experts]))
    if not 0 <= num_zero_experts <= num_experts:
        raise LongcatShapeError(message("moe_route", "num_zero_experts", num_zero_experts, f"0 .. {num_experts}"))
    if not 1 <= top_k <= min(num_experts, 32):
        raise LongcatShapeError(message("moe_route", "top_k", top_k, f"1 .. {min(num_experts, 32)}"))
    if num_valid is not None and not 0 <= num_valid <= logits.shape[0]:
        raise LongcatShapeError(message("moe_route", "num_valid", num_valid, f"0 .. {logits.shape[0]} rows"))
    return reference.moe_route(logits, bias, top_k=top_k, num_experts=num_experts, num_zero_experts=num_zero_experts,
                               scale=scale, num_valid=num_valid)  # fmt: skip


def fused_moe(x: Tensor, routing: Routing, w_gate_up: Tensor | Fp8Pair, w_down: Tensor | Fp8Pair) -> Tensor:
    """The expert chain of one rank: sum over k of weights[:,k] * SwiGLU_{ids[:,k]}(x), plus zero_weight * x.

    Args:
        x: [T,H]. routing: from `moe_route`, ids in 0 .. G-1 or -1 (costs nothing).
        w_gate_up: [G,2I,H], gate rows then up rows; w_down: [G,H,I]. Each dense, or an FP8 pair (e4m3, f32 scales per
            128x128 block, gate_up's blocks restarting at the first up row: [G,2*ceil(I/128),ceil(H/128)]).

    Returns: [T,H] in x's dtype: summed in k order in fp32, one rounding; a token without FFN experts is a normal row.
    Raises: LongcatShapeError. Source: LongCat-Flash technical report (arXiv 2509.01322), eq. 1 and eq. 8.
    """
    gate_up = w_gate_up[0] if isinstance(w_gate_up, tuple) else w_gate_up
    down = w_down[0] if isinstance(w_down, tuple) else w_down
    if x.dim() != 2 or routing.ids.shape[0] != x.shape[0]:
        raise LongcatShapeError(
            message("fused_moe", "x", list(x.shape), f"[T,H] with T = {routing.ids.shape[0]}, the rows of routing.ids")
        )
    if gate_up.dim() != 3 or gate_up.shape[2] != x.shape[1] or gate_up.shape[1] % 2:
        raise LongcatShapeError(message("fused_moe", "w_gate_up", list(gate_up.shape), f"[G, 2I, H={x.shape[1]}]"))
    experts, width, hidden = gate_up.shape
    if down.shape != (experts, hidden, width // 2):
        raise LongcatShapeError(message("fused_moe", "w_down", list(down.shape), [experts, hidden, width // 2]))
    for name, weight, halves in (("w_gate_up", w_gate_up, 2), ("w_down", w_down, 1)):
        if isinstance(weight, tuple):
            (g, n, k), got = weight[0].shape, weight[1].shape
            want = (g, halves * -(-n // halves // 128), -(-k // 128))
            if got != want:
                raise LongcatShapeError(message("fused_moe", f"{name} scales", list(got), list(want)))
    return reference.fused_moe(x, routing, w_gate_up, w_down)

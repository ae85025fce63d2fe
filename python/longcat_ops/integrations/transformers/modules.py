"""The MoE layer of transformers' LongCat-Flash, on the ops of this library: `MoE`, and its parts `Router`, `Experts`.

They extend the classes of transformers, which they import when they are first asked for. Parameters have the names and
shapes that transformers expects, except that zero experts have none.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...model.layers import ops_for
from ...model.source import scale_shape
from ...types import Routing
from .names import is_ours


def __getattr__(name: str) -> type[nn.Module]:
    if name in ("MoE", "Router", "Experts"):  # by name: a pickle finds them here, too
        return _classes()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _classes() -> dict[str, type[nn.Module]]:
    from transformers.activations import ACT2FN
    from transformers.models.longcat_flash import modeling_longcat_flash as stock

    class Router(stock.LongcatFlashTopkRouter):
        """Weight and bias stay float32 (float64 in a float64 model) whatever dtype the model is loaded in."""

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.zero_experts = config.zero_expert_num or 0
            self.to(torch.promote_types(torch.get_default_dtype(), torch.float32))

        def forward(self, hidden_states: Tensor) -> tuple[Tensor, Routing]:
            """[T,H] -> logits [T,E] in the router's dtype, at least float32; the choice of each row."""
            weight = self.classifier.weight
            wide = torch.promote_types(weight.dtype, torch.float32)
            logits = F.linear(hidden_states.to(wide), weight.to(wide))
            return logits, ops_for(wide).moe_route(
                logits, self.e_score_correction_bias.to(wide), top_k=self.top_k, num_experts=self.n_routed_experts,
                num_zero_experts=self.zero_experts, scale=self.routed_scaling_factor,
            )  # fmt: skip

    class Experts(stock.LongcatFlashExperts):
        """gate_up_proj [N,2I,H], rows of gate and up in the order of `fused_moe`, and down_proj [N,H,I] of the FFN
        experts, dense, or FP8 beside `_scale_inv`."""

        def __init__(self, config: Any) -> None:
            nn.Module.__init__(self)
            self.num_routed_experts, self.hidden_size = config.n_routed_experts, config.hidden_size
            self.zero_expert_num = config.zero_expert_num or 0
            self.total_experts = self.num_routed_experts + self.zero_expert_num
            self.intermediate_size = config.expert_ffn_hidden_size
            self.act_fn, self.identity_expert = ACT2FN[config.hidden_act], nn.Identity()  # named by transformers' plans
            self.is_fp8 = False
            count, hidden, width = self.num_routed_experts, self.hidden_size, self.intermediate_size
            self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * width, hidden))
            self.down_proj = nn.Parameter(torch.empty(count, hidden, width))

        def hold_fp8(self) -> None:
            """Room for FP8 weights and their scales in place of dense ones."""
            count, hidden, width = self.num_routed_experts, self.hidden_size, self.intermediate_size
            rows, cols = scale_shape(width, hidden)
            shapes = {"gate_up_proj": (count, 2 * rows, cols), "down_proj": (count, *scale_shape(hidden, width))}
            for name, shape in shapes.items():
                codes = torch.empty_like(getattr(self, name), dtype=torch.float8_e4m3fn)
                scale = torch.empty(shape, dtype=torch.float32, device=codes.device)
                setattr(self, name, nn.Parameter(codes, requires_grad=False))
                setattr(self, f"{name}_scale_inv", nn.Parameter(scale, requires_grad=False))
            self.is_fp8 = True

        def forward(self, hidden_states: Tensor, routing: Routing) -> Tensor:
            """[T,H] -> [T,H] in its dtype, zero experts included."""
            gate_up, down = self.gate_up_proj, self.down_proj
            if self.is_fp8:
                gate_up, down = (gate_up, self.gate_up_proj_scale_inv), (down, self.down_proj_scale_inv)
            return ops_for(hidden_states.dtype).fused_moe(hidden_states, routing, gate_up, down)

    class MoE(stock.LongcatFlashMoE):
        """What the decoder layers of a LongCat-Flash model build; transformers' own where the config asks for that."""

        def __new__(cls, config: Any = None) -> Any:
            """config None: as copies and pickles build it."""
            return super().__new__(cls) if config is None or is_ours(config) else stock_moe(config)

        def __init__(self, config: Any) -> None:
            nn.Module.__init__(self)
            self.intermediate_size = config.expert_ffn_hidden_size
            self.config = config
            self.experts = Experts(config)
            self.router = Router(config)

        def forward(self, hidden_states: Tensor) -> Tensor:
            """[B,S,H] -> [B,S,H] in its dtype."""
            rows = hidden_states.reshape(-1, hidden_states.shape[-1])
            _, routing = self.router(rows)
            return self.experts(rows, routing).view(hidden_states.shape)

    stock_moe = stock.LongcatFlashMoE
    for cls in (MoE, Router, Experts):
        cls.__module__, cls.__qualname__ = __name__, cls.__name__
    return {"MoE": MoE, "Router": Router, "Experts": Experts}

"""Ops with a gradient, beside the out-variant ones of `longcat_ops`, which cannot carry one. Each has the name, the
values and the checks of its op. docs/training_gradients.md says what a backward costs and what a forward keeps.
"""

from ... import _torch  # noqa: F401  (first: it says what to do where torch is missing)
from .chain import expert_rows, fused_moe, quantise_experts
from .expert_parallel import Sent, combine, dispatch, fused_moe_over
from .routing import moe_route
from .rows import moe_combine, moe_permute

__all__ = [
    "Sent",
    "combine",
    "dispatch",
    "expert_rows",
    "fused_moe",
    "fused_moe_over",
    "moe_combine",
    "moe_permute",
    "moe_route",
    "quantise_experts",
]

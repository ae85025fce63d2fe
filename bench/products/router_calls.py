"""Calls of the router's product and of torch's in float32, on the same operands."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

import longcat_ops
from products.problem import COLD

Run = Callable[[], Tensor]


def router_calls(tokens: int, experts: int, hidden: int, device: str, l2_bytes: int = 0) -> tuple[list[Run], list[Run]]:
    """`router_gemm` of bf16 rows [T, H] by a weight f32 [E, H] that is split beforehand, and `F.linear` of the same
    rows, widened beforehand: a call of each for each copy of the weight, which are 4 times L2 together. A model's
    layers have weights of their own, too.
    """
    generator = torch.Generator(device).manual_seed(tokens)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, device=device, generator=generator)

    x = normal(tokens, hidden).bfloat16()
    copies = max(1, -(-COLD * l2_bytes // (4 * experts * hidden)))
    weights, wide = [normal(experts, hidden) * hidden**-0.5 for _ in range(copies)], x.float()
    ours: list[Run] = [partial(longcat_ops.router_gemm, x, w, split=longcat_ops.split_bf16x3(w)) for w in weights]
    theirs: list[Run] = [partial(F.linear, wide, w) for w in weights]
    off = (ours[0]() - theirs[0]()).abs() / (wide.abs() @ weights[0].abs().T)
    assert bool((off <= 2**-18).all()), f"router_gemm is {float(off.max()):.3g} of its products' sizes off torch's"
    return ours, theirs

"""MoE layers of HF transformers in odd configurations, and our ops over their weights."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor
from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashMoE

import longcat_ops
from longcat_ops import Routing, reference
from support import hf

# FFN experts, zero experts, choices, hidden size, width of an expert.
LAYERS = {
    "published_ratio": (64, 32, 12, 512, 128),
    "one_in_three": (16, 8, 4, 256, 64),
    "no_zero_experts": (8, 0, 2, 128, 64),
    "mostly_zero_experts": (4, 12, 8, 128, 64),
}


TOKENS, SCALE = 96, 6.0


OPS = pytest.mark.parametrize("ops", [longcat_ops, reference], ids=["ops", "reference"])


EVERY_LAYER = pytest.mark.parametrize("name", LAYERS)


@functools.cache
def layer_of(name: str, dtype: torch.dtype = torch.float32) -> LongcatFlashMoE:
    """A layer in `dtype` with a float32 router; logits have standard deviation 2, so that p matters beside the bias."""
    experts, zero, top_k, hidden, width = LAYERS[name]
    model, _ = hf.build(
        dtype=dtype, num_layers=1, n_routed_experts=experts, zero_expert_num=zero, moe_topk=top_k, hidden_size=hidden,
        expert_ffn_hidden_size=width, routed_scaling_factor=SCALE,
    )  # fmt: skip
    layer = model.model.layers[0].mlp.requires_grad_(False)
    layer.router.classifier.weight.mul_(4 / hidden**0.5)
    return layer


def tokens_of(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(TOKENS, LAYERS[name][3], generator=torch.Generator().manual_seed(5)).to(dtype)


def route(ops, name: str, layer: LongcatFlashMoE, x: Tensor) -> Routing:
    """Our router on HF's logits."""
    experts, zero, top_k, *_ = LAYERS[name]
    return ops.moe_route(
        layer.router(x)[0], layer.router.e_score_correction_bias, top_k=top_k, num_experts=experts + zero,
        num_zero_experts=zero, scale=SCALE,
    )  # fmt: skip


def weights_of(name: str, layer: LongcatFlashMoE) -> tuple[Tensor, Tensor]:
    """gate_up and down of the FFN experts; HF allocates gate_up rows for the zero experts too."""
    return layer.experts.gate_up_proj[: LAYERS[name][0]], layer.experts.down_proj

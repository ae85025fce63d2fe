"""Calls of the moe_route kernel in the host emulator, and checks of their results."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat_ops import Routing
from support.emulated_kernels import apart, run
from support.route_oracle import BIASES, assert_routed, batch, biases

SCALE = 6.0


def route(logits: Tensor, bias: Tensor, top_k: int, zero: int, num_valid: int | None = None,
          errors: int = 0) -> Routing:  # fmt: skip
    """The kernel's routing, in outputs that held FILLER."""
    tokens, experts = logits.shape
    got = Routing(
        ids=apart(tokens, top_k, torch.int32),
        weights=apart(tokens, top_k, torch.float32),
        zero_weight=apart(1, tokens, torch.float32)[0],
        num_real=apart(1, tokens, torch.uint8)[0],
        counts=apart(1, experts, torch.int32)[0],
        errors=torch.tensor([errors], dtype=torch.int32),
    )
    valid = None if num_valid is None else torch.tensor([num_valid], dtype=torch.int32)
    run("moe_route", logits, bias, valid, top_k, experts, zero, SCALE, *got)
    return got


def check(tokens: int, experts: int, zero: int, top_k: int, seed: int) -> None:
    logits, _ = batch(tokens, experts, zero, seed)
    bias = biases(BIASES[seed % len(BIASES)], experts)
    got = route(logits, bias, top_k, zero)
    assert_routed(got, logits, bias, top_k=top_k, zero=zero, scale=SCALE)

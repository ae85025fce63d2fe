"""moe_route, moe_plan, moe_permute_quant and moe_combine inside a CUDA graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import longcat_ops
from build_oracle import assert_same_bits
from test_moe_chain import EXPERTS, REAL, SCALE, ZERO, K, problem


@pytest.mark.gpu
def test_a_graph_replays_with_other_routing() -> None:
    """Captured once; then x and logits change in place."""
    x, logits, bias, num_valid = (t.cuda() for t in problem(33, 576))

    def chain() -> tuple[Tensor, Tensor]:
        routing = longcat_ops.moe_route(
            logits, bias, top_k=K, num_experts=EXPERTS, num_zero_experts=ZERO, scale=SCALE, num_valid=num_valid
        )
        plan = longcat_ops.moe_plan(routing.ids, REAL)
        y = longcat_ops.dequant_fp8(*longcat_ops.moe_permute_quant(x, plan), torch.bfloat16)
        return longcat_ops.moe_combine(y, plan, routing, x), plan.offsets

    chain()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = chain()
    for seed in range(100):
        g = torch.Generator().manual_seed(seed)
        x.copy_(torch.randn(x.shape, generator=g))
        logits.copy_(torch.randn(logits.shape, generator=g))
        num_valid.fill_(seed % 34)
        graph.replay()
        torch.cuda.synchronize()
        for ours, eager in zip(captured, chain(), strict=True):
            assert_same_bits(ours.cpu(), eager.cpu())

"""The routing chain, and the whole FP8 expert chain, inside a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import Tensor

import longcat_ops
from longcat_ops import Routing
from longcat_ops.testing.op_cases import gate_up as random_gate_up
from longcat_ops.testing.op_cases import stacked_weight
from support.build_oracle import assert_same_bits
from support.routing_chain import EXPERTS, REAL, SCALE, ZERO, K, problem

T = TypeVar("T")
Tensors = tuple[Tensor, Tensor]


def assert_replays(chain: Callable[[], Tensors], eager: Callable[[], Tensors], x: Tensor, logits: Tensor,
                   num_valid: Tensor) -> None:  # fmt: skip
    """`chain`, captured once, has the bits of `eager` in 100 replays while its inputs change in place."""
    chain()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = chain()
    for seed in range(100):
        g = torch.Generator().manual_seed(seed)
        x.copy_(torch.randn(x.shape, generator=g))
        logits.copy_(torch.randn(logits.shape, generator=g))
        num_valid.fill_(seed % (len(x) + 1))
        graph.replay()
        torch.cuda.synchronize()
        for ours, expected in zip(captured, eager(), strict=True):
            assert_same_bits(ours.cpu(), expected.cpu())


@pytest.mark.gpu
@pytest.mark.parametrize("quantised", [False, True])
def test_a_graph_replays_with_other_routing(quantised: bool) -> None:
    """One capture has the eager bits after x, logits and num_valid change in place."""
    x, logits, bias, num_valid = (t.cuda() for t in problem(33, 576))

    def chain() -> Tensors:
        routing = longcat_ops.moe_route(
            logits, bias, top_k=K, num_experts=EXPERTS, num_zero_experts=ZERO, scale=SCALE, num_valid=num_valid
        )
        plan = longcat_ops.moe_plan(routing.ids, REAL, routing.weights)
        y = (
            longcat_ops.dequant_fp8(*longcat_ops.moe_permute_quant(x, plan), torch.bfloat16)
            if quantised
            else longcat_ops.moe_permute(x, plan)
        )
        return longcat_ops.moe_combine(y, plan, routing, x), plan.offsets

    assert_replays(chain, chain, x, logits, num_valid)


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "planned"), [(1, False), (33, True), (200, False), (700, False)])
def test_the_fp8_experts_replay_with_other_routing(tokens: int, planned: bool) -> None:
    """One capture of moe_route and fused_moe has the bits of single launches after its inputs change in place."""
    x, logits, bias, num_valid = (t.cuda() for t in problem(max(tokens, 4), 576))
    x, logits = x[:tokens].contiguous(), logits[:tokens].contiguous()
    gate_up = longcat_ops.interleave_gate_up(*(t.cuda() for t in random_gate_up(REAL, 160, 576)))
    down = tuple(t.cuda() for t in stacked_weight(REAL, 576, 160))

    def route() -> Routing:
        return longcat_ops.moe_route(
            logits, bias, top_k=K, num_experts=EXPERTS, num_zero_experts=ZERO, scale=SCALE, num_valid=num_valid
        )

    def chain() -> Tensors:
        routing = route()
        plan = longcat_ops.moe_plan(routing.ids, REAL, routing.weights) if planned else None
        return longcat_ops.fused_moe(x, routing, gate_up, down, plan=plan), routing.ids

    def one_by_one() -> Tensors:
        """Each kernel ends before the next is launched, and counts are never read early."""

        def ended(result: T) -> T:
            torch.cuda.synchronize()
            return result

        routing = ended(route())
        plan = ended(longcat_ops.moe_plan(routing.ids, REAL, routing.weights))
        rows = ended(longcat_ops.moe_permute_quant(x, plan))
        h = ended(longcat_ops.m_grouped_fp8_swiglu_gemm_nt_offset(rows, gate_up, plan.offsets))
        y = x.new_empty(len(plan.src_of), x.shape[1])
        ended(longcat_ops.m_grouped_fp8_gemm_nt_offset(h, down, y, plan.offsets))
        return longcat_ops.moe_combine(y, plan, routing, x), routing.ids

    assert_replays(chain, one_by_one, x, logits, num_valid)

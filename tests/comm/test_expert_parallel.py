"""Expert parallelism over gloo: the bits of one rank with all experts, for every routing; what it counts; what it
refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import longcat_ops
from longcat_ops import ops
from longcat_ops.comm import ExpertParallel
from longcat_ops.engine import step_graph
from longcat_ops.errors import LongcatCommError, LongcatUnsupportedError
from longcat_ops.reference.experts import products
from longcat_ops.testing.op_results import bits
from support import ep_cases
from support.comm_ranks import Keeper, Ranks
from support.ep_cases import SHAPES, Shape

SLOW = pytest.mark.slow
TINY = str(Path(__file__).parents[2] / "checkpoints" / "longcat-tiny")
WORLDS = (2, 3, pytest.param(4, marks=SLOW))


@pytest.mark.parametrize("ranks", WORLDS)
@pytest.mark.parametrize("payload", ["fp8", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values(keeper: Keeper, ranks: int, payload: str, shape: str) -> None:
    for wrong in Ranks(keeper, ranks, "gloo").run("ep_jobs.values", shape=shape, payload=payload):
        assert wrong == []


@pytest.mark.parametrize("payload", ["fp8", "bf16"])
def test_one_rank_by_the_name_of_a_backend(keeper: Keeper, payload: str) -> None:
    assert Ranks(keeper, 1, "gloo").run("ep_jobs.alone", payload=payload) == [True]


@pytest.mark.parametrize("ranks", WORLDS)
def test_two_layers_in_flight(keeper: Keeper, ranks: int) -> None:
    for wrong in Ranks(keeper, ranks, "gloo").run("ep_jobs.in_flight"):
        assert wrong == []


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=SLOW)])
@pytest.mark.parametrize("precision", ["fp8", "bf16"])
def test_layers_of_the_tiny_checkpoint(keeper: Keeper, ranks: int, precision: str) -> None:
    for wrong in Ranks(keeper, ranks, "gloo").run("ep_jobs.checkpoint", folder=TINY, precision=precision):
        assert wrong == []


@pytest.mark.parametrize("payload", ["bf16", "fp8"])
def test_opcheck(keeper: Keeper, payload: str) -> None:
    for found in Ranks(keeper, 2, "gloo").run("ep_jobs.opchecks", payload=payload):
        assert set(found) == {"dispatch_send", "dispatch_recv", "combine_send", "combine_recv"}
        assert all(results == (["SUCCESS"], []) for results in found.values()), found


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=SLOW)])
def test_one_graph(keeper: Keeper, ranks: int, compiler: str) -> None:
    for same in Ranks(keeper, ranks, "gloo").run("ep_jobs.compiled", compiler=compiler):
        assert same == [True] * 4


@pytest.mark.parametrize("payload", ["fp8", "bf16"])
def test_one_rank_reads_nothing_on_the_host(payload: str) -> None:
    """A layer is captured, which refuses reads and foreign ops, and replayed with other tokens."""
    shape = Shape()
    gate_up, down = ep_cases.weights(shape, payload)
    ep = ExpertParallel(num_ffn_experts=shape.experts, top_k=shape.top_k, hidden=shape.hidden, payload=payload)
    cases = [ep_cases.inputs("extremes", shape, 1, seed)[0] for seed in range(4)]

    def layer(x: Tensor, ids: Tensor, weights: Tensor, zero_weight: Tensor) -> Tensor:
        routing = cases[0][1]._replace(ids=ids, weights=weights, zero_weight=zero_weight)
        return ep.fused_moe(x, routing, gate_up, down, add=x)

    graph = None
    for x, routing in cases:
        inputs = (x, routing.ids, routing.weights, routing.zero_weight)
        graph = graph or step_graph.capture(layer, *(t.clone() for t in inputs))
        plan = longcat_ops.moe_plan(routing.ids, shape.experts, routing.weights)
        rows = longcat_ops.moe_permute_quant(x, plan) if payload == "fp8" else longcat_ops.moe_permute(x, plan)
        y = torch.empty(len(plan.src_of), shape.hidden, dtype=torch.bfloat16)
        products((ops.moe, ops.gemm, ops.bf16_gemm), rows, plan.offsets, gate_up, down, y)
        right = longcat_ops.moe_combine(y, plan, routing, x, x)
        assert bits(graph.replay(*inputs)) == bits(right)


def test_alone_without_a_process_group() -> None:
    ep = ExpertParallel(num_ffn_experts=12, top_k=5, hidden=64)
    assert (ep.rank, ep.ranks, ep.backend, ep.caps.host_reads, ep.caps.graphs) == (0, 1, "local", 0, True)
    assert ep.why_not == dict.fromkeys(("nvl", "torch", "deepep"), "one rank has all experts")
    assert set(ep.counts().values()) == {0}
    ep.abort("enough")
    with pytest.raises(LongcatCommError, match=r"poisoned. abort\(\) was called on rank 0: enough"):
        ep.check()
    ep.close()
    with pytest.raises(LongcatUnsupportedError, match="group"):
        ExpertParallel(num_ffn_experts=12, top_k=5, hidden=64, backend="torch")

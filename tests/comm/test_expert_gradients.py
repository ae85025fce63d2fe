"""Gradients through expert parallelism over gloo: dispatch and combine are each other's transpose, and a training layer
has the bits of one rank with all experts, for ranks without tokens and tokens without experts, too."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import longcat_ops
from longcat_ops.comm import ExpertParallel, row_calls
from longcat_ops.errors import LongcatCommError, LongcatUnsupportedError
from longcat_ops.testing.op_results import bits
from longcat_ops.training import functional
from support import ep_cases, ep_gradient_jobs
from support.comm_ranks import Keeper, Ranks
from support.ep_cases import Shape
from support.ep_gradient_jobs import gradients

SLOW = pytest.mark.slow
BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64
WORLDS = [(1, BF16), (2, BF16), (3, BF16), (2, F64), (3, F32), *(
    pytest.param(4, dtype, marks=SLOW) for dtype in (BF16, F32, F64)
)]  # fmt: skip


def gloo(keeper: Keeper, ranks: int) -> Ranks:
    return Ranks(keeper, ranks, "gloo")


@pytest.mark.parametrize(("ranks", "dtype"), WORLDS, ids=str)
def test_bits_of_one_rank(keeper: Keeper, ranks: int, dtype: torch.dtype) -> None:
    for wrong in gloo(keeper, ranks).run("ep_gradient_jobs.values", dtype=dtype):
        assert wrong == []


@pytest.mark.parametrize("ranks", [2, 3])
def test_there_and_back_are_transposes(keeper: Keeper, ranks: int) -> None:
    shares = gloo(keeper, ranks).run("ep_gradient_jobs.transposes")
    there, back = (sum(share[i] for share in shares) for i in range(2))
    assert there == back != 0
    assert all(same for *_, same in shares)


@pytest.mark.parametrize("ranks", [2, 3])
def test_bf16_beside_fp64(keeper: Keeper, ranks: int) -> None:
    for wrong in gloo(keeper, ranks).run("ep_gradient_jobs.against_fp64"):
        assert wrong == []


def test_some_arguments_need_no_gradient(keeper: Keeper) -> None:
    assert gloo(keeper, 2).run("ep_gradient_jobs.frozen") == [[True] * 2] * 2


def test_fp8_forward(keeper: Keeper) -> None:
    assert gloo(keeper, 2).run("ep_gradient_jobs.straight_through") == [[True] * 5] * 2


def test_a_rank_without_a_backward_is_named(keeper: Keeper) -> None:
    found = gloo(keeper, 3).run("ep_gradient_jobs.absent_backward", bad=1)
    for rank in (0, 2):
        assert (found[rank]["kind"], found[rank]["missing"]) == ("LongcatTimeoutError", (1,)), found[rank]
        assert "back" in found[rank]["text"] or "forth" in found[rank]["text"]


def test_what_one_rank_gets_wrong_reaches_all(keeper: Keeper) -> None:
    expected = (
        "`plan` is of 9 tokens, expected at most 5, max_tokens.",
        "`rows` is of shape [25, 32], expected [.., 64], hidden columns.",
        "`x` is of 4 tokens, expected 5, as the dispatch.",
    )
    for rank, texts in enumerate(gloo(keeper, 2).run("ep_gradient_jobs.refused", bad=1)):
        for text, start in zip(texts, expected, strict=True):
            assert start in text, text
            assert ("rank 1" in text) == (rank == 0), text


def test_alone_without_a_process_group() -> None:
    """The backend `local` moves nothing and reads nothing: the bits of the pieces on one rank."""
    shape = Shape()
    x, routing = ep_cases.inputs("extremes", shape, 1)[0]
    weights = ep_cases.weights(shape, "bf16")
    ep = ExpertParallel(num_ffn_experts=shape.experts, top_k=shape.top_k, hidden=shape.hidden)
    assert (ep.backend, ep.num_ffn_experts) == ("local", shape.experts)
    found = gradients(lambda x, *rest: functional.fused_moe_over(ep, x, *rest, add=2 * x), x, routing, *weights, x)
    right = gradients(ep_gradient_jobs.alone, x, routing, *weights, x)
    assert {name: bits(t) for name, t in found.items()} == {name: bits(t) for name, t in right.items()}
    ep.close()
    with pytest.raises(LongcatCommError, match="closed"):
        functional.dispatch(ep, x, routing)


def test_backends_that_move_no_rows() -> None:
    way = SimpleNamespace(caps=SimpleNamespace(backend="nvl"))
    plan = longcat_ops.moe_plan(torch.zeros(1, 1, dtype=torch.int32), 2)
    with pytest.raises(LongcatUnsupportedError, match="routes: argument `backend` is nvl, expected local or torch"):
        row_calls.routes(SimpleNamespace(), way, plan, [])

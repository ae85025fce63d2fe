"""The benches of the FP8 expert chain and of a layer, without a GPU: the timed chains agree, and a layer decodes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from chains import bench_fused_moe, bench_layer
from longcat_ops.perf.chain import Share
from peers import deep_gemm, torch_eager
from support.fake_deep_gemm import DeepGemm
from support.models import config


@pytest.fixture
def small() -> Share:
    """16 experts of 256 x 128, 4 of them on a rank."""
    return Share(5, 4, experts=16, hidden=256, width=128)


def test_the_chains_run(small: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    """The problem's counts are those of its plan; all chains agree, and a chain with a changed weight is caught."""
    monkeypatch.setattr(deep_gemm, "module", DeepGemm)
    problem = bench_fused_moe.Problem(small, "cpu")
    assert torch.equal(problem.plan.offsets.diff(), problem.counts)
    assert problem.counts.sum() != small.rows  # small.rows is an expectation; every row that arrived counts
    expected = bench_fused_moe.fused(problem)()
    assert expected.shape == problem.x.shape and expected.isfinite().all()
    runs = {"unfused": bench_fused_moe.unfused(problem)}
    for peer in (*deep_gemm.PEERS, torch_eager.PEER):
        runs[peer.name] = bench_fused_moe.chain_of(dataclasses.replace(peer, available=lambda: None), problem)
    assert runs.keys() <= bench_fused_moe.CHAINS.keys()
    for name, run in runs.items():
        assert bench_fused_moe.disagreement(run(), expected) is None, name
    problem.down[1].mul_(2)
    assert "computes something else" in bench_fused_moe.disagreement(runs["unfused"](), expected)


def test_a_chain_that_cannot_run_is_a_reason(small: Share) -> None:
    problem = bench_fused_moe.Problem(small, "cpu")
    absent = dataclasses.replace(torch_eager.PEER, available=lambda: "needs a GPU")
    assert bench_fused_moe.chain_of(absent, problem) == "needs a GPU"


def test_the_layer_decodes() -> None:
    """Two sequences, each with 70 cached rows, decode one step."""
    out = bench_layer.step(2, "cpu", config(hidden_size=128, num_layers=1), context=70)()
    assert out.shape == (2, 128) and out.isfinite().all()

"""The bench of the FP8 expert chain without a GPU: its model against counting, the page's table, the chains timed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import bench_fused_moe
import bench_layer
import chain_model
from chain_model import EXPERTS, REAL, Share
from peers import deep_gemm, torch_eager
from support.fake_deep_gemm import DeepGemm
from support.models import config

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_has_the_tables_that_the_model_makes() -> None:
    page = (ROOT / "docs" / "fused_moe.md").read_text(encoding="utf-8")
    for module in (chain_model, bench_layer):
        assert f"{module.BEGIN}\n{module.table()}\n{module.END}" in page
        assert chain_model.renewed(page, module.BEGIN, module.END, module.table()) == page


@pytest.mark.parametrize(("tokens", "ranks"), [(8, 8), (1, 128)])
def test_expected_counts_are_those_of_random_choices(tokens: int, ranks: int) -> None:
    """Within 5 standard errors of 200 draws."""
    share, generator = Share(tokens, ranks), torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(200):
        ids = torch.rand(tokens * ranks, EXPERTS, generator=generator).argsort(1)[:, :REAL]
        here = ids < share.groups
        drawn.append((float(here.sum()), float(here.any(1).sum()), float(len(ids[here].unique()))))
    found = torch.tensor(drawn, dtype=torch.float64)
    expected = torch.tensor([share.rows, share.received, share.active], dtype=torch.float64)
    assert bool(((found.mean(0) - expected).abs() <= 5 * found.std(0) / 200**0.5).all())


def test_bytes_of_one_token() -> None:
    """8 experts of one row each, by hand."""
    quant, gate_up, down, combine = Share(1, 1).kernels(True)
    assert gate_up.bytes == 8 * (4096 * 6144 + 32 * 48 * 4 + 6144 + 48 * 4 + 2048 + 16 * 4)
    assert down.bytes == 8 * (6144 * 2048 + 48 * 16 * 4 + 2048 + 16 * 4 + 2 * 6144)
    assert quant.bytes == 2 * 6144 + 12 * 4 + 8 * (4 + 6144 + 48 * 4)
    assert combine.bytes == 2 * 2 * 6144 + 8 * 2 * 6144 + 2 * 12 * 4 + 4
    padded = Share(1, 1).kernels(False)
    assert len(padded) == 5
    assert padded[3].bytes - down.bytes == 8 * 63 * (2048 + 16 * 4 + 2 * 6144)
    assert Share(192, 128).padded_rows(128) == 4 * 384


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Share:
    """16 experts, of which a rank has 4, of 256 x 128."""
    for module in (bench_fused_moe, chain_model):
        for name, value in (("HIDDEN", 256), ("WIDTH", 128), ("EXPERTS", 16)):
            monkeypatch.setattr(module, name, value)
    return Share(5, 4)


def test_the_chains_run(small: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    """The problem's counts are those of its plan; the chains agree, one with another weight does not."""
    monkeypatch.setattr(deep_gemm, "module", DeepGemm)
    problem = bench_fused_moe.Problem(small, "cpu")
    assert torch.equal(problem.plan.offsets.diff(), problem.counts)
    assert problem.counts.sum() != small.rows  # an expectation: none of the rows that came may be left out
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


def test_the_layer_decodes_and_its_parts_add_up() -> None:
    """Two sequences behind 70 rows each. Most bytes of a layer are weights: those of one token, by hand."""
    out = bench_layer.step(2, "cpu", config(hidden_size=128, num_layers=1), context=70)()
    assert out.shape == (2, 128) and out.isfinite().all()
    linear = 2 * (1536 * 6144 + 12288 * 1536 + 640 * 6144 + 6144 * 8192 + 3 * 12288 * 6144)
    absorbed, experts, pages = 2 * 4 * 64 * 512 * 256, 8 * 3 * 2048 * 6144, 2 * 1024 * 576 * 2
    router = 4 * 768 * 6144
    found = bench_layer.predicted(1)
    assert 1 < found["bytes"] / (linear + absorbed + experts + pages + router) < 1.01
    assert found["us"] == sum(found[f"{part} us"] for part in ("attention", "dense FFN", "MoE"))

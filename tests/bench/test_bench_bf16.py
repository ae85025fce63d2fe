"""The bench of the bf16 products without a GPU: its cells, its peers, what it refuses to time. Our reference, called in
DeepGEMM's layouts, stands in for it; torch's products are its own, on the CPU; CUDA graphs and clocks are faked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from peers import BF16_DENSE, BF16_GROUPED, BF16_OURS, BF16_SPLITS, Peer, deep_gemm
from products import bench_bf16_gemm, bf16_gemm_problem
from products.bf16_gemm_problem import DENSE, GROUPED, Cell, Problem
from report import devices
from support.fake_deep_gemm import DeepGemm
from support.fake_gpu import NAME, install

CELLS = [Cell("tiny", 3, 5), Cell("tiny", 6, 1, skewed=True), Cell("tiny", 2, 130)]
DENSE_CELLS = [Cell("narrow", 1, 1), Cell("narrow", 1, 9)]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("tiny", (256, 384)), ("narrow", (136, 192))):
        monkeypatch.setitem(bf16_gemm_problem.SHAPES, name, size)
    monkeypatch.setitem(bf16_gemm_problem.DENSE, "narrow", (136, 192))


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep_gemm, "module", DeepGemm)


def problem(cell: Cell) -> Problem:
    return Problem(cell, "cpu", l2_bytes=cell.bytes // 3)  # two copies


def result(peer: Peer, cell: Cell) -> str | None:
    """What is wrong with a peer's second call as that of the second copy, or None."""
    made = problem(cell)
    calls = peer.prepare(made)
    assert len(calls) == len(made.copies) == 2
    for call in calls:
        call.run()
    for out in calls[1].outs:
        out.fill_(torch.nan)
    calls[1].run()
    assert calls[1].rows().dtype == torch.bfloat16
    made.copies.reverse()
    return made.disagreement(calls[1].rows(), peer.rounding)


def test_the_cells() -> None:
    full, short = (bench_bf16_gemm.cells(grid) for grid in ("full", "short"))
    assert (len(full), len(short)) == (48 + 8 + len(DENSE) * 6, 18 + 2 + len(DENSE) * 3)
    assert len(set(map(str, full))) == len(full) and set(map(str, short)) <= set(map(str, full))
    assert {cell.shape for cell in short} == {*GROUPED, *DENSE} and all(cell.rows for cell in full)
    assert [str(c) for c in (Cell("q_a", 1, 8), Cell("down", 4, 8, skewed=True))] == ["q_a-m8", "down-G4-m8-skewed"]


def test_the_registry() -> None:
    for peers in (BF16_DENSE, BF16_GROUPED):
        names = [peer.name for peer in (BF16_OURS, *BF16_SPLITS, *peers)]
        assert len(names) == len(set(names))
        if not torch.cuda.is_available():
            assert {peer.available() for peer in (BF16_OURS, *BF16_SPLITS, *peers)} == {"needs a GPU"}


@pytest.mark.parametrize(
    "cell", [Cell("gate_up", 4, 8), Cell("down", 64, 256), Cell("kv_a", 1, 2), Cell("head", 1, 64)], ids=str
)
def test_bytes_flops_and_floors_are_those_of_explain(cell: Cell) -> None:
    found = bench_bf16_gemm.explained(cell)
    assert (cell.bytes, cell.flops) == (found.bytes_read + found.bytes_written, found.flops)
    for floor in found.floors:
        peaks = devices.known(floor.device)
        seconds = max(cell.bytes / peaks.memory.value, cell.flops / peaks.bf16.value)
        assert floor.microseconds == pytest.approx(1e6 * seconds)


def test_bytes_of_experts_without_rows_do_not_count() -> None:
    """Five of six experts have rows, ten in all."""
    cell = Cell("tiny", 6, 1, skewed=True)
    assert cell.counts == [2, 2, 1, 0, 3, 2]
    assert cell.bytes == 2 * (5 * 256 * 384 + 10 * (256 + 384)) + 4 * 7


@pytest.mark.parametrize("cell", [*CELLS, *DENSE_CELLS], ids=str)
def test_peers_and_our_ops_compute_what_is_expected(cell: Cell) -> None:
    own = bench_bf16_gemm.own(cell)
    assert (BF16_SPLITS[0] in own) == (cell.groups <= 2)
    peers = bench_bf16_gemm.peers_of(cell)
    assert len(peers) == (2 if cell.dense else 3)
    for peer in [*own, *peers]:
        assert result(peer, cell) is None, peer.name


@pytest.mark.parametrize("cell", [CELLS[0], DENSE_CELLS[1]], ids=str)
def test_a_wrong_peer_is_found(cell: Cell) -> None:
    """Operands of another copy, one weight that is a hundredth off, and a missing row are each reported."""
    made = problem(cell)
    value, _ = made.expected
    good = value.bfloat16()
    assert made.disagreement(good) is None
    made.copies.reverse()
    del made.expected
    assert "computes something else" in made.disagreement(good)
    made.copies.reverse()
    made.copies[0].w[0, 7] *= 1.01
    del made.expected
    assert f"of {value.numel()} values" in made.disagreement(good)
    missing = value.bfloat16()
    missing[4] = torch.nan
    assert f"{made.n} of {value.numel()} values, the worst inf" in problem(cell).disagreement(missing)
    assert "computes something else" in problem(cell).disagreement(good[:-1])


def timed(peer: Peer, prepare: Callable | None = None) -> Peer:
    return replace(peer, available=lambda: None, prepare=prepare or peer.prepare)


def swapped(made: Problem) -> list:
    """Writes one copy's product in the place of the other's."""
    return BF16_OURS.prepare(made)[::-1]


@pytest.mark.parametrize("cell", [Cell("tiny", 2, 8), Cell("narrow", 1, 8)], ids=str)
def test_rows_of_a_cell(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    monkeypatch.setattr(bench_bf16_gemm, "Problem", lambda cell, device, l2: problem(cell))
    monkeypatch.setattr(bench_bf16_gemm, "BF16_OURS", timed(BF16_OURS))
    monkeypatch.setattr(bench_bf16_gemm, "BF16_SPLITS", [timed(peer) for peer in BF16_SPLITS])
    peers = [timed(peer) for peer in bench_bf16_gemm.peers_of(cell)]
    wrong = timed(Peer("swapped", lambda: None, swapped))
    found = bench_bf16_gemm.measured(cell, [*peers, wrong], deadline=torch.inf)
    assert found["ceilings"] == {NAME: {"bytes_per_s": 3e12, "flops_per_s": 989e12}}
    *rows, last = found["rows"]
    assert [row["implementation"] for row in rows[:3]] == ["longcat_ops", *(peer.name for peer in BF16_SPLITS)]
    assert len(rows) == 3 + len(peers) and all(row["us"] == 50.0 for row in rows)
    assert all(row["flops_share"] == round(cell.flops / 50e-6 / 989e12, 4) for row in rows)
    assert last["reason"].startswith("computes something else") and "us" not in last

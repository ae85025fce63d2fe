"""The grouped FP8 GEMM at the model's sizes: gate_up [4096, 6144] and down [6144, 2048], G local experts of m tokens.

    python -m pytest bench/products/bench_moe_gemm.py [-k "down and G4-"] [--grid full] [--peers Triton]

How it measures, and what it predicts without a Hopper GPU: bench/products/measuring.py. Nothing here has been compared
with a GPU yet.

--benchmark-json=FILE keeps the rows, --predictions-json=FILE those of predictions, which are no benchmark.
bench/tables.py, bench/plots.py and bench/compare.py read both. On a GPU, the table that pytest-benchmark itself prints
shows how long each cell took to measure.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import longcat_ops
from longcat_ops.ops.explain import Explanation
from peers import OURS, PEERS, SPLITS, Peer
from products import measuring
from products.moe_gemm_problem import SHAPES, Cell, Problem
from report import Report

FULL = [1, 2, 4, 8, 16, 32, 64, 512], [1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256]  # groups, tokens
SHORT = [4, 16, 64, 1], [1, 8, 32, 64, 128, 256]
SKEWED = [16, 64], [8, 64]
FEW = 2  # up to so many experts, split_k may pay off


def cells(grid: str) -> list[Cell]:
    groups, tokens = FULL if grid == "full" else SHORT
    even = [Cell(shape, g, m) for shape in SHAPES for g in groups for m in tokens]
    return even + [Cell(shape, g, m, skewed=True) for shape in SHAPES for g in SKEWED[0] for m in SKEWED[1]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("cell", cells(measuring.grid_of(metafunc.config)), ids=str)


def own(cell: Cell) -> list[Peer]:
    return [OURS, *SPLITS] if cell.groups <= FEW else [OURS]


def measured(cell: Cell, peers: list[Peer], deadline: float) -> dict:
    return measuring.measured(cell, Problem, own(cell), peers, deadline)


def explained(cell: Cell) -> Explanation:
    (n, k), rows, blocks = cell.size, cell.rows, cell.size[1] // 128

    def meta(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta")

    lhs = meta(rows, k, dtype=torch.float8_e4m3fn), meta(rows, blocks)
    rhs = meta(cell.groups, n, k, dtype=torch.float8_e4m3fn), meta(cell.groups, n // 128, blocks)
    out, offsets = meta(rows, n, dtype=torch.bfloat16), meta(cell.groups + 1, dtype=torch.int32)
    return longcat_ops.explain("m_grouped_fp8_gemm_nt_offset", lhs, rhs, out, offsets, max_m_hint=cell.tokens)


def predicted(cell: Cell, peers: list[Peer]) -> dict:
    return measuring.predicted(cell, () if cell.skewed else explained(cell).candidates, OURS.name, peers)


def test_against_the_floor(
    cell: Cell, wanted: Callable[[list[Peer]], list[Peer]], deadline: float, report: Report
) -> None:
    peers = wanted(PEERS)
    measuring.reported(report, cell, own(cell), lambda: measured(cell, peers, deadline), lambda: predicted(cell, peers))

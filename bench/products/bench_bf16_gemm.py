"""The bf16 products at the model's sizes, grouped and dense.

    python -m pytest bench/products/bench_bf16_gemm.py [-k "q_a or kv_a"] [--grid full] [--peers torch]

Grouped: gate_up [4096, 6144] and down [6144, 2048] of G experts of m tokens. Dense: LongCat-Flash's projections
(`bf16_gemm_problem.DENSE`), m tokens. How it measures, and what it predicts without a Hopper GPU:
bench/products/measuring.py. Nothing here has been compared with a GPU yet.

--benchmark-json=FILE keeps the rows, --predictions-json=FILE those of predictions, which are no benchmark.
bench/tables.py, bench/plots.py and bench/compare.py read both.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import longcat_ops
from longcat_ops.ops.explain import Explanation
from peers import BF16_DENSE, BF16_GROUPED, BF16_OURS, BF16_SPLITS, Peer
from products import measuring
from products.bf16_gemm_problem import DENSE, GROUPED, Cell, Problem
from report import Report

GROUPS, TOKENS, DENSE_TOKENS = [1, 4, 16, 64], [1, 8, 32, 64, 128, 256], [1, 2, 4, 8, 64, 256]
SKEWED = [16, 64], [8, 64]  # groups, tokens
SHORT_GROUPS, SHORT_TOKENS, SHORT_DENSE_TOKENS = [4, 16, 64], [8, 64, 256], [1, 8, 64]
SHORT_SKEWED = [16], [8]
FEW = 2  # up to so many experts, split_k may pay off


def cells(grid: str) -> list[Cell]:
    full = grid == "full"
    groups, tokens = (GROUPS, TOKENS) if full else (SHORT_GROUPS, SHORT_TOKENS)
    skewed, few = SKEWED if full else SHORT_SKEWED
    dense = [Cell(shape, 1, m) for shape in DENSE for m in (DENSE_TOKENS if full else SHORT_DENSE_TOKENS)]
    even = [Cell(shape, g, m) for shape in GROUPED for g in groups for m in tokens]
    return dense + even + [Cell(shape, g, m, skewed=True) for shape in GROUPED for g in skewed for m in few]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("cell", cells(measuring.grid_of(metafunc.config)), ids=str)


def own(cell: Cell) -> list[Peer]:
    return [BF16_OURS, *BF16_SPLITS] if cell.groups <= FEW else [BF16_OURS]


def peers_of(cell: Cell) -> list[Peer]:
    return BF16_DENSE if cell.dense else BF16_GROUPED


def measured(cell: Cell, peers: list[Peer], deadline: float) -> dict:
    return measuring.measured(cell, Problem, own(cell), peers, deadline)


def explained(cell: Cell) -> Explanation:
    (n, k), rows = cell.size, cell.rows

    def meta(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta")

    if cell.dense:
        return longcat_ops.explain("bf16_gemm_nt", meta(rows, k), meta(n, k), meta(rows, n))
    weights, offsets = meta(cell.groups, n, k), meta(cell.groups + 1, dtype=torch.int32)
    operands = meta(rows, k), weights, meta(rows, n), offsets
    return longcat_ops.explain("m_grouped_bf16_gemm_nt_offset", *operands, max_m_hint=cell.tokens)


def predicted(cell: Cell, peers: list[Peer]) -> dict:
    return measuring.predicted(cell, () if cell.skewed else explained(cell).candidates, BF16_OURS.name, peers)


def test_against_the_floor(
    cell: Cell, wanted: Callable[[list[Peer]], list[Peer]], deadline: float, report: Report
) -> None:
    peers = wanted(peers_of(cell))
    measuring.reported(report, cell, own(cell), lambda: measured(cell, peers, deadline), lambda: predicted(cell, peers))

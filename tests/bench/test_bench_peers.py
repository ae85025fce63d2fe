"""The peers of the grouped FP8 GEMM compute the expected product, and one that does not is caught. Everything runs on
CPU tensors: our reference, called in each library's layouts, stands in for the libraries that need a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import longcat_ops
from peers import OURS, PEERS, deep_gemm, ours, scaled_mm, torch_eager
from products import bench_moe_gemm, moe_gemm_problem
from products.moe_gemm_problem import Cell, Problem
from support.fake_deep_gemm import DeepGemm

ROOT = Path(__file__).resolve().parents[2]
CELLS = [Cell("tiny", 3, 5), Cell("tiny", 6, 1, skewed=True), Cell("tiny", 2, 130)]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(moe_gemm_problem.SHAPES, "tiny", (256, 384))


def problem(cell: Cell) -> Problem:
    return Problem(cell, "cpu", l2_bytes=cell.bytes // 3)  # two copies


def result(prepare: Callable, cell: Cell, rounding: float = 0.0) -> str | None:
    """What is wrong with a peer's first call, or None; its outputs are filled with NaN beforehand."""
    made = problem(cell)
    calls = prepare(made)
    assert len(calls) == len(made.copies) == 2
    for out in calls[0].outs:
        out.fill_(torch.nan)
    calls[0].run()
    assert calls[0].rows().dtype == torch.bfloat16
    return made.disagreement(calls[0].rows(), rounding)


def test_the_registry() -> None:
    names = [peer.name for peer in [OURS, *PEERS]]
    assert len(names) == len(set(names)) == 7
    if not torch.cuda.is_available():
        assert {peer.available() for peer in [OURS, *PEERS]} == {"needs a GPU"}


def test_skewed_cells_have_empty_experts() -> None:
    assert Cell("tiny", 6, 1, skewed=True).counts == [2, 2, 1, 0, 3, 2]
    assert all(cell.rows for cell in bench_moe_gemm.cells("full"))


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_our_op_and_plain_torch_agree_with_what_is_expected(cell: Cell) -> None:
    assert result(ours.prepare, cell) is None
    assert result(torch_eager.prepare, cell, torch_eager.PEER.rounding) is None


def test_who_computes_something_else_is_found() -> None:
    """One wrong scale of 2 x 2 x 3, a missing row and a row of NaN are each reported."""
    cell = Cell("tiny", 2, 3)
    made = problem(cell)
    value, _ = made.expected
    good = value.bfloat16()
    assert made.disagreement(good) is None
    made.copies[0].ws[1, 1, 2] *= 1.5
    del made.expected
    assert "of 1536 values" in made.disagreement(good)
    assert "[5, 256] for [6, 256]" in made.disagreement(good[:5])
    missing = value.bfloat16()
    missing[4] = torch.nan
    assert "computes something else: 256 of 1536 values, the worst inf" in Problem(cell, "cpu").disagreement(missing)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_layouts_of_deep_gemm(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    library = DeepGemm()
    monkeypatch.setattr(deep_gemm, "module", lambda: library)
    for peer in deep_gemm.PEERS:
        assert result(peer.prepare, cell) is None, peer.name
    assert library.used == [132, 131] and library.sms == 132  # an odd number of SMs forms no pairs


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_layouts_of_scaled_mm(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    def product(a: Tensor, b: Tensor, sa: Tensor, ra: object, sb: Tensor, rb: object, *, output_dtype: torch.dtype):
        (m, k), n = a.shape, b.shape[1]
        assert (ra, rb) == (F.ScalingType.BlockWise1x128, F.ScalingType.BlockWise128x128)
        assert m % 4 == 0 and b.stride() == (1, k)
        assert (sa.shape, sa.stride()) == ((m, k // 128), (1, m))
        assert (sb.shape, sb.stride()) == ((-(-k // 512) * 4, n // 128), (1, -(-k // 512) * 4))
        scales = sb.T[:, : k // 128].contiguous()
        return longcat_ops.fp8_gemm_nt((a, sa.contiguous()), (b.T, scales)).to(output_dtype)

    monkeypatch.setattr(F, "scaled_mm", product)
    assert result(scaled_mm.prepare, cell) is None


INTERPRETED = """
import sys, torch
sys.path.insert(0, "bench")
from products import moe_gemm_problem
from peers import triton_grouped
moe_gemm_problem.SHAPES["tiny"] = 256, 384
for groups, tokens, skewed in [(6, 1, True), (1, 33, False), (2, 130, False)]:
    made = moe_gemm_problem.Problem(moe_gemm_problem.Cell("tiny", groups, tokens, skewed), "cpu")
    out = torch.full((made.cell.rows, 256), torch.nan)
    triton_grouped.grouped_gemm(made.copies[0], out, made.offsets, max(made.counts))
    torch.testing.assert_close(out, made.expected[0], rtol=0, atol=1e-6 * float(made.expected[1].max()))
"""


def test_the_triton_kernel_in_its_interpreter() -> None:
    """The Triton kernel agrees in float32 (the interpreter truncates to bf16 instead of rounding)."""
    pytest.importorskip("triton", reason="triton is not installed; torch for CUDA brings it")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", INTERPRETED]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

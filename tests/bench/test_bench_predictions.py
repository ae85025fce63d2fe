"""Benches without a GPU print and store predictions as predictions; nothing that did not run gets a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tables
from longcat_ops.perf.chain import shares
from peers import PEERS
from products import bench_bf16_gemm, bench_moe_gemm
from products.bf16_gemm_problem import Cell as Bf16Cell
from products.moe_gemm_problem import Cell
from support.pytests import run_pytest

ROOT = Path(__file__).resolve().parents[2]


def without_a_gpu(tmp_path: Path, *selection: str) -> tuple[str, str, dict]:
    """stdout, the text of --benchmark-json and the content of --predictions-json of a bench that sees no GPU."""
    measured, predicted = tmp_path / "measured.json", tmp_path / "predicted.json"
    files = f"--benchmark-json={measured}", f"--predictions-json={predicted}"
    done = run_pytest(*selection, *files, "--grid=full", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, measured.read_text() if measured.exists() else "", json.loads(predicted.read_text())


def test_the_prediction_of_bf16_cells(tmp_path: Path) -> None:
    """A grouped cell and a dense one; of uneven experts there is none."""
    bench = "bench/products/bench_bf16_gemm.py::test_against_the_floor"
    names = "gate_up-G4-m8", "kv_a-m2", "down-G16-m8-skewed"
    out, _, kept = without_a_gpu(tmp_path, *(f"{bench}[{name}]" for name in names))
    assert "bf16 products: predictions, nothing ran" in out and "torch grouped_mm: needs a GPU" in out
    even, dense, skewed = tables.cells_of(kept)
    for found, cell in ((even, Bf16Cell("gate_up", 4, 8)), (dense, Bf16Cell("kv_a", 1, 2))):
        (chosen,) = [tile for tile in bench_bf16_gemm.explained(cell).candidates if tile.chosen]
        wanted = {p.device: (round(p.low, 3), round(p.high, 3)) for p in chosen.predictions if p.device != "H800"}
        assert {row["device"]: (row["low_us"], row["high_us"]) for row in tables.timed(found)} == wanted
        assert found["kind"] == "predicted" and found["product"] == "bf16_gemm"
        assert len(found["rows"]) == 2 + len(bench_bf16_gemm.peers_of(cell))
    assert (even["groups"], dense["groups"]) == (4, None) and tables.timed(skewed) == []


def test_the_prediction_of_two_cells(tmp_path: Path) -> None:
    """The bench predicts when it sees no GPU; the GPU is hidden because the bench would measure with one."""
    bench = "bench/products/bench_moe_gemm.py::test_against_the_floor"
    out, _, kept = without_a_gpu(tmp_path, f"{bench}[gate_up-G4-m8]", f"{bench}[down-G16-m8-skewed]")
    assert "predictions, nothing ran" in out and "DeepGEMM contiguous: needs a GPU" in out
    even, skewed = tables.cells_of(kept)
    (chosen,) = [tile for tile in bench_moe_gemm.explained(Cell("gate_up", 4, 8)).candidates if tile.chosen]
    wanted = {p.device: (round(p.low, 3), round(p.high, 3)) for p in chosen.predictions if p.device != "H800"}
    assert {row["device"]: (row["low_us"], row["high_us"]) for row in tables.timed(even)} == wanted
    assert all(row["low_us"] < row["us"] < row["high_us"] for row in tables.timed(even))
    assert all(row["best_us"] <= row["us"] for row in tables.timed(even))
    assert even["kind"] == "predicted" and len(even["rows"]) == 2 + len(PEERS)
    assert tables.timed(skewed) == []


PREDICTING = {  # a bench that needs a GPU -> one of its cells, and how its prediction is printed
    "chains/bench_expert_layer.py": ("test_beside_a_peer[128]", "a prediction for an H100, nothing ran"),
    "chains/bench_fused_moe.py": ("test_against_the_floor[{first}]", "a prediction for an H100, nothing ran"),
    "chains/bench_layer.py": ("test_a_layer[8]", "a prediction for an H100, nothing ran"),
    "comm/bench_comm.py": ("test_beside_peers[all_gather-ragged-1M-graph]", "a prediction for an H100, nothing ran"),
    "comm/bench_ep.py": ("test_beside_peers[layer-96]", "8 ranks, floors for an H100, nothing ran"),
    "engine/bench_step.py": ("test_a_step", "report 28896.00 us"),
    "ops/bench_mla.py": ("test_beside_peers[96x2-5000]", "split rows 1024"),
    "ops/bench_moe.py": ("test_against_the_floor[moe_plan-8]", "a prediction for an H100, nothing ran"),
    "products/bench_bf16_gemm.py": ("test_against_the_floor[q_a-m8]", "bf16 products: predictions, nothing ran"),
    "products/bench_moe_gemm.py": ("test_against_the_floor[down-G4-m8]", "Grouped FP8 GEMM: predictions, nothing ran"),
}
RUN_ANYWHERE = {
    "engine/bench_engine.py", "engine/bench_generate.py", "ops/bench_ops.py", "products/bench_cpu_products.py",
}  # fmt: skip


def test_where_nothing_ran_there_is_no_time(tmp_path: Path) -> None:
    """A bench that predicts prints no table or statistic of pytest-benchmark and stores no entry of it."""
    benches = {path.relative_to(ROOT / "bench").as_posix() for path in (ROOT / "bench").glob("**/bench_*.py")}
    assert benches == PREDICTING.keys() | RUN_ANYWHERE
    first = str(next(iter(shares())))
    selection = [f"bench/{name}::{cell.format(first=first)}" for name, (cell, _) in PREDICTING.items()]
    out, measured, kept = without_a_gpu(tmp_path, *selection)
    assert measured == "" or json.loads(measured)["benchmarks"] == []
    for word in ("benchmark:", "Name (time in", "Rounds", "OPS", "StdDev"):
        assert word not in out, out
    for _, printed in PREDICTING.values():
        assert printed in out
    assert [entry["group"] for entry in kept["predictions"]] == [
        "expert_layer",
        "fused_moe",
        "layer",
        "comm",
        "experts over ranks",
        "decode step",
        "mla_decode",
        "moe",
        "bf16_gemm",
        "moe_gemm",
    ]
    assert all("stats" not in entry for entry in kept["predictions"])


def test_an_empty_file_of_results_is_told(tmp_path: Path) -> None:
    (tmp_path / "none.json").touch()
    with pytest.raises(SystemExit, match="has no cell of"):
        tables.read_results(tmp_path / "none.json")

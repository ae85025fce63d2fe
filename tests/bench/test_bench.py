"""The benches of products without a GPU: what they refuse to time, their predictions, tables and plots. CUDA graphs and
clocks are faked: replaying a graph runs the captured calls on the CPU."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

import compare
import tables
from device_check.plan import PLAN
from longcat_ops import perf
from peers import SPLITS, Peer, ours, torch_eager
from products import bench_bf16_gemm, bench_moe_gemm, measuring, moe_gemm_problem
from products.moe_gemm_problem import Cell, Problem
from report import devices, graph_time
from support.fake_gpu import NAME as H100
from support.fake_gpu import FakeGraph, install

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(moe_gemm_problem.SHAPES, "tiny", (256, 384))


def problem(cell: Cell) -> Problem:
    return Problem(cell, "cpu", l2_bytes=cell.bytes // 3)  # two copies


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    monkeypatch.setattr(bench_moe_gemm, "Problem", lambda cell, device, l2: problem(cell))
    monkeypatch.setattr(bench_moe_gemm, "OURS", peer("longcat_ops", ours.prepare))
    monkeypatch.setattr(bench_moe_gemm, "SPLITS", [peer("split", SPLITS[0].prepare)])


def peer(name: str, prepare: Callable, **fields: object) -> Peer:
    return Peer(name, lambda: None, prepare, **fields)


def refused(made: Problem) -> list:
    raise RuntimeError("no kernel for K = 384\nand more lines")


def doubled(made: Problem) -> list:
    calls = ours.prepare(made)
    return [replace(call, rows=lambda call=call: 2 * call.rows()) for call in calls]


def only_once(made: Problem) -> list:
    """A peer that computes once at preparation, so its captured graph is empty."""
    calls = ours.prepare(made)
    for call in calls:
        call.run()
    return [replace(call, run=lambda: None) for call in calls]


def test_rows_of_a_cell(fake_gpu: None) -> None:
    cell = Cell("tiny", 4, 8)
    eager = peer("eager", torch_eager.prepare, rounding=2**-8)
    absent = Peer("absent", lambda: "cannot be imported", refused)
    peers = [eager, absent, peer("refused", refused), peer("doubled", doubled), peer("once", only_once)]
    found = bench_moe_gemm.measured(cell, peers, deadline=torch.inf)
    rows = {row["implementation"]: row for row in found["rows"]}
    assert list(rows) == ["longcat_ops", "eager", "absent", "refused", "doubled", "once"]
    ours_row = rows["longcat_ops"]
    assert (ours_row["us"], ours_row["p10_us"], ours_row["p90_us"], ours_row["device"]) == (50.0, 50.0, 50.0, H100)
    assert ours_row["read_share"] == round(cell.bytes / 50e-6 / 3e12, 4) and "ratio" not in ours_row
    assert found["ceilings"] == {H100: {"bytes_per_s": 3e12, "flops_per_s": 1979e12}}
    assert ours_row["flops_share"] == round(cell.flops / 50e-6 / 1979e12, 4)
    assert rows["eager"]["ratio"] == 1.0
    assert rows["absent"]["reason"] == "cannot be imported"
    assert rows["refused"]["reason"] == "RuntimeError: no kernel for K = 384"
    assert rows["doubled"]["reason"].startswith("computes something else")
    assert rows["once"]["reason"].startswith("in a CUDA graph it computes something else")
    assert all("us" not in rows[name] for name in ("absent", "refused", "doubled", "once"))
    late = bench_moe_gemm.measured(cell, [eager], deadline=0.0)["rows"]
    assert "us" in late[0] and "--seconds" in late[1]["reason"]
    few = bench_moe_gemm.measured(Cell("tiny", 2, 8), [eager], deadline=0.0)["rows"]
    assert [row["implementation"] for row in few] == ["longcat_ops", "split", "eager"] and few[1]["ratio"] == 1.0


def test_a_time_below_the_floor_is_not_believed(fake_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeGraph, "us", 0.02)
    (row,) = bench_moe_gemm.measured(Cell("tiny", 3, 5), [], deadline=torch.inf)["rows"]
    assert row["reason"].startswith("not believed: 0.02 us") and "us" not in row


def test_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order, times = [], iter([9, 9] * graph_time.WARM_ROUNDS + [us for i in range(50) for us in (20 + 2 * i, 100)])
    monkeypatch.setattr(FakeGraph, "microseconds", lambda self: order.append(self.calls) or next(times))
    found = graph_time.take_turns({"a": FakeGraph(None, 2, []), "b": FakeGraph(None, 4, [])})
    assert order == [2, 4] * (graph_time.WARM_ROUNDS + 50)
    assert (found["a"].us, found["b"].us, found["b"].p10_us, found["b"].p90_us) == (34.5, 25, 25, 25)
    assert found["a"].p10_us == pytest.approx(14.1) and found["a"].p90_us == pytest.approx(54.9)


@pytest.mark.parametrize("cell", [Cell("gate_up", 4, 8), Cell("down", 512, 256)], ids=str)
def test_bytes_flops_and_floors_are_those_of_explain(cell: Cell) -> None:
    found = bench_moe_gemm.explained(cell)
    assert (cell.bytes, cell.flops) == (found.bytes_read + found.bytes_written, found.flops)
    for floor in found.floors:
        peaks = devices.known(floor.device)
        seconds = max(cell.bytes / peaks.memory.value, cell.flops / peaks.fp8.value)
        assert floor.microseconds == pytest.approx(1e6 * seconds)


def fabricated(kind: str = "measured", device: str = H100, factor: float = 1.0, **machine: object) -> dict:
    """Results of two shapes, two expert counts and two token counts; two implementations have times, a third none."""
    benchmarks = []
    for shape, size in (("gate_up", 25e6), ("down", 12e6)):
        for groups in (1, 4):
            for tokens in (8, 128):
                us = factor * (groups * size / 3e6 + 0.1 * tokens)
                shares = {"p10_us": us, "p90_us": us, "read_share": 0.9, "flops_share": 0.1}
                rows = [
                    {"implementation": "longcat_ops", "device": device, "us": us, **shares},
                    {"implementation": "Triton grouped", "device": device, "us": 1.5 * us, "ratio": 1.5, **shares},
                    {"implementation": "DeepGEMM masked", "reason": "cannot be imported"},
                ]
                for row in rows[:2] if kind == "predicted" else ():
                    row |= {"low_us": 0.8 * row["us"], "high_us": 1.2 * row["us"], "bound": "memory or L2"}
                info = {"cell": f"{shape}-G{groups}-m{tokens}", "shape": shape, "groups": groups, "tokens": tokens}
                info |= {"product": "moe_gemm", "skewed": False, "kind": kind}
                info |= {"bytes": groups * size, "flops": groups * tokens * 2 * size}
                ceilings = {device: {"bytes_per_s": 3e12, "flops_per_s": 1.979e15}}
                info |= {"floors_us": {device: groups * size / 3e6}, "ceilings": ceilings, "rows": rows}
                benchmarks.append({"name": "test", "extra_info": info})
    info = {"device": device, "driver": "580.65.06", "memory_gib": 79} | machine
    return {"machine_info": info, "benchmarks": benchmarks}


def written(path: Path, results: dict) -> Path:
    path.write_text(json.dumps(results))
    return path


def test_a_better_tile_is_named() -> None:
    (cell, *_) = tables.cells_of(fabricated("predicted", "H100"))
    band = {"us": 20.0, "low_us": 15.0, "high_us": 25.0, "bound": "L2"}
    cell["rows"] = [{"device": "H100", "best_us": best} | band for best in (19.9, 12.34)]
    _, line = tables.terminal_lines([cell])
    assert "H100 15 .. 25 us (L2), floor" in line
    assert line.count("another tile") == 1 and line.endswith("another tile 12.3")


def test_tables() -> None:
    cells = tables.cells_of(fabricated())
    text = "\n".join(tables.terminal_lines(cells))
    assert f"on {H100}, which reads 3.00 TB/s" in text
    assert "no time in 8 cells: DeepGEMM masked: cannot be imported" in text
    (line,) = [line for line in text.splitlines() if "down-G4-m128" in line and "Triton" in line]
    assert line.split()[-6:] == ["43.20", "28.80", "28.80", "90.0", "10.0", "1.50"]
    page = tables.all_tables(cells)
    assert f"| {H100} | G | m = 1 |" in page and f"| {H100}, Triton grouped | G | m = 1 |" in page
    assert "| gate_up | 4 |  | 34.1 |  |  | 46.1 |  |" in page and "| down | 1 |  | 7.2 |  |  | 25.2 |  |" in page


def both_products() -> dict:
    """The cells of the FP8 bench, and a grouped and a dense one of the bf16 bench."""
    results = fabricated()
    (grouped, *_) = copy.deepcopy(tables.cells_of(results))
    grouped |= {"product": "bf16_gemm"}
    dense = copy.deepcopy(grouped) | {"cell": "q_a-m4", "shape": "q_a", "groups": None, "tokens": 4}
    results["benchmarks"] += [{"extra_info": info} for info in (grouped, dense)]
    return results


def test_a_table_says_which_product_it_is_of(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    results = both_products()
    text = "\n".join(tables.terminal_lines(tables.cells_of(results)))
    fp8, bf16 = text.index(f"Grouped FP8 GEMM on {H100}"), text.index(f"bf16 products on {H100}")
    assert fp8 < text.index("down-G4-m128") < bf16 < text.index("q_a-m4") and "no time in 2 cells" in text[bf16:]
    assert tables.main([str(written(tmp_path / "both", results))]) == 0
    page = capsys.readouterr().out
    _, fp8, bf16 = re.split("Grouped FP8 GEMM\n|bf16 products\n", page)
    assert "| down | 4 |" in fp8 and "q_a" not in fp8 and "| gate_up | 1 |  | 9.1 |" in bf16
    assert f"| {H100} | m = 1 | m = 2 | m = 4 |" in bf16 and "| q_a |  |  | 9.1 |  |  |  |" in bf16
    once, again = written(tmp_path / "once", results), written(tmp_path / "again", results)
    assert compare.main([str(once), str(again)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20 and len({line[:68] for line in lines}) == 20


def test_tables_of_predictions_hold_bands() -> None:
    page = tables.all_tables(tables.cells_of(fabricated("predicted", "H100")))
    assert "| gate_up | 4 |  | 27 .. 41 (memory or L2) |" in page
    assert [tables.short_bound(b) for b in ("memory", "tensor cores", "L2 or loads of an SM")] == [
        "", " (TC)", " (L2 or SM)",
    ]  # fmt: skip


def test_a_device_that_the_table_has_not() -> None:
    assert devices.known(H100).name == "H100" and devices.known("NVIDIA A100-SXM4-80GB") is None
    assert devices.here().name in {device.name for device in perf.DEVICES.values()}


def test_runs_of_one_device_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    old, new = written(tmp_path / "old", fabricated()), written(tmp_path / "new", fabricated(factor=0.5))
    assert compare.main([str(old), str(new)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 16 and all(line.endswith("0.500 x") for line in lines)


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ({"device": "NVIDIA H200"}, f"device: {H100} and NVIDIA H200"),
        ({"driver": "575.10"}, "major version of the driver: 580 and 575"),
        ({"memory_gib": 94}, "memory in GiB: 79 and 94"),
        ({"kind": "predicted"}, "kind: measured and predicted"),
    ],
    ids=["name", "driver", "memory", "kind"],
)
def test_runs_of_different_devices_are_not(
    machine: dict, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    old, new = written(tmp_path / "old", fabricated()), written(tmp_path / "new", fabricated(**machine))
    assert compare.main([str(old), str(new)]) == 2
    told = capsys.readouterr()
    assert told.out == "" and "not compared" in told.err and reason in told.err


def test_nor_by_pytest_benchmark() -> None:
    spec = importlib.util.spec_from_file_location("bench_conftest", ROOT / "bench" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    one, same, other = (fabricated(driver=driver) for driver in ("580.1", "580.2", "575.1"))
    module.pytest_benchmark_compare_machine_info(None, None, one["machine_info"], same)
    with pytest.raises(pytest.UsageError, match="driver: 575 and 580"):
        module.pytest_benchmark_compare_machine_info(None, None, one["machine_info"], other)


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: it is in the extra [bench]")
    import plots

    for kind, device, title in (("measured", H100, H100), ("predicted", "H100", "prediction for an H100, nothing ran")):
        results = written(tmp_path / f"{kind}.json", fabricated(kind, device))
        for folder in ("once", "again"):
            assert plots.main([str(results), "--out", str(tmp_path / kind / folder)]) == 0
        for name in ("roofline", "crossover"):
            once, again = (tmp_path / kind / folder / f"moe_gemm_{name}.svg" for folder in ("once", "again"))
            text = once.read_text()
            assert title in text and "Triton grouped" in text and "longcat_ops" in text
            assert len(text) < 200_000 and text == again.read_text()
    with pytest.raises(SystemExit):
        plots.main([str(results), "--out", str(tmp_path), "--device", "H20"])
    assert plots.main([str(written(tmp_path / "both", both_products())), "--out", str(tmp_path / "both_plots")]) == 0
    drawn = {path.name: path.read_text() for path in (tmp_path / "both_plots").iterdir()}
    assert drawn.keys() == {f"{name}_{plot}.svg" for name in tables.PRODUCTS for plot in ("roofline", "crossover")}
    assert "bf16 products, us against tokens:" in drawn["bf16_gemm_crossover.svg"]
    assert "q_a, dense" in drawn["bf16_gemm_crossover.svg"] and "longcat_ops, q_a" in drawn["bf16_gemm_roofline.svg"]


@pytest.mark.parametrize("bench", [bench_moe_gemm, bench_bf16_gemm], ids=["moe_gemm", "bf16_gemm"])
def test_the_short_grid_ends_within_the_step_of_the_gpu_check(bench: ModuleType) -> None:
    """The step's limit covers SHORT_SECONDS plus one second a cell for our op (an assumption, not measured yet)."""
    name = f"bench/{bench.__name__.split('.')[-1]}"
    (limit,) = (step.limit_s for step in PLAN if step.name == name)
    cells = [cell for cell in bench.cells("short") if cell.shape != "tiny"]
    assert measuring.SHORT_SECONDS + len(cells) <= limit <= 600

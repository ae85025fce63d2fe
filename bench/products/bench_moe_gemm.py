"""The grouped FP8 GEMM at the model's sizes: gate_up [4096, 6144] and down [6144, 2048], G local experts of m tokens.

    python -m pytest bench/products/bench_moe_gemm.py [-k "down and G4-"] [--grid full] [--peers Triton]

With a Hopper GPU every cell is timed, ours and each peer of bench/peers/, in CUDA graphs of calls that take turns on
copies of the operands, 4 times L2 in all, so that none finds its weights there: median, 10th and 90th percentile of 50
replays, in which the implementations take turns too. A result is compared with the float32 product before timing, and
again after a replay that started from an erased output. If it is wrong, or faster than the data sheet's memory, its
row has that reason instead of a time. Bandwidth is a share of what reductions read in the same run, FP8 flops of the
data sheet's. Ratios are peer / ours.

Without a GPU a cell has a band for an H100 and an H200, by longcat_ops.perf, with `us` as its middle; a peer's row has
the reason why there is no time. Nothing here has been compared with a GPU yet.

--benchmark-json=FILE keeps the rows, --predictions-json=FILE those of predictions, which are no benchmark.
bench/tables.py, bench/plots.py and bench/compare.py read both. On a GPU, the table that pytest-benchmark itself prints
shows how long each cell took to measure.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import cache

import pytest
import torch

import longcat_ops
from longcat_ops import perf
from longcat_ops.ops.explain import Explanation
from peers import OURS, PEERS, SPLITS, Peer
from products.moe_gemm_problem import SHAPES, Cell, Problem
from report import Report, graph_time
from report.devices import known

FULL = [1, 2, 4, 8, 16, 32, 64, 512], [1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256]  # groups, tokens
SHORT = [4, 16, 64, 1], [1, 8, 32, 64, 128, 256]
SKEWED = [16, 64], [8, 64]
FEW = 2  # up to so many experts, split_k may pay off
PREDICTED = ("H100", "H200")  # where there is no GPU
SHORT_SECONDS = 200.0  # after that the short grid times no peer: most of it goes into their compilers
GRAPH_US = 1500.0  # the least time of a replay, so that its start and end do not count
BELIEVED = 0.98  # of the data sheet's time for the bytes: less is a graph without its kernels


def cells(grid: str) -> list[Cell]:
    groups, tokens = FULL if grid == "full" else SHORT
    even = [Cell(shape, g, m) for shape in SHAPES for g in groups for m in tokens]
    return even + [Cell(shape, g, m, skewed=True) for shape in SHAPES for g in SKEWED[0] for m in SKEWED[1]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    grid = metafunc.config.getoption("--grid") or ("short" if torch.cuda.is_available() else "full")
    metafunc.parametrize("cell", cells(grid), ids=str)


@cache
def read_rate() -> float:
    return graph_time.read_bytes_per_second(torch.cuda.get_device_properties(0).L2_cache_size)


def prepared(peer: Peer, problem: Problem) -> graph_time.Graph | str:
    """What is to be timed, or the reason why it is not."""
    if reason := peer.available():
        return reason
    try:
        return checked_graph(peer, problem)
    except Exception as error:  # whatever it throws; a peer must not end the run
        first = (str(error).strip().splitlines() or [""])[0]
        return f"{type(error).__name__}: {first[:200]}"


def checked_graph(peer: Peer, problem: Problem) -> graph_time.Graph | str:
    calls = peer.prepare(problem)
    runs = [call.run for call in calls]
    for run in runs:
        run()
    if wrong := problem.disagreement(calls[0].rows(), peer.rounding):
        return wrong
    graph = graph_time.capture(runs)
    for out in calls[0].outs:
        out.fill_(torch.nan)
    us = graph.microseconds()
    if wrong := problem.disagreement(calls[0].rows(), peer.rounding):
        return f"in a CUDA graph it {wrong}"
    repeats = round(GRAPH_US / us)
    return graph_time.capture(runs, repeats) if repeats > 1 else graph


def measured(cell: Cell, peers: list[Peer], deadline: float) -> dict:
    properties = torch.cuda.get_device_properties(0)
    problem = Problem(cell, "cuda", properties.L2_cache_size)
    found: dict[str, graph_time.Graph | str] = {}
    own = [OURS, *SPLITS] if cell.groups <= FEW else [OURS]
    for peer in [*own, *peers]:
        late = peer in peers and time.monotonic() > deadline
        found[peer.name] = "the time of this run was spent: see --seconds" if late else prepared(peer, problem)
    times = graph_time.take_turns({name: graph for name, graph in found.items() if not isinstance(graph, str)})
    ours, reads = times.get(OURS.name), read_rate()
    device = known(properties.name)
    memory, flops = (device.memory.value, device.fp8.value) if device else (None, None)
    rows = []
    for name, graph in found.items():
        row = {"implementation": name}
        if name not in times:
            row["reason"] = graph
        elif memory and 1e-6 * times[name].us < BELIEVED * cell.bytes / memory:
            row["reason"] = f"not believed: {times[name].us:.2f} us is less than its bytes take by the data sheet"
        else:
            seconds = 1e-6 * times[name].us
            row |= {"device": properties.name, **{k: round(v, 3) for k, v in asdict(times[name]).items()}}
            row["read_share"] = round(cell.bytes / seconds / reads, 4)
            row["fp8_share"] = round(cell.flops / seconds / flops, 4) if flops else None
            if ours and name != OURS.name:
                row["ratio"] = round(times[name].us / ours.us, 3)
        rows.append(row)
    del problem, found, graph
    torch.cuda.empty_cache()  # the next cell may need what is left in odd pieces
    return {
        "kind": "measured",
        "rows": rows,
        "ceilings": {properties.name: {"bytes_per_s": reads, "flops_per_s": flops}},
    }


def explained(cell: Cell) -> Explanation:
    (n, k), rows, blocks = SHAPES[cell.shape], cell.rows, SHAPES[cell.shape][1] // 128

    def meta(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta")

    lhs = meta(rows, k, dtype=torch.float8_e4m3fn), meta(rows, blocks)
    rhs = meta(cell.groups, n, k, dtype=torch.float8_e4m3fn), meta(cell.groups, n // 128, blocks)
    out, offsets = meta(rows, n, dtype=torch.bfloat16), meta(cell.groups + 1, dtype=torch.int32)
    return longcat_ops.explain("m_grouped_fp8_gemm_nt_offset", lhs, rhs, out, offsets, max_m_hint=cell.tokens)


def predicted(cell: Cell, peers: list[Peer]) -> dict:
    devices = {name: perf.DEVICES[name] for name in PREDICTED}
    ceilings = {name: {"bytes_per_s": d.memory.value, "flops_per_s": d.fp8.value} for name, d in devices.items()}
    rows = [{"implementation": OURS.name, "reason": "the model knows only experts of equally many rows"}]
    if not cell.skewed:
        tiles = explained(cell).candidates
        (chosen,) = [tile.predictions for tile in tiles if tile.chosen]
        best = {p.device: min((tile.predictions[i] for tile in tiles), key=lambda b: b.middle)
                for i, p in enumerate(chosen)}  # fmt: skip
        rows = [
            {"implementation": OURS.name, "device": p.device, "us": round(p.middle, 3), "bound": p.bound}
            | {"low_us": round(p.low, 3), "high_us": round(p.high, 3)}
            | {"best_us": round(best[p.device].middle, 3)}  # of all its tiles
            for p in chosen
            if p.device in PREDICTED
        ]
    rows += [{"implementation": p.name, "reason": p.available() or "nothing is timed without a Hopper"} for p in peers]
    return {"kind": "predicted", "rows": rows, "ceilings": ceilings}


def info_of(cell: Cell, found: dict) -> dict:
    """What is kept of a cell: what it is, its floors and its rows."""
    floors = {
        device: 1e6 * max(cell.bytes / peak["bytes_per_s"], cell.flops / (peak["flops_per_s"] or torch.inf))
        for device, peak in found["ceilings"].items()
    }
    return {
        "cell": str(cell), "shape": cell.shape, "groups": cell.groups, "tokens": cell.tokens, "skewed": cell.skewed,
        "bytes": cell.bytes, "flops": cell.flops, "floors_us": {d: round(us, 3) for d, us in floors.items()}, **found,
    }  # fmt: skip


@pytest.fixture(scope="session")
def deadline(request: pytest.FixtureRequest) -> float:
    grid, seconds = request.config.getoption("--grid"), request.config.getoption("--seconds")
    if seconds is None:
        seconds = 0.0 if grid == "full" else SHORT_SECONDS
    return time.monotonic() + (seconds or torch.inf)


@pytest.fixture(scope="session")
def chosen_peers(request: pytest.FixtureRequest) -> list[Peer]:
    wanted = request.config.getoption("--peers").split(",")
    return [peer for peer in PEERS if any(name.strip().lower() in peer.name.lower() for name in wanted)]


def test_against_the_floor(cell: Cell, chosen_peers: list[Peer], deadline: float, report: Report) -> None:
    on_gpu = OURS.available() is None
    if on_gpu:
        found = report.measured("moe_gemm", measured, cell, chosen_peers, deadline)
    else:
        found = report.predicted("moe_gemm", predicted, cell, chosen_peers)
    report.info.update(info_of(cell, found))
    own = {peer.name for peer in (OURS, *SPLITS)}
    assert not on_gpu or not (failed := [r for r in found["rows"] if r["implementation"] in own and "us" not in r]), (
        failed
    )

"""How the benches of products measure or predict a cell, and what they keep of it.

With a Hopper GPU a cell is timed, ours and each peer, in CUDA graphs of calls that take turns on copies of the
operands, 4 times L2 in all, so that none finds its weights there: median, 10th and 90th percentile of 50 replays, in
which the implementations take turns too. A result is compared with the float32 product before timing, and again after a
replay that started from an erased output. If it is wrong, or faster than the data sheet's memory, its row has that
reason instead of a time. Bandwidth is a share of what reductions read in the same run, flops of the data sheet's for
the operands' dtype. Ratios are peer / ours.

Without a GPU a cell has a band for an H100 and an H200, by longcat_ops.perf, with `us` as its middle; a peer's row has
the reason why there is no time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache

import pytest
import torch

from longcat_ops import perf
from longcat_ops.ops.explain import Candidate
from peers.peer import Peer
from products.problem import Cell, Problem
from report import Report, graph_time
from report.devices import known

PREDICTED = ("H100", "H200")  # where there is no GPU
SHORT_SECONDS = 200.0  # after that a short grid times no peer: most of it goes into their compilers
GRAPH_US = 1500.0  # the least time of a replay, so that its start and end do not count
BELIEVED = 0.98  # of the data sheet's time for the bytes: less is a graph without its kernels


def grid_of(config: pytest.Config) -> str:
    return config.getoption("--grid") or ("short" if torch.cuda.is_available() else "full")


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


def measured(
    cell: Cell, problem_of: Callable[[Cell, str, int], Problem], own: Sequence[Peer], peers: Sequence[Peer],
    deadline: float,
) -> dict:  # fmt: skip
    """own: forms of our op, the first of which ratios refer to; they are timed even after the deadline."""
    properties = torch.cuda.get_device_properties(0)
    problem = problem_of(cell, "cuda", properties.L2_cache_size)
    found: dict[str, graph_time.Graph | str] = {}
    for peer in [*own, *peers]:
        late = peer in peers and time.monotonic() > deadline
        found[peer.name] = "the time of this run was spent: see --seconds" if late else prepared(peer, problem)
    times = graph_time.take_turns({name: graph for name, graph in found.items() if not isinstance(graph, str)})
    ours, reads = times.get(own[0].name), read_rate()
    device = known(properties.name)
    memory, flops = (device.memory.value, peak(cell, device)) if device else (None, None)
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
            row["flops_share"] = round(cell.flops / seconds / flops, 4) if flops else None
            if ours and name != own[0].name:
                row["ratio"] = round(times[name].us / ours.us, 3)
        rows.append(row)
    del problem, found, graph
    torch.cuda.empty_cache()  # the next cell may need what is left in odd pieces
    return {
        "kind": "measured",
        "rows": rows,
        "ceilings": {properties.name: {"bytes_per_s": reads, "flops_per_s": flops}},
    }


def peak(cell: Cell, device: perf.Device) -> float:
    """Flops per second by the data sheet, for operands of the cell's dtype."""
    return (device.bf16 if cell.bf16 else device.fp8).value


def predicted(cell: Cell, tiles: Sequence[Candidate], ours: str, peers: Sequence[Peer]) -> dict:
    """tiles: what `explain` says of the call; none for rows that do not spread evenly."""
    devices = {name: perf.DEVICES[name] for name in PREDICTED}
    ceilings = {name: {"bytes_per_s": d.memory.value, "flops_per_s": peak(cell, d)} for name, d in devices.items()}
    rows = [{"implementation": ours, "reason": "the model knows only experts of equally many rows"}]
    if tiles:
        (chosen,) = [tile.predictions for tile in tiles if tile.chosen]
        best = {p.device: min((tile.predictions[i] for tile in tiles), key=lambda b: b.middle)
                for i, p in enumerate(chosen)}  # fmt: skip
        rows = [
            {"implementation": ours, "device": p.device, "us": round(p.middle, 3), "bound": p.bound}
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
        "product": cell.product, "cell": str(cell), "shape": cell.shape, "groups": None if cell.dense else cell.groups,
        "tokens": cell.tokens, "skewed": cell.skewed, "bytes": cell.bytes, "flops": cell.flops,
        "floors_us": {d: round(us, 3) for d, us in floors.items()}, **found,
    }  # fmt: skip


def reported(
    report: Report, cell: Cell, own: Sequence[Peer], measure: Callable[[], dict], predict: Callable[[], dict]
) -> None:
    """Measures or predicts the cell. Fails where our op has no time although there is a GPU for it."""
    on_gpu = own[0].available() is None
    found = report.measured(cell.product, measure) if on_gpu else report.predicted(cell.product, predict)
    report.info.update(info_of(cell, found))
    names = {peer.name for peer in own}
    failed = [row for row in found["rows"] if row["implementation"] in names and "us" not in row]
    assert not on_gpu or not failed, failed

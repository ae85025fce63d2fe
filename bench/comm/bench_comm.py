"""Collectives of this project beside NCCL, torch and MSCCL++, from 4 KB to 96 MB, even and uneven, in graphs and eager.

    torchrun --nproc-per-node 8 -m pytest bench/comm/bench_comm.py [-k "all_gather and 96M"] [--benchmark-json=FILE]
    torchrun --nproc-per-node 8 -m pytest bench/comm/bench_comm.py --claim     # and the report's sentence, row by row
    torchrun --nproc-per-node 2 -m pytest bench/comm/bench_comm.py -k 4K       # without GPUs: tries the harness

Every implementation is compared with the right values before it is timed. A round lets each run once: all ranks meet,
then each runs 20 launches of a CUDA graph, or 20 calls, between two events; the longest time of all ranks counts. Rank
0 decides how many rounds there are, and reports alone. A ratio is a peer's time over ours, from the same cell of the
same run. Ours is timed on symmetric memory and on ordinary tensors: the ratio takes the time on the peer's kind of
memory, or the other one if only that is there. The share of the wire is that of `longcat_ops.perf.comm`: the bytes of
our form at the rate that collectives reach. "GEMM" is how much longer bf16 products on another stream take meanwhile.

Without torchrun: bands, for 8 H100.
"""

from __future__ import annotations

import pytest

from comm import cells, clocks
from comm.cells import Cell
from comm.field import Field, facts
from comm.figures import figures
from report import Report, devices
from report.fleet import is_first_rank

PREDICTED_RANKS = 8
HOST_BYTES = 64 * cells.KIB  # on the host there is no speed to measure


@pytest.mark.benchmark(timer=clocks.device_seconds)
@pytest.mark.parametrize("mode", cells.MODES)
@pytest.mark.parametrize("size", cells.SIZES, ids=cells.label)
@pytest.mark.parametrize(("collective", "rows"), cells.KINDS, ids=lambda text: text)
def test_beside_peers(collective: str, rows: str, size: int, mode: str, comm_field: Field | None, report: Report,
                      request: pytest.FixtureRequest) -> None:  # fmt: skip
    if comm_field is None:
        predict(Cell(collective, rows, size, mode, PREDICTED_RANKS), report)
        return
    cell = Cell(collective, rows, size, mode, comm_field.fleet.ranks)
    if not comm_field.fleet.on_gpus and (mode == "graph" or size > HOST_BYTES):
        pytest.skip("on the host the harness alone is tried: eager, up to 64K")
    benchmark = request.getfixturevalue("benchmark") if is_first_rank() else None
    if benchmark is not None:
        benchmark.group = f"collectives, {mode}"
    info = comm_field.measure(cell, benchmark)
    if benchmark is not None:
        benchmark.extra_info.update(info)


def predict(cell: Cell, report: Report) -> None:
    if cell.mode == "eager":
        pytest.skip("what the host takes for a call is not predicted")
    model = report.predicted("comm", figures, cell, devices.here())
    report.info.update(facts(cell, model))

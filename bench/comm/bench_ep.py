"""Experts over ranks: dispatch, dispatch and combine, the whole expert layer, beside all-to-all and DeepEP.

    torchrun --nproc-per-node 8 -m pytest bench/comm/bench_ep.py [-k "layer and 96"] [--benchmark-json=FILE]
    torchrun --nproc-per-node 2 -m pytest bench/comm/bench_ep.py -k 8        # without GPUs: tries the harness

LongCat's sizes on GPUs: 512 FFN experts and 256 zero ones, 12 choices, hidden size 6144, 1, 8, 96 and 192 tokens a
rank; small ones on the host. Every result is compared with the right one before it is timed: the bits of one rank with
all experts, or, where a way does not promise them, 2^-6 in norm. A round lets each run once (bench_comm.py); a way that
a CUDA graph can hold runs as one, others eager. A ratio is a peer's time over ours, from the same cell of the same run.

A combine belongs to one dispatch, so it is timed behind one, and the table has the difference. Bytes are those that the
busiest rank sends to others, there and back: by formula, and by `ExpertParallel.counters`. The floor is these bytes at
the rate that collectives reach on the device (`longcat_ops.perf.comm`).

The peers of all-to-all know all sizes beforehand: "12" sends every choice, as a framework does that knows no zero
experts, "8 in the mean" those of FFN experts. DeepEP runs where it is installed.

Without torchrun: bytes of even routing and their floors, for 8 H100.
"""

from __future__ import annotations

import pytest

from comm import clocks
from comm.ep_field import ExpertField, facts
from comm.ep_problem import LONGCAT, TOKENS, WHATS, Cell
from report import Report, devices
from report.fleet import is_first_rank

PREDICTED_RANKS = 8
HOST_TOKENS = 8  # on the host there is no speed to measure


@pytest.mark.benchmark(timer=clocks.device_seconds)
@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("what", WHATS)
def test_beside_peers(what: str, tokens: int, expert_field: ExpertField | None, report: Report,
                      request: pytest.FixtureRequest) -> None:  # fmt: skip
    cell = Cell(what, tokens)
    if expert_field is None:
        sent = cell.mean_bytes(LONGCAT, PREDICTED_RANKS)
        found = report.predicted("experts over ranks", facts, cell, LONGCAT, PREDICTED_RANKS, devices.here(), sent)
        report.info.update(found)
        return
    if not expert_field.fleet.on_gpus and tokens > HOST_TOKENS:
        pytest.skip(f"on the host the harness alone is tried: up to {HOST_TOKENS} tokens")
    benchmark = request.getfixturevalue("benchmark") if is_first_rank() else None
    if benchmark is not None:
        benchmark.group = "experts over ranks"
    info = expert_field.measure(cell, benchmark)
    if benchmark is not None:
        benchmark.extra_info.update(info)

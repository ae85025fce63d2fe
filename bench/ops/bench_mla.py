"""mla_decode at LongCat-Flash's sizes, beside FlashMLA and flashinfer where they can be imported: 64 heads, 512 + 64.

    python -m pytest bench/ops/bench_mla.py [-k 96x2-5000]

With a Hopper GPU each way is a CUDA graph, and they take turns; results must agree first. split_rows 512 is the
default. Without a GPU, a band by longcat_ops.perf.attention takes the place of a time.
"""

from __future__ import annotations

import pytest
import torch

from device_check.machine import Machine
from device_check.questions import times
from longcat_ops import _library, perf
from longcat_ops.perf import attention
from report import Report, band_us, devices

BATCHES, CONTEXTS = ((1, 1), (8, 2), (96, 1), (96, 2), (192, 1)), (1024, 5000, 32768)
SPLITS = (512, 1024, 2048)
CELLS = [(sequences, rows, context) for sequences, rows in BATCHES for context in CONTEXTS]


def measured(sequences: int, rows: int, context: int) -> dict[str, dict]:
    machine = Machine("cuda", *2 * [_library.PACKAGE])
    return times.attention(machine, sequences, rows, context, list(SPLITS), 64, 512, 64)


@pytest.mark.parametrize(("sequences", "rows", "context"), CELLS, ids=[f"{s}x{r}-{c}" for s, r, c in CELLS])
def test_beside_peers(sequences: int, rows: int, context: int, report: Report) -> None:
    calls = {split: attention.Call(sequences, rows, context, split) for split in SPLITS}
    least = attention.floor_counts(calls[SPLITS[0]])
    floor_us, _ = perf.floor(least, devices.here())
    if torch.cuda.is_available() and _library.load().device_supported(0)[0]:
        found = report.measured("mla_decode", measured, sequences, rows, context)
        cells = {f"{name}_us": t["us"] for name, t in found["times"].items()}
        report.info.update(peers=found["peers"])
    else:
        default, *others = ((s, perf.predict(attention.mla_decode(c), devices.here())) for s, c in calls.items())
        cells = band_us(report.predicted("mla_decode", lambda: default[1]))
        for split, band in others:
            cells |= band_us(band, f"split_rows_{split}")
    report.info.update(op=f"mla_decode {context}", tokens=sequences * rows, bytes=round(least.bytes),
                       floor_us=floor_us, **cells)  # fmt: skip

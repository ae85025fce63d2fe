"""A decode step of one rank of EP128 at LongCat-Flash's sizes: 96 sequences with a draft each, 5,000 rows of context,
FP8, 28 layers of 4 experts, random weights.

    python -m pytest bench/engine/bench_step.py

With a Hopper GPU (60 GB of memory): the step eagerly and captured, and its parts. Without one: the prediction by
longcat_ops.perf.step. Left out in either: dispatch and combine between ranks, the host, sampling other than greedy.
"""

from __future__ import annotations

import torch

from device_check.machine import Machine
from device_check.questions import step
from longcat_ops import _library, perf
from longcat_ops.perf.step import LAYERS, REPORT, predicted
from report import Report, band_us, devices


def measured() -> dict[str, object]:
    machine = Machine("cuda", *2 * [_library.PACKAGE])
    return step.whole(machine, LAYERS, REPORT.sequences, REPORT.rows, REPORT.context, {})


def test_a_step(report: Report) -> None:
    model = predicted(devices.here())
    floor_us, _ = perf.floor(perf.Counts("step", model.bytes), devices.here())
    if torch.cuda.is_available() and _library.load().device_supported(0)[0]:
        found = report.measured("decode step", measured)
        times = {name: found[name] for name in ("eager_us", "step_us")}
        report.info.update(found)
    else:
        times = band_us(report.predicted("decode step", lambda: model.step))
        for name in ("attention", "ffn", "moe", "layer", "head", "mtp"):
            times |= band_us(getattr(model, name), name)
    report.info.update(op="decode step", tokens=REPORT.tokens, bytes=round(model.bytes), left_out=step.LEFT_OUT,
                       floor_us=floor_us, report_us=28 * 1032.0, **times)  # fmt: skip

"""One decode step of one whole ScMoE layer at LongCat-Flash's sizes: FP8 projections and 512 FP8 experts, T sequences.

    python -m pytest bench/chains/bench_layer.py

With a Hopper GPU: model/scmoe.py ScMoELayer, random weights (22 GB), run eagerly, so the time includes what
Python and torch take between kernels; the layer is not made for graphs yet. Without one: a band by parts, by
longcat_ops.perf.layer.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from longcat_ops import LongcatFlashConfig, _library, perf
from longcat_ops.engine.rank_alone import DeviceSource
from longcat_ops.model.cache import LatentCache
from longcat_ops.model.precision import Precision
from longcat_ops.model.rotary import RotaryTable
from longcat_ops.model.rows import Rows
from longcat_ops.model.scmoe import ScMoELayer
from longcat_ops.perf.layer import CONTEXT, TOKENS, predicted
from report import Report, band_us, devices

CONFIG = LongcatFlashConfig()


@cache
def layer(device: str, config: LongcatFlashConfig) -> ScMoELayer:
    source = DeviceSource(torch.bfloat16, std=0.02, device=device, precision=Precision("fp8"))
    return ScMoELayer(source, "model.layers.0", config, 0).eval()


def step(tokens: int, device: str, config: LongcatFlashConfig = CONFIG, context: int = CONTEXT) -> Callable[[], Tensor]:
    """A decode step of `tokens` sequences whose caches hold `context` rows."""
    latents = LatentCache(config, tokens, context + 1, num_slots=2, device=device)
    latents.rows.normal_()
    for sequence in range(tokens):
        latents.reserve(sequence, context + 1)
    x = torch.randn(tokens, config.hidden_size, device=device).bfloat16()
    at = [context] * tokens
    rope = RotaryTable(config).upto(context + 1, torch.device(device))
    block = layer(device, config)

    @torch.inference_mode()
    def run() -> Tensor:
        return block(x, Rows.at(latents, list(range(tokens)), at, rope, config.num_attention_heads))

    return run


def measured(tokens: int) -> float:
    """us, eager, median of 20."""
    run = step(tokens, "cuda")
    run()
    times = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end))
    return statistics.median(times)


@pytest.mark.parametrize("tokens", TOKENS)
def test_a_layer(tokens: int, report: Report) -> None:
    gpu = torch.cuda.is_available() and _library.load().device_supported(0)[0]
    model = predicted(tokens, devices.here())
    if gpu:
        times = {"eager_us": report.measured("layer", measured, tokens)}
    else:
        times = band_us(report.predicted("layer", lambda: model.layer))
    floor_us, _ = perf.floor(perf.Counts("layer", model.bytes), devices.here())
    times = {name: round(us, 1) for name, us in (times | {"floor_us": floor_us}).items()}
    report.info.update(op="ScMoELayer", tokens=tokens, bytes=round(model.bytes), **times)

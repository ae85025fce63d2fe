"""An expert layer in one call, from the choices of a router to the output, at sizes where another library has one:
Qwen3-30B-A3B, 128 experts of 2048 x 768, top-8. At 128 tokens every expert has 8 rows.

    python -m pytest bench/chains/bench_expert_layer.py

With a Hopper GPU: `fused_moe` beside fish-scales-ops, as CUDA graphs that take turns, if that is installed. Without
one: bands. Both chains begin with ids and weights on the device: sorting the choices and the combine are inside, the
router's softmax is not. Launches of both are listed. A peer that was not timed in the same run has no ratio.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import longcat_ops
from chains.bench_fused_moe import disagreement
from longcat_ops import Routing, _library, perf
from longcat_ops.perf.chain import Share, experts_us
from longcat_ops.perf.dispatch import launches_of_plan
from longcat_ops.perf.model import predict
from peers import fish_scales
from products.moe_gemm_problem import random_weights
from report import Report, band_us, devices, graph_time

EXPERTS, TOP_K, HIDDEN, WIDTH = 128, 8, 2048, 768
TOKENS = (1, 16, 128)
OURS = "longcat_ops"
LAUNCHES = ("moe_plan", "moe_permute_quant", "m_grouped_fp8_swiglu_gemm_nt_offset", "m_grouped_fp8_gemm_nt_offset",
            "moe_combine")  # fmt: skip


class EvenShare(Share):
    """Rows spread over all the experts that there can be."""

    @property
    def active(self) -> float:
        return float(min(self.experts, TOP_K * self.tokens))


def share(tokens: int) -> EvenShare:
    return EvenShare(tokens, 1, EXPERTS, HIDDEN, WIDTH)


class Problem:
    """Token t takes the experts t, t + 1, ... of the round, so that rows spread evenly."""

    def __init__(self, tokens: int, device: str, experts: int = EXPERTS, hidden: int = HIDDEN,
                 width: int = WIDTH) -> None:  # fmt: skip
        generator = torch.Generator(device).manual_seed(tokens)
        self.x = torch.randn(tokens, hidden, device=device, generator=generator).bfloat16()
        first = torch.arange(tokens, device=device, dtype=torch.int32)[:, None] * TOP_K
        self.ids = (first + torch.arange(TOP_K, device=device, dtype=torch.int32)) % experts
        self.weights = torch.rand(tokens, TOP_K, device=device, generator=generator)
        self.halves = random_weights(experts, 2 * width, hidden, device, generator)  # gate, then up
        self.down = random_weights(experts, hidden, width, device, generator)
        self.gate_up = longcat_ops.interleave_gate_up(*self.halves)

    def ours(self) -> Callable[[], Tensor]:
        none = torch.zeros(len(self.x), device=self.x.device)
        rest = torch.zeros(1, dtype=torch.int32, device=self.x.device)
        routing = Routing(self.ids, self.weights, none, rest, rest, rest)
        return lambda: longcat_ops.fused_moe(self.x, routing, self.gate_up, self.down)

    def peer(self) -> Callable[[], Tensor]:
        return fish_scales.layer(self.x, self.halves, self.down, self.ids, self.weights)


def measured(tokens: int) -> tuple[dict[str, float], dict[str, str]]:
    problem, reasons = Problem(tokens, "cuda"), {}
    ours = problem.ours()
    expected, graphs = ours(), {OURS: graph_time.capture([ours], repeats=4)}
    if reason := fish_scales.available():
        reasons[fish_scales.NAME] = reason
    else:
        try:
            run = problem.peer()
            if wrong := disagreement(run(), expected):
                reasons[fish_scales.NAME] = wrong
            else:
                graphs[fish_scales.NAME] = graph_time.capture([run], repeats=4)
        except Exception as error:  # a peer must not end the run
            reasons[fish_scales.NAME] = f"{type(error).__name__}: {str(error)[:200]}"
    return {f"{name}_us": times.us for name, times in graph_time.take_turns(graphs).items()}, reasons


def predicted(tokens: int) -> tuple[dict[str, float], dict[str, str]]:
    device = devices.here()
    plan = predict(launches_of_plan(tokens * 4 * 4 * TOP_K, 1), device, overlaps=True)
    band = experts_us(share(tokens), device) + plan
    return band_us(band), {fish_scales.NAME: "not run"}


def ratio(times: dict[str, float]) -> dict[str, float]:
    """None of a peer that was not timed in this run."""
    peer = times.get(f"{fish_scales.NAME}_us")
    return {"peer_over_ours": round(peer / times[f"{OURS}_us"], 3)} if peer else {}


@pytest.mark.parametrize("tokens", TOKENS)
def test_beside_a_peer(tokens: int, report: Report) -> None:
    gpu = torch.cuda.is_available() and _library.load().device_supported(0)[0]
    cell = report.measured if gpu else report.predicted
    times, reasons = cell("expert_layer", measured if gpu else predicted, tokens)
    moved = round(share(tokens).bytes())
    floor_us, _ = perf.floor(perf.Counts("layer", moved), devices.here())
    times = {name: round(us, 2) for name, us in (times | {"floor_us": floor_us}).items()}
    launches = {OURS: LAUNCHES, fish_scales.NAME: fish_scales.LAUNCHES}
    report.info.update(op=f"experts of {tokens} tokens", tokens=tokens, bytes=moved, launches=launches,
                       absent=reasons, **times, **ratio(times))  # fmt: skip

"""The FP8 expert chain at the model's sizes: one rank's share of a layer, fused and unfused (bench/chain_model.py).

    python -m pytest bench/bench_fused_moe.py [-k EP128]

With a Hopper GPU: `fused_moe` by a plan, and the chains of PEERS, as CUDA graphs that take turns; a share's weights are
more than L2 holds. Without one: predictions, as in docs/fused_moe.md. Both beside the floor, the fused chain's bytes at
an H100's 3.35 TB/s. What travels between ranks, routing and plan are in neither.

The chain of DeepGEMM's products is a lower bound of what a framework has around them: its quantisation, SwiGLU and
combine are this project's kernels on compact rows, and nothing is moved between the two layouts. Its values are not
looked at; bench_moe_gemm.py checks the products.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import graph_time
import longcat_ops
from chain_model import (
    ALONE_US,
    EXPERTS,
    HIDDEN,
    OVERLAPPED_US,
    PEAK,
    REAL,
    WIDTH,
    K,
    Share,
    shares,
)
from longcat_ops import Plan, Routing, _library
from peers import deep_gemm

Run = Callable[[], object]
MASKED_BLOCK = 128  # rows of a group's matrix are a multiple
PEER_SECONDS = 180.0  # of the run; after that no peer is compiled
START = time.monotonic()


class Problem:
    """The tokens that arrive at one rank, its plan and its weights, of random codes."""

    def __init__(self, share: Share, device: str) -> None:
        self.share, self.groups, self.device = share, share.groups, device
        generator = torch.Generator().manual_seed(share.tokens)
        total = share.tokens * share.ranks
        chosen = torch.rand(total, EXPERTS, generator=generator).argsort(1)[:, :REAL].int()
        chosen = chosen.masked_fill(chosen >= self.groups, -1)
        chosen = chosen[(chosen >= 0).any(1)]
        self.ids = torch.full((max(1, len(chosen)), K), -1, dtype=torch.int32)
        self.ids[: len(chosen), :REAL] = chosen
        self.counts = torch.bincount(self.ids.flatten().long() + 1, minlength=self.groups + 1)[1:].int().to(device)
        self.ids = self.ids.to(device)
        tokens = len(self.ids)
        self.x = torch.randn(tokens, HIDDEN, device=device).bfloat16()
        rest = torch.zeros(1, dtype=torch.int32, device=device)
        weights = torch.rand(tokens, K, device=device)
        self.routing = Routing(self.ids, weights, torch.rand(tokens, device=device), rest, rest, rest)
        self.plan: Plan = longcat_ops.moe_plan(self.ids, self.groups)
        self.halves, self.down = self.weight(2 * WIDTH, HIDDEN), self.weight(HIDDEN, WIDTH)  # halves: gate, then up
        self.gate_up = longcat_ops.interleave_gate_up(*self.halves)

    def weight(self, n: int, k: int) -> tuple[Tensor, Tensor]:
        codes = torch.empty(self.groups, n, k, dtype=torch.uint8, device=self.device)
        for matrix in codes:
            matrix.random_(0, 120)  # positive, below the largest
        scales = torch.rand(self.groups, n // 128, k // 128, device=self.device)
        return codes.view(torch.float8_e4m3fn), scales * 2.0**-10

    def empty(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.zeros(shape, device=self.device, dtype=dtype)


def fused(p: Problem) -> Run | str:
    return partial(longcat_ops.fused_moe, p.x, p.routing, p.gate_up, p.down, plan=p.plan)


def unfused(p: Problem) -> Run | str:
    """Our products with a bf16 matrix between them, whose rows in use the host knows here."""
    rows, offsets, used = len(p.plan.src_of), p.plan.offsets, p.share.rows
    middle, y = p.empty(rows, 2 * WIDTH), p.empty(rows, HIDDEN)

    def run() -> Tensor:
        permuted = longcat_ops.moe_permute_quant(p.x, p.plan)
        longcat_ops.m_grouped_fp8_gemm_nt_offset(permuted, p.halves, middle, offsets, counts_ready=True)
        h = longcat_ops.silu_and_mul_quant_fp8(middle[:used])
        longcat_ops.m_grouped_fp8_gemm_nt_offset(h, p.down, y[:used], offsets, counts_ready=True)
        return longcat_ops.moe_combine(y, p.plan, p.routing, p.x)

    return run


def deep_gemm_masked(p: Problem) -> Run | str:
    if reason := deep_gemm.available():
        return reason
    product, groups, rows = deep_gemm.module().fp8_m_grouped_gemm_nt_masked, p.groups, p.share.rows
    height = -(-int(p.counts.max()) // MASKED_BLOCK) * MASKED_BLOCK
    compact, y = p.empty(rows, 2 * WIDTH), p.empty(len(p.plan.src_of), HIDDEN)

    def lhs(k: int) -> tuple[Tensor, Tensor]:
        codes = p.empty(groups, height, k, dtype=torch.uint8).random_(0, 120).view(torch.float8_e4m3fn)
        return codes, torch.rand(groups, k // 128, height, device=p.device).transpose(1, 2)

    x, h = lhs(HIDDEN), lhs(WIDTH)
    middle, out = p.empty(groups, height, 2 * WIDTH), p.empty(groups, height, HIDDEN)
    expected = max(1, -(-rows // groups))

    def run() -> Tensor:
        longcat_ops.moe_permute_quant(p.x, p.plan)
        product(x, p.halves, middle, p.counts, expected)
        longcat_ops.silu_and_mul_quant_fp8(compact)
        product(h, p.down, out, p.counts, expected)
        return longcat_ops.moe_combine(y, p.plan, p.routing, p.x)

    return run


PEERS: dict[str, Callable[[Problem], Run | str]] = {
    "fused": fused,
    "unfused": unfused,
    "deep_gemm_masked": deep_gemm_masked,
}


OURS = ("fused", "unfused")


def disagreement(problem: Problem) -> str | None:
    """Both of our chains quantise what lies between the products, one of them after a rounding to bf16: 2^-9 of it,
    so here and there another e4m3 code."""
    one, other = (PEERS[name](problem)().float() for name in OURS)
    error = float((one - other).norm() / other.norm())
    return None if error < 2.0**-5 else f"computes something else: {error:.3g} off in norm"


def measured(share: Share) -> tuple[dict[str, float], dict[str, str]]:
    """us of each chain; the reasons of those that have no time."""
    problem, graphs, reasons = Problem(share, "cuda"), {}, {}
    if wrong := disagreement(problem):
        return {}, {"fused": wrong}
    for name, prepare in PEERS.items():
        try:
            late = prepare is deep_gemm_masked and time.monotonic() - START > PEER_SECONDS
            run = f"{PEER_SECONDS:.0f} s of the run are over" if late else prepare(problem)
            if isinstance(run, str):
                reasons[name] = run
                continue
            run()
            graphs[name] = graph_time.capture([run], repeats=4)
        except Exception as error:  # a peer must not end the run
            reasons[name] = f"{type(error).__name__}: {str(error)[:200]}"
    return {f"{name}_us": times.us for name, times in graph_time.take_turns(graphs).items()}, reasons


def predicted(share: Share) -> tuple[dict[str, float], dict[str, str]]:
    """Of the same launches: routing and plan left out."""

    def us(fused_: bool, overhead: float) -> float:
        return sum(kernel.us(overhead) for kernel in share.kernels(fused_))

    return {"predicted_us": us(True, OVERLAPPED_US), "unfused_predicted_us": us(False, ALONE_US)}, {}


@pytest.mark.parametrize("share", shares(), ids=str)
def test_against_the_floor(share: Share, benchmark: Callable) -> None:
    gpu = torch.cuda.is_available() and _library.load().device_supported(0)[0]
    times, reasons = benchmark.pedantic(measured if gpu else predicted, (share,), rounds=1)
    assert not gpu or not (failed := [reasons[name] for name in OURS if name in reasons]), failed
    benchmark.group = "fused_moe"
    moved = round(share.bytes(True))
    times = {name: round(us, 2) for name, us in (times | {"floor_us": 1e6 * moved / PEAK}).items()}
    benchmark.extra_info.update(op=f"experts {share}", tokens=share.tokens, bytes=moved, absent=reasons, **times)

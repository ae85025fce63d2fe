"""The FP8 expert chain at the model's sizes: one rank's share of a layer, fused and unfused (longcat_ops.perf.chain).

    python -m pytest bench/chains/bench_fused_moe.py [-k EP128]

With a Hopper GPU: `fused_moe` by a plan, the same unfused, and the unfused chain of each peer of bench_moe_gemm.py, as
CUDA graphs that take turns; a share's weights are more than L2 holds. Without one: bands, as in docs/fused_moe.md.
Both stand beside the floor, which is the fused chain's bytes at the memory's peak. Neither has routing, plan or what
travels between ranks.

A peer's chain is a lower bound of what a framework spends around its products: quantisation, SwiGLU and combine are
this project's kernels on compact rows, and nothing is moved between layouts. A chain with wrong values is not timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import longcat_ops
from longcat_ops import Plan, Routing, _library, perf
from longcat_ops.perf.chain import Share, experts_us, shares
from longcat_ops.perf.dispatch import CHOICES, REAL
from peers import PEERS, Peer
from products import moe_gemm_problem
from products.moe_gemm_problem import Operands
from report import Report, band_us, devices, graph_time

Run = Callable[[], object]
PEER_SECONDS = 180.0  # of the run; after that no peer is compiled
START = time.monotonic()


class Problem:
    """The tokens that arrive at one rank, its plan and its weights, of random codes."""

    def __init__(self, share: Share, device: str, hidden: int | None = None, width: int | None = None) -> None:
        hidden, width = hidden or share.hidden, width or share.width
        self.share, self.groups, self.device = share, share.groups, device
        self.generator = torch.Generator(device).manual_seed(share.tokens)
        generator = torch.Generator().manual_seed(share.tokens)
        total = share.tokens * share.ranks
        chosen = torch.rand(total, share.experts, generator=generator).argsort(1)[:, :REAL].int()
        chosen = chosen.masked_fill(chosen >= self.groups, -1)
        chosen = chosen[(chosen >= 0).any(1)]
        self.ids = torch.full((max(1, len(chosen)), CHOICES), -1, dtype=torch.int32)
        self.ids[: len(chosen), :REAL] = chosen
        self.counts = torch.bincount(self.ids.flatten().long() + 1, minlength=self.groups + 1)[1:].int().to(device)
        self.ids = self.ids.to(device)
        tokens = len(self.ids)
        self.x = torch.randn(tokens, hidden, device=device, generator=self.generator).bfloat16()
        rest = torch.zeros(1, dtype=torch.int32, device=device)
        weights = torch.rand(tokens, CHOICES, device=device)
        self.routing = Routing(self.ids, weights, torch.rand(tokens, device=device), rest, rest, rest)
        self.plan: Plan = longcat_ops.moe_plan(self.ids, self.groups)
        self.halves, self.down = self.weight(2 * width, hidden), self.weight(hidden, width)  # halves: gate, then up
        self.gate_up = longcat_ops.interleave_gate_up(*self.halves)

    def weight(self, n: int, k: int) -> tuple[Tensor, Tensor]:
        return moe_gemm_problem.random_weights(self.groups, n, k, self.device, self.generator)

    def empty(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.zeros(shape, device=self.device, dtype=dtype)


def fused(p: Problem) -> Run | str:
    return partial(longcat_ops.fused_moe, p.x, p.routing, p.gate_up, p.down, plan=p.plan)


def unfused(p: Problem) -> Run | str:
    """Our products with a bf16 matrix between them, whose rows in use the host knows here."""
    rows, offsets, used = len(p.plan.src_of), p.plan.offsets, int(p.counts.sum())
    middle, y = p.empty(rows, p.halves[0].shape[1]), p.empty(rows, p.x.shape[1])

    def run() -> Tensor:
        permuted = longcat_ops.moe_permute_quant(p.x, p.plan)
        longcat_ops.m_grouped_fp8_gemm_nt_offset(permuted, p.halves, middle, offsets, counts_ready=True)
        h = longcat_ops.silu_and_mul_quant_fp8(middle[:used])
        longcat_ops.m_grouped_fp8_gemm_nt_offset(h, p.down, y[:used], offsets, counts_ready=True)
        return longcat_ops.moe_combine(y, p.plan, p.routing, p.x)

    return run


class Product(moe_gemm_problem.Problem):
    """One product of a chain, as the peers of bench/peers/ take it."""

    def __init__(self, p: Problem, rows: tuple[Tensor, Tensor], weight: tuple[Tensor, Tensor]) -> None:
        self.counts, self.device = p.counts.tolist(), p.device
        self.cell = SimpleNamespace(groups=p.groups, rows=sum(self.counts))
        _, self.n, self.k = weight[0].shape
        self.starts, self.offsets = p.plan.offsets.tolist(), p.plan.offsets
        self.copies = [Operands(*(t[: self.starts[-1]] for t in rows), *weight)]


def chain_of(peer: Peer, p: Problem) -> Run | str:
    """Between the peer's products run our kernels, on compact rows; each step reads what the first round left."""
    if reason := peer.available():
        return reason
    (first,) = peer.prepare(Product(p, longcat_ops.moe_permute_quant(p.x, p.plan), p.halves))
    first.run()
    middle = first.rows()
    (second,) = peer.prepare(Product(p, longcat_ops.silu_and_mul_quant_fp8(middle), p.down))
    second.run()
    y = p.empty(len(p.plan.src_of), p.x.shape[1])
    y[: len(middle)] = second.rows()

    def run() -> Tensor:
        longcat_ops.moe_permute_quant(p.x, p.plan)
        first.run()
        longcat_ops.silu_and_mul_quant_fp8(middle)
        second.run()
        return longcat_ops.moe_combine(y, p.plan, p.routing, p.x)

    return run


CHAINS: dict[str, Callable[[Problem], Run | str]] = {
    "fused": fused,
    "unfused": unfused,
    **{peer.name: partial(chain_of, peer) for peer in PEERS},
}


OURS = ("fused", "unfused")


def disagreement(out: Tensor, expected: Tensor) -> str | None:
    """All chains quantise the activations between the products. All but the fused one round them to bf16 first, an
    error of 2^-9, so single e4m3 codes differ."""
    error = float((out.float() - expected.float()).norm() / expected.float().norm())
    return None if error < 2.0**-5 else f"computes something else: {error:.3g} off in norm"


def measured(share: Share) -> tuple[dict[str, float], dict[str, str]]:
    """us of each chain, and the reasons why others have no time."""
    problem, graphs, reasons = Problem(share, "cuda"), {}, {}
    expected = fused(problem)()
    for name, prepare in CHAINS.items():
        try:
            late = name not in OURS and time.monotonic() - START > PEER_SECONDS
            run = f"{PEER_SECONDS:.0f} s of the run are over" if late else prepare(problem)
            if isinstance(run, str):
                reasons[name] = run
            elif wrong := disagreement(run(), expected):
                reasons[name] = wrong
            else:
                graphs[name] = graph_time.capture([run], repeats=4)
        except Exception as error:  # a peer must not end the run
            reasons[name] = f"{type(error).__name__}: {str(error)[:200]}"
    return {f"{name}_us": times.us for name, times in graph_time.take_turns(graphs).items()}, reasons


def predicted(share: Share) -> tuple[dict[str, float], dict[str, str]]:
    """The prediction for the same launches, without routing and plan."""
    fused_, unfused_ = (experts_us(share, devices.here(), form) for form in ("fused", "apart"))
    return band_us(fused_) | band_us(unfused_, "unfused_predicted"), {}


@pytest.mark.parametrize("share", shares(), ids=str)
def test_against_the_floor(share: Share, report: Report) -> None:
    gpu = torch.cuda.is_available() and _library.load().device_supported(0)[0]
    cell = report.measured if gpu else report.predicted
    times, reasons = cell("fused_moe", measured if gpu else predicted, share)
    assert not gpu or not (failed := [reasons[name] for name in OURS if name in reasons]), failed
    moved = round(share.bytes())
    floor_us, _ = perf.floor(perf.Counts("chain", moved), devices.here())
    times = {name: round(us, 2) for name, us in (times | {"floor_us": floor_us}).items()}
    report.info.update(op=f"experts {share}", tokens=share.tokens, bytes=moved, absent=reasons, **times)

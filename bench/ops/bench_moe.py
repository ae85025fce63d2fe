"""The router's product, routing, plan, permute and combine at the model's sizes: 512 FFN and 256 zero experts, 6144
columns, 12 choices, 8 of them FFN experts; float32 logits, bf16 rows.

    python -m pytest bench/ops/bench_moe.py [-k combine]

Each cell has the bytes that the kernel has to move and the floor: those bytes, or the flops, at the device's peak. With
a Hopper GPU a cell is timed as 20 calls in a CUDA graph, beside the plain-torch reference. Permute and combine are also
timed on 12 rows a token (what they would do without zero experts). The calls share their tensors, so what fits into L2
comes from there. Without a GPU, a band by longcat_ops.perf for overlapping launches takes the place of a time.

`router_gemm` reads bf16 terms that were split beforehand; its peer is torch's `F.linear` in float32, on rows that were
widened beforehand. Calls of each take turns on copies of the weight, 4 times L2 in all. Published by others (hpc-ops'
comparison) and not measured here: cuBLAS in float32 takes 10.10 us for 768 x 6144 and one row on an H200.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import longcat_ops
from longcat_ops import Plan, Routing, _library, perf, reference
from longcat_ops.perf import dispatch
from longcat_ops.perf.dispatch import EXPERTS, REAL, ZERO
from products.router_calls import router_calls
from report import Report, band_us, devices
from report.graph_time import microseconds

WIDTH, K = dispatch.HIDDEN, dispatch.CHOICES
TOKENS = [1, 8, 96, 192, 1024, 8192]
OPS = list(dispatch.OPS)
CALLS = 20  # in a graph


def routed(tokens: int, real: int) -> tuple[Plan, Routing]:
    """`real` FFN experts per token, at random places among the choices."""
    g = torch.Generator().manual_seed(tokens)
    experts = torch.rand(tokens, EXPERTS, generator=g).argsort(1)[:, :K].to(torch.int32)
    place = torch.rand(tokens, K, generator=g).argsort(1)
    ids = experts.masked_fill(place >= real, -1)
    weights = torch.rand(tokens, K, generator=g).masked_fill(ids < 0, 0)
    rest = torch.zeros(1, dtype=torch.int32)
    routing = Routing(ids, weights, torch.rand(tokens, generator=g), rest, rest, rest)
    return longcat_ops.moe_plan(ids.cuda(), EXPERTS), Routing(*(t.cuda() for t in routing))


def call(op: str, tokens: int, device: str) -> tuple[tuple, dict]:
    """Arguments of moe_route and, as fused_moe calls it, moe_plan."""
    if op == "moe_plan":
        ids, weights = (torch.empty(tokens, K, dtype=dtype, device=device) for dtype in (torch.int32, torch.float32))
        if device != "meta":
            ids, weights = routed(tokens, REAL)[1][:2]
        return (ids, EXPERTS, weights), {}
    experts = EXPERTS + ZERO
    sizes = {"top_k": K, "num_experts": experts, "num_zero_experts": ZERO, "scale": 6.0}
    return (torch.randn(tokens, experts, device=device), torch.randn(experts, device=device) * 1e-3), sizes


def bytes_moved(op: str, tokens: int) -> int:
    """What the op has to read and write, each byte once."""
    return round(sum(one.bytes for one in dispatch.OPS[op](tokens)))


def arguments(op: str, tokens: int, real: int) -> tuple:
    plan, routing = routed(tokens, real)
    x = torch.randn(tokens, WIDTH, device="cuda").bfloat16()
    if op.startswith("moe_permute"):
        return x, plan
    return torch.randn(len(plan.src_of), WIDTH, device="cuda").bfloat16(), plan, routing, x


def has_gpu() -> bool:
    return torch.cuda.is_available() and _library.load().device_supported(0)[0]


def in_graph(run: Callable[[], Tensor | tuple]) -> float:
    return microseconds([run] * CALLS)


def predicted(op: str, tokens: int) -> dict[str, float]:
    return band_us(perf.predict(dispatch.OPS[op](tokens), devices.here(), overlaps=True))


def measured(op: str, tokens: int) -> dict[str, float]:
    if op == "router_gemm":
        l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        own, others = router_calls(tokens, EXPERTS + ZERO, WIDTH, "cuda", l2_bytes)
        rounds = -(-CALLS // len(own))
        return {"time_us": microseconds(own * rounds), "torch_us": microseconds(others * rounds)}
    ours, theirs = getattr(longcat_ops, op), getattr(reference, op)
    if op in ("moe_route", "moe_plan"):
        args, kwargs = call(op, tokens, "cuda")
        return {
            "time_us": in_graph(lambda: ours(*args, **kwargs)),
            "torch_us": in_graph(lambda: theirs(*args, **kwargs)),
        }
    usual, twelve = (arguments(op, tokens, real) for real in (REAL, K))
    return {
        "time_us": in_graph(lambda: ours(*usual)),
        "twelve_rows_us": in_graph(lambda: ours(*twelve)),
        "torch_us": in_graph(lambda: theirs(*usual)),
    }


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("op", OPS)
def test_against_the_floor(op: str, tokens: int, report: Report) -> None:
    moved = bytes_moved(op, tokens)
    cell, run = (report.measured, measured) if has_gpu() else (report.predicted, predicted)
    times = cell("moe", run, op, tokens)
    floor_us, _ = perf.floor(dispatch.OPS[op](tokens), devices.here())
    rounded = {name: round(us, 4) for name, us in (times | {"floor_us": floor_us}).items()}
    report.info.update(op=op, tokens=tokens, bytes=moved, **rounded)

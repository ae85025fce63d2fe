"""Routing, plan, permute and combine at the model's sizes: 512 FFN and 256 zero experts, 6144 columns, 12 choices, 8 of
them FFN experts; float32 logits, bf16 rows.

    python -m pytest bench/bench_moe.py [-k combine]

Each cell has the bytes that the kernel has to move and the floor: those bytes at an H100's 3.35 TB/s. With a Hopper GPU
it is timed as 20 calls in a CUDA graph, beside the plain-torch reference and, for permute and combine, beside the same
op on 12 rows a token (what it would do without zero experts); the calls share their tensors, so what fits into L2 comes
from there. Without a GPU there is a prediction in the place of a time: the bytes at 3.0 TB/s, or all instructions of
moe_route where they take longer; 0.7 us for each trip to memory that has to wait for one before it, launches that
follow each other included; and the instructions of one warp of moe_route or moe_plan, 1.5 clocks each. The constants
are assumptions, but for the numbers of instructions, which are counted in the SASS.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import longcat_ops
from graph_time import microseconds
from longcat_ops import Plan, Routing, _library, reference
from report import Report

WIDTH, K, REAL, EXPERTS, ZERO = 6144, 12, 8, 512, 256
TOKENS = [1, 8, 96, 192, 1024, 8192]
PEAK, SUSTAINED, TRIP = 3.35e12, 3.0e12, 0.7e-6  # bytes/s, bytes/s, s
INSTRUCTIONS = {"moe_route": 2300, "moe_plan": 920}  # of a warp: a token; a block that is alone
CLOCK, ISSUE_SLOTS, STALL = 1.755e9, 132 * 4, 1.5  # Hz, of the device, clocks per instruction of one warp
OPS = ["moe_route", "moe_plan", "moe_permute_quant", "moe_combine"]
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


def trips(op: str, tokens: int) -> int:
    if (
        op == "moe_route"
    ):  # counts, in a launch of their own above 8 tokens; logits and bias; the chosen ones; the stores
        return 3 + (tokens > 8)
    # Choices; the stores. In three launches: choices, stores; counts, ids and ranks, stores; rows, stores.
    if op == "moe_plan":
        return 2 if tokens * K <= 8192 else 7
    return 3  # row_of; x and src_of, or y; the stores


def bytes_moved(op: str, tokens: int) -> int:
    """What the op has to read and write, each byte once."""
    if op in ("moe_route", "moe_plan"):
        args, kwargs = call(op, tokens, "meta")
        found = longcat_ops.explain(op, *args, **kwargs)
        return found.bytes_read + found.bytes_written
    rows, tables = tokens * REAL, 4 * tokens * K
    if op == "moe_permute_quant":
        return 2 * tokens * WIDTH + tables + rows * (4 + WIDTH + 4 * WIDTH // 128)
    return 2 * (2 * tokens + rows) * WIDTH + 2 * tables + 4 * tokens


def arguments(op: str, tokens: int, real: int) -> tuple:
    plan, routing = routed(tokens, real)
    x = torch.randn(tokens, WIDTH, device="cuda").bfloat16()
    if op == "moe_permute_quant":
        return x, plan
    return torch.randn(len(plan.src_of), WIDTH, device="cuda").bfloat16(), plan, routing, x


def has_gpu() -> bool:
    return torch.cuda.is_available() and _library.load().device_supported(0)[0]


def in_graph(run: Callable[[], Tensor | tuple]) -> float:
    return microseconds([run] * CALLS)


def predicted(op: str, tokens: int) -> dict[str, float]:
    seconds, instructions = bytes_moved(op, tokens) / SUSTAINED, INSTRUCTIONS.get(op, 0)
    if op == "moe_route":
        seconds = max(seconds, tokens * instructions / ISSUE_SLOTS / CLOCK)
    return {"predicted_us": 1e6 * (seconds + trips(op, tokens) * TRIP + instructions * STALL / CLOCK)}


def measured(op: str, tokens: int) -> dict[str, float]:
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
    rounded = {name: round(us, 4) for name, us in (times | {"floor_us": 1e6 * moved / PEAK}).items()}
    report.info.update(op=op, tokens=tokens, bytes=moved, **rounded)

"""The grouped FP8 GEMM at the model's sizes: gate_up [4096, 6144] and down [6144, 2048], G local experts of m tokens.

    python -m pytest bench/bench_moe_gemm.py [-k "down and G4"]

The floor is every byte once at the data sheet's bandwidth, or the products at its peak. With a Hopper GPU a cell is the
median of CUDA graphs of calls that take turns on copies of the operands, so that none finds its weights in L2, beside
the weights read by torch (their `sum` as int64). Without one there is the model's prediction in its place;
docs/moe_gemm.md has its constants. Nothing here has been compared with a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from graph_time import microseconds
from torch import Tensor

import longcat_ops
from longcat_ops import _library
from longcat_ops.ops.explain import Explanation

SHAPES = {"gate_up": (4096, 6144), "down": (6144, 2048)}
GROUPS = [1, 4, 8, 16, 32, 64]
TOKENS = [1, 8, 32, 64, 128, 256]
COLD_BYTES = 4 * 50 * 2**20  # four times the L2 of an H100

Call = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor, Tensor]


def operands(shape: str, groups: int, tokens: int, device: str) -> Call:
    """lhs, rhs, out, offsets. Random codes without a NaN: data with few bits set would draw less power."""
    (n, k), rows = SHAPES[shape], groups * tokens

    def codes(*sizes: int) -> Tensor:
        if device == "meta":
            return torch.empty(sizes, dtype=torch.float8_e4m3fn, device=device)
        sign = torch.randint(0, 2, sizes, dtype=torch.uint8, device=device) * 128
        return (torch.randint(0, 127, sizes, dtype=torch.uint8, device=device) + sign).view(torch.float8_e4m3fn)

    def scales(*sizes: int) -> Tensor:
        return torch.ones(sizes, device=device)

    offsets = torch.arange(0, rows + 1, tokens, dtype=torch.int32, device=device)
    lhs, rhs = (codes(rows, k), scales(rows, k // 128)), (codes(groups, n, k), scales(groups, n // 128, k // 128))
    return lhs, rhs, torch.empty(rows, n, dtype=torch.bfloat16, device=device), offsets


def explained(shape: str, groups: int, tokens: int) -> Explanation:
    call = operands(shape, groups, tokens, "meta")
    return longcat_ops.explain("m_grouped_fp8_gemm_nt_offset", *call, max_m_hint=tokens)


def has_gpu() -> bool:
    return torch.cuda.is_available() and _library.load().device_supported(0)[0]


def measured(shape: str, groups: int, tokens: int) -> dict[str, float]:
    n, k = SHAPES[shape]
    copies = max(2, -(-COLD_BYTES // (groups * n * k)))
    calls = [operands(shape, groups, tokens, "cuda") for _ in range(copies)]
    ours = [lambda c=c: longcat_ops.m_grouped_fp8_gemm_nt_offset(*c, max_m_hint=tokens) for c in calls]
    reads = [lambda c=c: c[1][0].view(torch.int64).sum() for c in calls]
    return {"time_us": microseconds(ours), "torch_read_us": microseconds(reads)}


def predicted(shape: str, groups: int, tokens: int) -> dict[str, float]:
    (best,) = [tile for tile in explained(shape, groups, tokens).candidates if tile.chosen]
    return {f"predicted_{p.device}_us": p.microseconds for p in best.predictions if p.device != "H800"}


@pytest.mark.parametrize("tokens", TOKENS, ids=lambda tokens: f"m{tokens}")
@pytest.mark.parametrize("groups", GROUPS, ids=lambda groups: f"G{groups}")
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_floor(shape: str, groups: int, tokens: int, benchmark: Callable) -> None:
    found = explained(shape, groups, tokens)
    times = benchmark.pedantic(measured if has_gpu() else predicted, (shape, groups, tokens), rounds=1)
    benchmark.group = "moe_gemm"
    floor = {f"floor_{floor.device}_us": floor.microseconds for floor in found.floors if floor.device != "H800"}
    rounded = {name: round(us, 2) for name, us in (times | floor).items()}
    benchmark.extra_info.update(shape=shape, groups=groups, tokens_per_group=tokens, **rounded)

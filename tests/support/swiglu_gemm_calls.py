"""Calls of the FP8 GEMM kernel with SwiGLU in the host emulator, and of the unfused kernels that it must equal."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch

from longcat_ops.testing.op_results import bits
from support.emulated_kernels import FILLER, apart, assert_gaps_untouched, run, scales
from support.gemm_calls import offset
from support.grouped import NAN_CODE, Fp8Pair, activations, select
from support.swiglu_oracle import halves, weights
from support.swiglu_oracle import run as run_op

FP8 = torch.float8_e4m3fn


NAME = "m_grouped_fp8_swiglu_gemm_nt_offset"


fused = functools.partial(run_op, op=functools.partial(run, NAME))


def unfused(parts: Sequence[Fp8Pair], rhs: Fp8Pair) -> list[Fp8Pair]:
    """The GEMM with float32 sums, for gate and for up, then silu_and_mul_quant_fp8."""
    weight_halves = [halves(rhs, g) for g in range(len(parts))]
    stacks = (tuple(map(torch.stack, zip(*half, strict=True))) for half in zip(*weight_halves, strict=True))
    gate, up = (offset(parts, stack, torch.float32) for stack in stacks)
    results = []
    for sums in map(torch.cat, zip(gate, up, strict=True), itertools.repeat(1)):
        rows, width = len(sums), sums.shape[1] // 2
        h, sh = torch.empty(rows, width, dtype=FP8), torch.empty(rows, -(-width // 128))
        run("silu_and_mul_quant_fp8", sums, h, sh)
        results.append((h, sh))
    return results


def special(size: int, k: int) -> Fp8Pair:
    """Random rows, some of them zero, huge, tiny, with a NaN code, or with an infinite or NaN scale."""
    q, s = select(activations((size,), k)[0], range(size))
    codes = q.view(torch.uint8)
    codes[1 % size] = 0
    s[2 % size] = 1e6
    s[3 % size] = 1e-30
    codes[5 % size, 7] = NAN_CODE
    s[6 % size, -1] = torch.inf
    s[8 % size, 0] = torch.nan
    return q, s


def check_channels_beyond_the_width_take_no_part() -> None:
    """They have zero weights: an infinite scale makes their sums NaN, but the real, positive sums infinite."""
    (q, s), (a, sa) = weights(1, 24, 128), activations((9,), 128)[0]
    positive, a = ((t.view(torch.uint8) & 0x7F).view(FP8) for t in (q, a))
    ((_, sh),) = fused([(a, torch.full_like(sa, torch.inf))], (positive, s))
    assert bool((sh == torch.inf).all())


def check_rows_apart(width: int, gap: int, start: int) -> None:
    """Nothing between rows and around the groups' rows is written, for any layout of h and its scales."""
    rhs = weights(2, width, 128)
    parts = activations((9, 35), 128)
    plain = fused(parts, rhs)
    a, sa = (torch.cat(both) for both in zip(*parts, strict=True))
    offsets = torch.tensor([0, 9, 40], dtype=torch.int32)  # and four rows of no group
    h = apart(44, width, FP8, gap, start)
    sh = scales(44, 2, column_major=gap > 0)
    run(NAME, a, sa, *rhs, offsets, None, True, h, sh)
    assert bits([(h[:9], sh[:9]), (h[9:40], sh[9:40])]) == bits([plain[0], tuple(t[:31] for t in plain[1])])
    for rest in (h[40:], sh[40:]):
        assert bool((rest.contiguous().view(torch.uint8) == FILLER).all())
    assert_gaps_untouched(h, sh)

"""m_grouped_bf16_swiglu_gemm_nt_offset: weights, an fp64 oracle of h with a bound for every element, and one call that
also checks that rows of no group are neither read nor written.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from longcat_ops import interleave_gate_up
from support import bf16_grouped
from support.bf16_calls import place, product
from support.near_oracle import silu_and_mul
from support.swiglu_oracle import LEAD, TAIL, Hidden, parts_of, prefilled

OP = torch.ops.longcat_ops.m_grouped_bf16_swiglu_gemm_nt_offset.default


@functools.cache
def weights(groups: int, width: int, k: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Random interleaved weights [G, 2I, K], so large that gates are around 1; tests share it and must not write to
    it."""
    w = torch.randn(groups, 2 * width, k, generator=torch.Generator().manual_seed(1000 * width + k)) / k**0.5
    return interleave_gate_up(w.to(dtype))


def halves(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """gate and up [..., I, K] of interleaved weights [..., 2I, K]."""
    values = gate_up.unflatten(-2, (-1, 2, 8))
    return tuple(values[..., i, :, :].flatten(-3, -2) for i in range(2))


def expected(parts: Sequence[Tensor], gate_up: Tensor, tensor_cores: bool | None = None) -> list[tuple[Tensor, Tensor]]:
    """h of each part in fp64, before it is rounded, and its bound: the errors of two sums plus those of SwiGLU in
    float32. tensor_cores: the emulator's; None: the sums are those of what runs the ops."""
    results = []
    for part, weight in zip(parts, gate_up, strict=True):
        (z, z_error), (v, v_error) = (
            bf16_grouped.product(part, half)
            if tensor_cores is None
            else product(part, half, "hopper" if tensor_cores else "exact")
            for half in halves(weight)
        )
        results.append(silu_and_mul(z, v, z_error, v_error))
    return results


def run(parts: Sequence[Tensor], gate_up: Tensor, *, quantise: bool = False, max_m_hint: int | None = None,
        counts_ready: bool = False, lead: int = LEAD, op: Callable[..., None] = OP) -> list[Hidden]:  # fmt: skip
    """h of each part from the bare op, in prefilled outputs; rows of no group are NaN in the input and stay unwritten
    in the output."""
    starts = list(itertools.accumulate([lead, *map(len, parts)]))
    a = place(parts, starts[:-1], starts[-1] + TAIL)
    h, sh = prefilled(len(a), gate_up.shape[1] // 2, None if quantise else a.dtype)
    op(a, gate_up, torch.tensor(starts, dtype=torch.int32), max_m_hint, counts_ready, h, sh)
    return parts_of(h, sh, starts)

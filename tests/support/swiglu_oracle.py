"""m_grouped_fp8_swiglu_gemm_nt_offset: weights, an fp64 oracle of h with a bound for every element, and one call that
also checks that rows of no group are neither read nor written.

The op's result is the quantisation of float32 values within that bound, which `assert_quantised` checks by interval
arithmetic: a scale or a code is right if some such values have it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from longcat_ops import interleave_gate_up
from longcat_ops.testing import op_cases
from support.grouped import SENTINEL, Fp8Pair, by_columns, gemm, place, wide
from support.near_oracle import FLOOR_SCALE, assert_quantised, silu_and_mul

__all__ = ["FLOOR_SCALE", "OP", "UNSET_CODE", "assert_quantised", "expected", "halves", "run", "weights"]

OP = torch.ops.longcat_ops.m_grouped_fp8_swiglu_gemm_nt_offset.default
UNSET_CODE = 0x11
_LEAD, _TAIL = 2, 3  # rows of no group before the first and after the last one


@functools.cache
def weights(groups: int, width: int, k: int) -> Fp8Pair:
    """Random interleaved weights, gate and up of [G, I, K] each; tests share them and must not write to them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 * width + k)
        return interleave_gate_up(*op_cases.gate_up(groups, width, k))


def halves(pair: Fp8Pair, group: int) -> tuple[Fp8Pair, Fp8Pair]:
    """gate and up of one group of an interleaved weight: 8 rows of values and one row of scales in turn."""
    q, s = pair[0][group], pair[1][group]
    values = q.view(torch.uint8).unflatten(0, (-1, 2, 8))
    return tuple((values[:, i].flatten(0, 1).view(q.dtype), s[i::2]) for i in range(2))


def expected(parts: Sequence[Fp8Pair], gate_up: Fp8Pair,
             tensor_cores: bool | None = None) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
    """h of each part in fp64, before it is quantised, and its bound: the errors of two sums (as in `grouped.gemm`),
    plus those of SwiGLU in float32."""
    results = []
    for group, part in enumerate(parts):
        if not len(part[0]):
            results.append((torch.zeros(0, gate_up[0].shape[1] // 2, dtype=torch.float64),) * 2)
            continue
        gate, up = (wide(*half, block_rows=128) for half in halves(gate_up, group))
        (z, z_error), (v, v_error) = gemm(part, gate, tensor_cores), gemm(part, up, tensor_cores)
        results.append(silu_and_mul(z, v, z_error, v_error))
    return results


def run(parts: Sequence[Fp8Pair], gate_up: Fp8Pair, *, column_major: bool = False, max_m_hint: int | None = None,
        counts_ready: bool = False, lead: int = _LEAD, op: Callable[..., None] = OP) -> list[Fp8Pair]:  # fmt: skip
    """(h, sh) of each part from the bare op, in prefilled outputs; rows of no group are NaN in the input and stay
    unwritten in the output."""
    starts = list(itertools.accumulate([lead, *(len(q) for q, _ in parts)]))
    a, sa = place(parts, starts[:-1], starts[-1] + _TAIL)
    sa = by_columns(sa) if column_major else sa
    width = gate_up[0].shape[1] // 2
    codes = torch.full((len(a), width), UNSET_CODE, dtype=torch.uint8)
    sh = torch.full((len(a), -(-width // 128)), SENTINEL)
    offsets = torch.tensor(starts, dtype=torch.int32)
    op(a, sa, *gate_up, offsets, max_m_hint, counts_ready, codes.view(a.dtype), sh)
    for outside in (slice(0, lead), slice(starts[-1], None)):
        assert bool((codes[outside] == UNSET_CODE).all()) and bool((sh[outside] == SENTINEL).all())
    h = codes.view(a.dtype)
    return [(h[start:end], sh[start:end]) for start, end in itertools.pairwise(starts)]

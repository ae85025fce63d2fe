"""m_grouped_fp8_swiglu_gemm_nt_offset: weights, an fp64 oracle of h with a bound for every element, and one call that
also checks that rows of no group are neither read nor written. What the same product of bf16 shares: h and its places.

A quantised h is the quantisation of float32 values within that bound, which `assert_quantised` checks by interval
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
from support.grouped import SENTINEL, Fp8Pair, assert_close, by_columns, gemm, place, wide
from support.near_oracle import FLOOR_SCALE, assert_quantised, silu_and_mul

__all__ = ["FLOOR_SCALE", "LEAD", "OP", "TAIL", "UNSET_CODE", "Hidden", "assert_hidden", "assert_quantised", "expected",
           "halves", "is_unset", "parts_of", "prefilled", "run", "weights"]  # fmt: skip

OP = torch.ops.longcat_ops.m_grouped_fp8_swiglu_gemm_nt_offset.default
UNSET_CODE = 0x11
Hidden = Fp8Pair | Tensor  # quantised, or not
LEAD, TAIL = 2, 3  # rows of no group before the first and after the last one


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
        counts_ready: bool = False, quantise: bool = True, lead: int = LEAD,
        op: Callable[..., None] = OP) -> list[Hidden]:  # fmt: skip
    """h of each part from the bare op, in prefilled outputs; rows of no group are NaN in the input and stay unwritten
    in the output."""
    starts = list(itertools.accumulate([lead, *(len(q) for q, _ in parts)]))
    a, sa = place(parts, starts[:-1], starts[-1] + TAIL)
    sa = by_columns(sa) if column_major else sa
    h, sh = prefilled(len(a), gate_up[0].shape[1] // 2, None if quantise else torch.bfloat16)
    op(a, sa, *gate_up, torch.tensor(starts, dtype=torch.int32), max_m_hint, counts_ready, h, sh)
    return parts_of(h, sh, starts)


def prefilled(rows: int, width: int, plain: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
    """h and sh; of the dtype `plain` and None. `is_unset` knows what fills them."""
    if plain is not None:
        return torch.full((rows, width), SENTINEL, dtype=plain), None
    codes = torch.full((rows, width), UNSET_CODE, dtype=torch.uint8)
    return codes.view(torch.float8_e4m3fn), torch.full((rows, -(-width // 128)), SENTINEL)


def is_unset(h: Tensor, sh: Tensor | None) -> bool:
    if sh is None:
        return bool((h == SENTINEL).all())
    return bool((h.view(torch.uint8) == UNSET_CODE).all()) and bool((sh == SENTINEL).all())


def parts_of(h: Tensor, sh: Tensor | None, starts: Sequence[int]) -> list[Hidden]:
    """The rows of each part, after a check that those of no group are unset."""

    def rows(*span: int | None) -> tuple[Tensor, Tensor | None]:
        return h[slice(*span)], None if sh is None else sh[slice(*span)]

    assert is_unset(*rows(0, starts[0])) and is_unset(*rows(starts[-1], None))
    return [h[slice(*span)] if sh is None else rows(*span) for span in itertools.pairwise(starts)]


def assert_hidden(out: Hidden | Sequence[Tensor], value: Tensor, error: Tensor) -> None:
    """h, quantised or rounded once, is that of float32 values within `error` of `value`."""
    if isinstance(out, Tensor) or len(out) == 1:
        assert_close(out if isinstance(out, Tensor) else out[0], value, error)
    else:
        assert_quantised(*out, value, error)

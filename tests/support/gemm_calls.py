"""Calls of the grouped FP8 GEMM kernels in the host emulator, and checks of their results."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from support.emulated_kernels import run
from support.grouped import (
    ROUNDING,
    SENTINEL,
    Fp8Pair,
    activations,
    by_columns,
    collect,
    gemm,
    place,
    weights,
)

LEAD = 3  # rows of no group before the first
SCHEDULES = list(itertools.product(("random", "eager", "lazy"), (1, 2, 3)))


def offset(parts: Sequence[Fp8Pair], rhs: Fp8Pair, dtype: torch.dtype = torch.bfloat16, *, hint: int | None = None,
           ready: bool = False, column_major: bool = False) -> list[Tensor]:  # fmt: skip
    """Rows of no group, before and after the groups' rows, are NaN; the output there must stay unchanged."""
    starts = list(itertools.accumulate([LEAD, *(len(q) for q, _ in parts)]))
    a, sa = place(parts, starts[:-1], starts[-1] + 5)
    out = torch.full((len(a), rhs[0].shape[1]), SENTINEL, dtype=dtype)
    offsets = torch.tensor(starts, dtype=torch.int32)
    sa = by_columns(sa) if column_major else sa
    run("m_grouped_fp8_gemm_nt_offset", a, sa, *rhs, offsets, hint, ready, 1, out)
    return collect(out, parts, starts[:-1])


def masked(parts: Sequence[Fp8Pair], rhs: Fp8Pair, spare: int, mean: int = 1) -> list[Tensor]:
    groups, rows = len(parts), max(len(q) for q, _ in parts) + spare
    starts = [g * rows for g in range(groups)]
    a, sa = (t.view(groups, rows, -1) for t in place(parts, starts, groups * rows))
    out = torch.full((groups, rows, rhs[0].shape[1]), SENTINEL, dtype=torch.bfloat16)
    counts = torch.tensor([len(q) for q, _ in parts], dtype=torch.int32)
    run("m_grouped_fp8_gemm_nt_masked", a, sa, *rhs, counts, mean, out)
    return collect(out.flatten(0, 1), parts, starts)


def contiguous(parts: Sequence[Fp8Pair], rhs: Fp8Pair, gap: Sequence[int]) -> list[Tensor]:
    """Puts rows with the indices `gap`, which belong to no group, before every group and after the last one."""
    indices, starts = list(gap), []
    for g, (q, _) in enumerate(parts):
        starts.append(len(indices))
        indices += [g] * len(q) + list(gap)
    a, sa = place(parts, starts, len(indices))
    out = torch.full((len(a), rhs[0].shape[1]), SENTINEL, dtype=torch.bfloat16)
    run("m_grouped_fp8_gemm_nt_contiguous", a, sa, *rhs, torch.tensor(indices, dtype=torch.int32), out)
    return collect(out, parts, starts)


def dense(part: Fp8Pair, rhs: Fp8Pair, group: int) -> Tensor:
    out = torch.full((len(part[0]), rhs[0].shape[1]), SENTINEL, dtype=torch.bfloat16)
    run("fp8_gemm_nt", *part, rhs[0][group], rhs[1][group], 1, out)
    return out


def one_weight(groups: int, n: int, k: int) -> tuple[Fp8Pair, Tensor]:
    """The same weight for every group, and its fp64 values."""
    (b, sb), wide = weights(1, n, k)
    return (b.expand(groups, -1, -1).contiguous(), sb.expand(groups, -1, -1)), wide[0]


def assert_near(outs: Sequence[Tensor], parts: Sequence[Fp8Pair], wide: Sequence[Tensor], mma: str) -> None:
    """Each element is within the error bound of its own terms."""
    for out, part, b in zip(outs, parts, wide, strict=True):
        value, bound = gemm(part, b, tensor_cores=mma == "hopper")
        limit = bound + ROUNDING[out.dtype] * (value.abs() + bound)
        error = (out.double() - value).abs()
        assert bool((error <= limit).all()), float((error / limit).nan_to_num(torch.inf).max())


def far_apart(t: Tensor, stride: int) -> Tensor:
    """512 views of t's shape, `stride` elements apart; 0, 256 and 511 hold t, the others stay untouched in memory."""
    no_reserve = 0x4000
    size = 512 * stride * t.element_size()
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    apart = torch.frombuffer(memory, dtype=t.dtype).as_strided((512, *t.shape), (stride, *t.stride()))
    for g in (0, 256, 511):
        apart[g] = t
    return apart


def check_512_experts_need_64_bit_offsets() -> None:
    """Weights and scales lie as far apart as the weights of a gate_up projection; three of the groups have rows."""
    stride = 4096 * 6144
    (b, sb), wide = weights(1, 40, 256)
    codes, scales = far_apart(b[0].view(torch.uint8), stride), far_apart(sb[0], stride)
    (part,) = activations((12,), 256)
    offsets = torch.tensor([0, *[2] * 256, *[4] * 255, 12], dtype=torch.int32)
    out = torch.full((12, 40), SENTINEL, dtype=torch.bfloat16)
    run("m_grouped_fp8_gemm_nt_offset", *part, codes.view(b.dtype), scales, offsets, None, False, 1, out)
    assert_near([out], [part], wide, "exact")

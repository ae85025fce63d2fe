"""Calls of the bf16 GEMM kernels in the host emulator, and checks of their results."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from support.bf16_grouped import place
from support.emulated_kernels import run
from support.gemm_calls import LEAD
from support.grouped import SENTINEL, assert_close, collect, cut_by_tensor_cores

BF16 = torch.bfloat16


@functools.cache
def weights(groups: int, n: int, k: int) -> Tensor:
    """Random bf16 [G, N, K]; tests share it and must not write to it."""
    return torch.randn(groups, n, k, generator=torch.Generator().manual_seed(1000 * n + k)).bfloat16()


def activations(sizes: Sequence[int], k: int) -> list[Tensor]:
    """Random rows of each group, whose sizes differ by powers of two from row to row."""
    rows = torch.randn(sum(sizes), k, generator=torch.Generator().manual_seed(k))
    rows *= 2.0 ** (torch.arange(sum(sizes)) % 7 - 3)[:, None]
    return list(rows.bfloat16().split(list(sizes)))


def offsets_of(parts: Sequence[Tensor]) -> list[int]:
    return list(itertools.accumulate([LEAD, *map(len, parts)]))


def offset(parts: Sequence[Tensor], b: Tensor, dtype: torch.dtype = BF16, *, hint: int | None = None,
           ready: bool = False, split_k: int = 1) -> list[Tensor]:  # fmt: skip
    """Rows of no group, before and after the groups' rows, are NaN; the output there must stay unchanged."""
    starts = offsets_of(parts)
    a = place(parts, starts[:-1], starts[-1] + 5)
    out = torch.full((len(a), b.shape[1]), SENTINEL, dtype=dtype)
    run("m_grouped_bf16_gemm_nt_offset", a, b, torch.tensor(starts, dtype=torch.int32), hint, ready, split_k, out)
    return _collect(out, parts, starts[:-1])


def masked(parts: Sequence[Tensor], b: Tensor, spare: int, mean: int = 1) -> list[Tensor]:
    groups, rows = len(parts), max(map(len, parts)) + spare
    starts = [g * rows for g in range(groups)]
    a = place(parts, starts, groups * rows).view(groups, rows, -1)
    out = torch.full((groups, rows, b.shape[1]), SENTINEL, dtype=BF16)
    counts = torch.tensor([len(part) for part in parts], dtype=torch.int32)
    run("m_grouped_bf16_gemm_nt_masked", a, b, counts, mean, out)
    return _collect(out.flatten(0, 1), parts, starts)


def contiguous(parts: Sequence[Tensor], b: Tensor, gap: Sequence[int]) -> list[Tensor]:
    """Puts rows with the indices `gap`, which belong to no group, before every group and after the last one."""
    indices, starts = list(gap), []
    for g, part in enumerate(parts):
        starts.append(len(indices))
        indices += [g] * len(part) + list(gap)
    a = place(parts, starts, len(indices))
    out = torch.full((len(a), b.shape[1]), SENTINEL, dtype=BF16)
    run("m_grouped_bf16_gemm_nt_contiguous", a, b, torch.tensor(indices, dtype=torch.int32), out)
    return _collect(out, parts, starts)


def dense(a: Tensor, b: Tensor, dtype: torch.dtype = BF16, split_k: int = 1) -> Tensor:
    out = torch.full((len(a), len(b)), SENTINEL, dtype=dtype)
    run("bf16_gemm_nt", a, b, split_k, out)
    return out


def product(a: Tensor, b: Tensor, mma: str) -> tuple[Tensor, Tensor]:
    """a @ b.T in fp64, and the bound of `grouped.gemm` for its float32 sums; on tensor cores, an instruction has 16 of
    K and keeps 25 fraction bits of terms, 23 of their sum, and 64 of K are promoted at a time."""
    x, y = a.double(), b.double()
    bound = math.expm1((a.shape[1] + 3) * math.log1p(2.0**-24)) * (x.abs() @ y.abs().mT)
    if mma == "hopper":
        bound += cut_by_tensor_cores(x, y, step=16, block=64, term_bits=25, sum_bits=23)
    return x @ y.mT, bound


def assert_near(outs: Sequence[Tensor], parts: Sequence[Tensor], b: Sequence[Tensor], mma: str) -> None:
    """Each element is within the error bound of its own terms."""
    for out, part, weight in zip(outs, parts, b, strict=True):
        assert_close(out, *product(part, weight, mma))


def _collect(out: Tensor, parts: Sequence[Tensor], starts: Sequence[int]) -> list[Tensor]:
    return collect(out, [(part, part) for part in parts], starts)

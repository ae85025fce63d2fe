"""Calls of the split-K FP8 GEMM kernels in the host emulator, and the sums that they must equal."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from longcat_ops.ops import emulated
from support.emulated_kernels import run
from support.gemm_calls import LEAD
from support.grouped import SENTINEL, Fp8Pair, activations, collect, place, weights

SPLITS = (2, 4)


def offset(parts: Sequence[Fp8Pair], rhs: Fp8Pair, split_k: int, dtype: torch.dtype = torch.float32, *,
           hint: int | None = None, ready: bool = False) -> list[Tensor]:  # fmt: skip
    """Rows of no group, before and after the groups' rows, are NaN; the output there must stay unchanged."""
    starts = list(itertools.accumulate([LEAD, *(len(q) for q, _ in parts)]))
    a, sa = place(parts, starts[:-1], starts[-1] + 5)
    out = torch.full((len(a), rhs[0].shape[1]), SENTINEL, dtype=dtype)
    run("m_grouped_fp8_gemm_nt_offset", a, sa, *rhs, torch.tensor(starts, dtype=torch.int32), hint, ready, split_k, out)
    return collect(out, parts, starts[:-1])


def columns(pair: Fp8Pair, begin: int, end: int) -> Fp8Pair:
    """Views of the blocks `begin` to `end` of 128 columns."""
    return pair[0][..., 128 * begin : 128 * end], pair[1][..., begin:end]


def sums_of_pieces(parts: Sequence[Fp8Pair], rhs: Fp8Pair, split_k: int) -> list[Tensor]:
    blocks = rhs[1].shape[-1]
    piece = -(-blocks // split_k)
    total: list[Tensor] = []
    for i in range(split_k):
        begin, end = i * piece, min((i + 1) * piece, blocks)
        sums = [torch.zeros(len(q), rhs[0].shape[1]) for q, _ in parts]
        if begin < end:
            sums = offset([columns(part, begin, end) for part in parts], columns(rhs, begin, end), 1)
        total = [t + s for t, s in zip(total, sums, strict=True)] if total else sums
    return total


@functools.cache
def expected(sizes: tuple[int, ...], n: int, k: int, split_k: int, mma: str) -> list[Tensor]:
    emulated.configure(mma=mma)
    return sums_of_pieces(activations(sizes, k), weights(len(sizes), n, k)[0], split_k)

"""Grouped FP8 GEMMs: operands, an fp64 oracle with an error bound for every element, and one call per layout that also
checks that rows of no group are neither read nor written; then the checks that all three layouts share.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from longcat_ops import (
    m_grouped_fp8_gemm_nt_contiguous,
    m_grouped_fp8_gemm_nt_masked,
    m_grouped_fp8_gemm_nt_offset,
    per_block_quant_fp8,
    per_token_group_quant_fp8,
)
from longcat_ops.testing.op_cases import activation, stacked_weight
from longcat_ops.testing.op_results import bits
from support import carried
from support.build_oracle import codes_of, decode

Fp8Pair = tuple[Tensor, Tensor]
Run = Callable[..., list[Tensor]]

# Rows of each group, for one, three and eight groups. The CPU path takes up to 8 rows at once. Some cases have empty
# groups in any place, only empty groups, or only the last group active.
SIZES = [
    (0,),
    (1,),
    (7,),
    (8,),
    (9,),
    (33,),
    (0, 0, 0),
    (0, 0, 9),
    (33, 0, 7),
    (1, 8, 9),
    (0, 0, 0, 0, 0, 0, 0, 8),
    (9, 0, 33, 1, 0, 7, 8, 1),
]
WIDTHS = list(itertools.product((8, 72, 136, 576), (128, 160, 384)))  # N, K: below, at and past the edge of a block
if os.environ.get("LONGCAT_OPS_BACKEND") == "emu":  # slow; test_moe_gemm_emu.py has the kernel's other cases
    SIZES = [(0,), (9,), (0, 0, 0), (33, 0, 7), (9, 0, 33, 1, 0, 7, 8, 1)]
    WIDTHS = [(8, 160), (136, 384), (576, 128)]
FEW_SIZES = ((0,), (0, 0, 0), (9, 0, 33, 1, 0, 7, 8, 1))  # all numbers of rows, none, one group
OUT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SENTINEL = 7.0
NAN_CODE = 0x7F
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 0.0}  # of a float32 sum, relative
_LEAD, _TAIL = 2, 3  # rows of no group before the first and after the last one


def few_sizes() -> list[Any]:
    """Parameters of a test: every run has FEW_SIZES, only the long tier all SIZES, which are few on the emulator."""
    every = os.environ.get("LONGCAT_OPS_BACKEND") == "emu"
    return [pytest.param(sizes, marks=() if every or sizes in FEW_SIZES else pytest.mark.slow) for sizes in SIZES]


def wide(q: Tensor, s: Tensor, *, block_rows: int) -> Tensor:
    """fp64 values of an FP8 pair [..., R, K] with a scale per block_rows x 128; e4m3 times float32 is exact in fp64."""
    rows, columns = q.shape[-2:]
    scales = s.double().repeat_interleave(128, -1)[..., :columns]
    scales = scales.repeat_interleave(block_rows, -2)[..., :rows, :]
    return torch.from_numpy(decode(codes_of(q))).mul_(scales)


def gemm(lhs: Fp8Pair, b: Tensor, tensor_cores: bool | None = None) -> tuple[Tensor, Tensor]:
    """lhs @ b.T in fp64, and the error bound of summing the same terms in float32 in any order, or on tensor cores
    (None: on tensor cores if the tests run on a GPU).

    With u = 2^-24: widening a and b and their product round each term three times, and no term goes through more than
    K - 1 additions. So the error is at most ((1 + u)^(K + 2) - 1) * sum |terms|; one more factor covers the rounding of
    the fp64 sums.
    """
    a = wide(*lhs, block_rows=1)
    terms = [a.abs() @ rows.abs().mT for rows in b.split(512)]  # small copies: large ones would be mapped anew
    bound = math.expm1((a.shape[1] + 3) * math.log1p(2.0**-24)) * torch.cat(terms, 1)
    cut = carried.active if tensor_cores is None else tensor_cores
    return a @ b.mT, bound + cut_by_tensor_cores(a, b) if cut else bound


def cut_by_tensor_cores(a: Tensor, b: Tensor, *, step: int = 32, block: int = 128, term_bits: int = 13,
                        sum_bits: int = 13) -> Tensor:  # fmt: skip
    """Upper bound of what tensor cores lose in sums over each `block` of K. An instruction aligns `step` products and
    the accumulator to the largest of these and truncates them all after term_bits fraction bits, then their sum after
    sum_bits: a truncation loses less than 2^-bits of the value aligned to. For e4m3, the defaults, that is 2^-9 of sum
    |terms| where the terms are alike, and 2^-6 where one dwarfs the others. Not covered: rows of nothing but
    subnormals, which are aligned like 2^-6.
    """
    lost = torch.zeros(len(a), len(b), dtype=a.dtype)
    for at in range(0, a.shape[1], step):
        x, y = a[:, at : at + step], b[:, at : at + step]
        if at % block == 0:
            total, cut = torch.zeros_like(lost), torch.zeros_like(lost)
        sizes = x.abs() @ y.abs().mT
        product = torch.minimum(sizes, x.abs().amax(1, keepdim=True) * y.abs().amax(1))  # at least the largest
        off = (step + 1) * 2.0**-term_bits * torch.maximum(product, total.abs() + cut)
        total = total + x @ y.mT
        off += 2.0**-sum_bits * (total.abs() + cut + off)
        cut, lost = cut + off, lost + off
    return lost


def assert_close(out: Tensor, value: Tensor, bound: Tensor) -> None:
    """`out` is a float32 sum within `bound` of `value`, rounded once to its dtype. NaN is never close."""
    limit = bound + ROUNDING[out.dtype] * (value.abs() + bound)
    error = (out.double() - value).abs()
    wrong = ~(error <= limit)
    assert out.shape == value.shape
    assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()} elements are off: {error[wrong][:4].tolist()}"


@functools.cache
def weights(groups: int, n: int, k: int) -> tuple[Fp8Pair, Tensor]:
    """Random weights [G, N, K] and their fp64 values; tests share them and must not write to them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1000 * n + k)
        rhs = stacked_weight(groups, n, k)
    return rhs, wide(*rhs, block_rows=128)


def activations(sizes: Sequence[int], k: int) -> list[Fp8Pair]:
    """Random rows of each group."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(k)
        q, s = activation(sum(sizes) + 1, k)
    spans = [slice(end - size, end) for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]
    return [(q[span], s[span]) for span in spans]


def select(pair: Fp8Pair, rows: Iterable[int]) -> Fp8Pair:
    index = torch.tensor(list(rows), dtype=torch.int64)
    q, s = pair
    return q.view(torch.uint8)[index].view(q.dtype), s[index]


def by_columns(s: Tensor) -> Tensor:
    """The same scales [..., R, C] with strides (..., 1, R rounded up to 4); the padding is NaN."""
    rows, columns = s.shape[-2:]
    storage = torch.full((*s.shape[:-2], columns, rows + -rows % 4), torch.nan)
    return storage.mT[..., :rows, :].copy_(s)


def place(parts: Sequence[Fp8Pair], starts: Sequence[int], rows: int) -> Fp8Pair:
    """[rows, K] with each part at its start; values and scales of all other rows are NaN."""
    q = torch.full((rows, parts[0][0].shape[1]), NAN_CODE, dtype=torch.uint8)
    s = torch.full((rows, parts[0][1].shape[1]), torch.nan)
    for (part_q, part_s), start in zip(parts, starts, strict=True):
        q[start : start + len(part_q)] = part_q.view(torch.uint8)
        s[start : start + len(part_q)] = part_s
    return q.view(torch.float8_e4m3fn), s


def collect(out: Tensor, parts: Sequence[Fp8Pair], starts: Sequence[int], fill: float = SENTINEL) -> list[Tensor]:
    """The rows of each part, after a check that all other rows of `out` [M, N] still hold `fill`."""
    free = torch.ones(len(out), dtype=torch.bool)
    spans = [slice(start, start + len(q)) for (q, _), start in zip(parts, starts, strict=True)]
    for span in spans:
        free[span] = False
    assert bool((out[free].isnan() if math.isnan(fill) else out[free] == fill).all())
    return [out[span] for span in spans]


def run_offset(parts: Sequence[Fp8Pair], rhs: Fp8Pair, dtype: torch.dtype = torch.float32, *,
               column_major: bool = False, lead: int = _LEAD, fill: float = SENTINEL,
               **hints: object) -> list[Tensor]:  # fmt: skip
    starts = list(itertools.accumulate([lead, *(len(q) for q, _ in parts)]))
    a, sa = place(parts, starts[:-1], starts[-1] + _TAIL)
    out = torch.full((len(a), rhs[0].shape[1]), fill, dtype=dtype)
    lhs = a, by_columns(sa) if column_major else sa
    assert m_grouped_fp8_gemm_nt_offset(lhs, rhs, out, torch.tensor(starts, dtype=torch.int32), **hints) is out
    return collect(out, parts, starts[:-1], fill)


def run_masked(parts: Sequence[Fp8Pair], rhs: Fp8Pair, dtype: torch.dtype = torch.float32, *,
               column_major: bool = False, spare: int = _TAIL, fill: float = SENTINEL,
               expected_m: int = 4) -> list[Tensor]:  # fmt: skip
    groups, rows = len(parts), max(len(q) for q, _ in parts) + spare
    starts = [g * rows for g in range(groups)]
    a, sa = (t.view(groups, rows, t.shape[1]) for t in place(parts, starts, groups * rows))
    out = torch.full((groups, rows, rhs[0].shape[1]), fill, dtype=dtype)
    masked_m = torch.tensor([len(q) for q, _ in parts], dtype=torch.int32)
    lhs = a, by_columns(sa) if column_major else sa
    assert m_grouped_fp8_gemm_nt_masked(lhs, rhs, out, masked_m, expected_m) is out
    return collect(out.flatten(0, 1), parts, starts, fill)


def run_contiguous(parts: Sequence[Fp8Pair], rhs: Fp8Pair, dtype: torch.dtype = torch.float32, *,
                   column_major: bool = False, gap: int = _LEAD, fill: float = SENTINEL) -> list[Tensor]:  # fmt: skip
    """Puts `gap` rows of index -1 before every group and after the last one."""
    indices, starts = [-1] * gap, []
    for g, (q, _) in enumerate(parts):
        starts.append(len(indices))
        indices += [g] * len(q) + [-1] * gap
    a, sa = place(parts, starts, len(indices))
    out = torch.full((len(a), rhs[0].shape[1]), fill, dtype=dtype)
    lhs = a, by_columns(sa) if column_major else sa
    assert m_grouped_fp8_gemm_nt_contiguous(lhs, rhs, out, torch.tensor(indices, dtype=torch.int32)) is out
    return collect(out, parts, starts, fill)


def check_against_fp64(run: Run, sizes: Sequence[int], n: int, k: int) -> None:
    rhs, b = weights(len(sizes), n, k)
    parts = activations(sizes, k)
    expected = [gemm(part, b[g]) for g, part in enumerate(parts)]
    results = {dtype: run(parts, rhs, dtype) for dtype in OUT_DTYPES}
    for outs in results.values():
        for out, (value, bound) in zip(outs, expected, strict=True):
            assert_close(out, value, bound)
    for dtype in OUT_DTYPES:  # each dtype rounds the same float32 sum once
        assert bits(results[dtype]) == bits([out.to(dtype) for out in results[torch.float32]])


def check_outliers(run: Run, dtype: torch.dtype) -> None:
    """Rows and a weight hold 1e6 beside values around 1; each sum stays within the bound of its own terms."""
    generator = torch.Generator().manual_seed(1)
    x, w = torch.randn(11, 384, generator=generator), torch.randn(3, 136, 384, generator=generator)
    x[0, 5], x[3, 130], x[9, 383] = 1e6, -1e6, 1e6
    w[1, 7, 200] = 1e6
    rhs = tuple(torch.stack(parts) for parts in zip(*(per_block_quant_fp8(part) for part in w), strict=True))
    parts = [per_token_group_quant_fp8(rows) for rows in x.split([3, 6, 2])]
    b = wide(*rhs, block_rows=128)
    outs = run(parts, rhs, dtype)
    for g, out in enumerate(outs):
        assert_close(out, *gemm(parts[g], b[g]))
    assert all(out.abs().max() > 1e5 for out in outs)


def check_nan_stays(run: Run) -> None:
    """A NaN in a row makes its output row NaN; a NaN weight scale makes the 128 columns of its block and group NaN."""
    (q, s), _ = weights(3, 136, 384)
    s = s.clone()
    s[1, 0, 2] = torch.nan
    parts = [select(part, range(len(part[0]))) for part in activations((4, 3, 9), 384)]
    parts[2][0].view(torch.uint8)[6, 200] = NAN_CODE
    expected = [torch.zeros(len(part), 136, dtype=torch.bool) for part, _ in parts]
    expected[1][:, :128] = True
    expected[2][6] = True
    for out, nan in zip(run(parts, (q, s)), expected, strict=True):
        assert torch.equal(out.isnan(), nan)


def check_rows_stand_alone(run: Run, rhs: Fp8Pair, k: int) -> None:
    """In a group of up to 8 rows, as in decode, a row's bits depend neither on the other rows nor on its place."""
    (pool,) = activations((24,), k)
    nan, outlier = 8, 9
    pool[0].view(torch.uint8)[nan] = NAN_CODE
    pool[1][outlier] *= 1e6
    whole = run([select(pool, []), select(pool, range(8)), select(pool, [])], rhs)[1]
    assert len(set(bits(list(whole)))) == 8
    for groups in (
        ([], [3], []),
        ([10, 11], [3], [12]),
        ([], [nan, 3], [nan]),
        ([13, 14, 15, 16, 17, 18, 19, 20, 21], [7, 6, 5, 4, 3, 2, 1, 0], [nan]),
        ([nan], [0, 1, 2, outlier, 4], [outlier]),
        ([outlier], [22, 23, 5, 6, nan, 7, 10], []),
    ):
        out = run([select(pool, rows) for rows in groups], rhs)[1]
        for i, row in enumerate(groups[1]):
            if row < 8:
                assert bits(out[i]) == bits(whole[row]), (groups, row)

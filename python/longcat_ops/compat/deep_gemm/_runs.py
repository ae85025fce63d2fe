"""What the call forms run: each function makes a form's calls on small operands and returns the largest difference, in
units of what is allowed (below 1 is right). It raises AssertionError where anything but a value is wrong.
"""

from __future__ import annotations

import torch

import longcat_ops.compat.deep_gemm as deep_gemm

from . import _generators as make
from .utils import align, ceil_div, per_block_cast_to_fp8, per_token_cast_to_fp8

# (N, K) of DeepGEMM's dense and grouped products. Here each side is divided, and rounded up to a multiple of 8.
DENSE = ((2112, 7168), (576, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048))
GROUPED = ((6144, 7168), (7168, 3072), (4096, 4096), (4096, 2048))
BY = 32, 16
MASKED_ROWS = 176  # of each group; DeepGEMM's tests have 4096


def _small(sizes: tuple[int, int]) -> list[int]:
    return [align(ceil_div(size, by), 8) for size, by in zip(sizes, BY, strict=True)]


def _require(holds: bool, text: str) -> None:
    if not holds:
        raise AssertionError(text)


def _set_alignment(expected_m: int | None = None) -> None:
    alignment = deep_gemm.get_theoretical_mk_alignment_for_contiguous_layout(expected_m)
    deep_gemm.set_mk_alignment_for_contiguous_layout(alignment)


def dense(rows: tuple[int, ...], swap: str = "mnk", dtype: torch.dtype = torch.bfloat16, *, column_major: bool = False,
          **keywords: object) -> float:  # fmt: skip
    """swap: which of the rows m and DENSE's n and k take the places of M, N and K."""
    found = []
    for m in rows:
        for sizes in DENSE:
            n, k = _small(sizes)
            at = {"m": m, "n": n, "k": k}
            m_, n_, k_ = (at[letter] for letter in swap)
            (a, x), ((q, s), w) = make.activation(m_, k_), make.weight(1, n_, k_)
            d = make.marked(m_, n_, dtype=dtype)
            deep_gemm.fp8_fp4_gemm_nt(make.by_columns(a) if column_major else a, (q[0], s[0]), d, **keywords)
            found.append(make.difference(d, x @ w[0].mT))
    return max(found)


def contiguous(groups: int, mean: int, *, column_major: bool = False) -> float:
    """All of d counts, as in DeepGEMM's test: the rows of index -1, NaN in a, become 0."""
    found = []
    for sizes in GROUPED:
        _set_alignment()
        rows = make.counts(groups, mean)
        problem = make.grouped(rows, *make.aligned_starts(rows), *_small(sizes))
        a = make.by_columns(problem.a) if column_major else problem.a
        d = make.marked(len(a[0]), _small(sizes)[0])
        deep_gemm.m_grouped_fp8_fp4_gemm_nt_contiguous(
            a, problem.b, d, make.indices(problem), disable_ue8m0_cast=True, use_psum_layout=False,
            ensure_zero_padding=False, recipe=None, recipe_a=None, recipe_b=None,
        )  # fmt: skip
        _require(not any(bool(d[gap].any()) for gap in make.gaps(problem.spans, len(d))), "padding of d is not 0")
        found.append(make.worst(d, problem))
    return max(found)


def psum(groups: int, mean: int, *, zero_padding: bool) -> float:
    """The rows between two groups are 0 in a, as in DeepGEMM's test, and must be in d."""
    found = []
    for sizes in GROUPED:
        _set_alignment()
        rows = make.counts(groups, mean)
        problem = make.grouped(rows, *make.aligned_starts(rows), *_small(sizes))
        make.zero_padding(problem)
        d = make.marked(len(problem.a[0]), _small(sizes)[0])
        deep_gemm.m_grouped_fp8_fp4_gemm_nt_contiguous(
            problem.a, problem.b, d, make.ends(problem), use_psum_layout=True, ensure_zero_padding=zero_padding
        )
        _require(not any(bool(d[gap].any()) for gap in make.gaps(problem.spans, len(d))), "padding of d is not 0")
        found.append(make.worst(d, problem))
    return max(found)


def masked(groups: int, mean: int, *, column_major: bool = False) -> float:
    """Rows from the counts on are NaN in a, and d must keep its mark there."""
    found = []
    for sizes in GROUPED:
        _set_alignment(int(mean * 1.2))
        (n, k), size = _small(sizes), groups * MASKED_ROWS
        rows = make.counts(groups, mean, MASKED_ROWS)
        problem = make.grouped(rows, range(0, size, MASKED_ROWS), size, n, k)
        a = problem.a[0].view(groups, MASKED_ROWS, k), problem.a[1].view(groups, MASKED_ROWS, -1)
        d = make.marked(groups, MASKED_ROWS, n)
        deep_gemm.m_grouped_fp8_fp4_gemm_nt_masked(
            make.by_columns(a) if column_major else a, problem.b, d, torch.tensor(rows, dtype=torch.int32),
            int(mean * 1.2), disable_ue8m0_cast=True, recipe=None, recipe_a=None, recipe_b=None,
        )  # fmt: skip
        flat = d.view(size, n)
        kept = all(bool((flat[gap] == make.MARK).all()) for gap in make.gaps(problem.spans, size))
        _require(kept, "rows beyond masked_m were written")
        found.append(make.worst(flat, problem))
    return max(found)


def masked_as_psum(groups: int, mean: int) -> float:
    """The same problem, its groups moved together: rows between them are NaN in a, those behind keep d's mark."""
    found = []
    for sizes in GROUPED:
        _set_alignment(int(mean * 1.2))
        rows = make.counts(groups, mean, MASKED_ROWS)
        starts, end = make.aligned_starts(rows)
        problem = make.grouped(rows, starts, max(groups * MASKED_ROWS, end), *_small(sizes))
        d = make.marked(len(problem.a[0]), _small(sizes)[0])
        deep_gemm.m_grouped_fp8_fp4_gemm_nt_contiguous(
            problem.a, problem.b, d, make.ends(problem), disable_ue8m0_cast=True, use_psum_layout=True,
            expected_m_for_psum_layout=int(mean * 1.2), recipe=None, recipe_a=None, recipe_b=None,
        )  # fmt: skip
        _require(bool((d[end:] == make.MARK).all()), "rows behind the last group were written")
        found.append(make.worst(d, problem))
    return max(found)


def layouts() -> float:
    """Scales of every shape of DeepGEMM's test, in both orders: values, strides, and no copy where none is needed."""
    for groups in (1, 2, 4):
        for mn in (4096, 4097, 8192):
            for columns in (1, 56, 57):
                shape = (mn, columns) if groups == 1 else (groups, mn, columns)
                sf = torch.arange(groups * mn * columns, dtype=torch.float32).view(shape)
                line = deep_gemm.get_tma_aligned_size(mn, 4)
                strides = (line * columns, 1, line)[-sf.ndim :]
                for source in (sf, sf.mT.contiguous().mT):
                    out = deep_gemm.get_mn_major_tma_aligned_tensor(source)
                    _require(out.stride() == strides and torch.equal(out, sf), f"{shape} came out as {out.stride()}")
                    count = None if groups == 1 else groups
                    again = deep_gemm.transform_sf_into_required_layout(out, mn, columns * 128, (1, 128), count)
                    _require(again.data_ptr() == out.data_ptr(), "scales were copied that lay right")
    return 0.0


def casts() -> float:
    """Compares with the values before the cast, by DeepGEMM's limit."""
    x = torch.randn(136, 896, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = []
    for rows, cast in ((1, per_token_cast_to_fp8), (128, per_block_cast_to_fp8)):
        pair = cast(x, use_ue8m0=False, gran_k=128)
        found.append(float(deep_gemm.testing.calc_diff(make.wide(pair, rows), x)) / 1e-3)
    return max(found)


# Forms that are refused: the call raises.


def call(name: str, *arguments: object, **keywords: object) -> float:
    getattr(deep_gemm, name)(*arguments, **keywords)
    return 0.0


def accumulate(**keywords: object) -> float:
    """Adds to c in place."""
    (a, _), ((q, s), _) = make.activation(8, 256), make.weight(1, 64, 256)
    c = torch.zeros(8, 64)
    return call("fp8_fp4_gemm_nt", a, (q[0], s[0]), c, c=c, **keywords)


def packed_fp4() -> float:
    (a, _), b = make.activation(8, 256), (torch.zeros(64, 128, dtype=torch.int8), torch.ones(64, 8))
    return call("fp8_fp4_gemm_nt", a, b, make.marked(8, 64), recipe_a=(1, 128), recipe_b=(1, 32))

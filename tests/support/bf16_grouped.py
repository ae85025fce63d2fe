"""The bf16 GEMMs: operands, an fp64 oracle with an error bound for every element, and one call per layout that also
checks that nothing but the rows of groups is read or written; then the checks that the layouts share.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from longcat_ops import (
    m_grouped_bf16_gemm_nt_contiguous,
    m_grouped_bf16_gemm_nt_masked,
    m_grouped_bf16_gemm_nt_offset,
)
from longcat_ops.testing.op_results import bits
from support import carried
from support.grouped import OUT_DTYPES, SENTINEL, assert_close

Run = Callable[..., list[Tensor]]

BACKEND = "cuda" if carried.active else os.environ.get("LONGCAT_OPS_BACKEND", "cpu")
DTYPES = (torch.bfloat16, torch.float32) if BACKEND in ("cpu", "reference") else (torch.bfloat16,)
# Rows of each group: the CPU kernel takes blocks of 4 and panels of 64. Empty groups in any place, only empty ones,
# rows in the first or the last group alone.
SIZES = [(1,), (9,), (0, 0), (0, 0, 7), (33, 0, 0), (1, 8, 0, 9), (4, 65, 3)]
WIDTHS = [(8, 8), (24, 136), (136, 24)]  # N, K: of less than a step of 32, of some and a part
_LEAD, _TAIL, _GAP = 2, 3, 8  # rows of no group before the first and after the last one; columns between rows


def product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a @ b.T in fp64, and the bound of a float32 sum of the same terms.

    The CPU kernel adds K / 16 terms in each lane, after one rounding of each product, and folds 16 lanes in 4 steps.
    Others add in any order, tensor cores with up to 17 truncations to 24 bits for each 16 of K.
    """
    k, terms = a.shape[1], a.double().abs() @ b.double().abs().T
    return a.double() @ b.double().T, terms * (k / 16 + 6 if BACKEND == "cpu" else 3 * k + 6) * 2.0**-24


def operands(sizes: Sequence[int], n: int, k: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """Rows of each group, and weights [G, N, K]."""
    draw = torch.Generator().manual_seed(1000 * n + k)
    rows, b = torch.randn(sum(sizes), k, generator=draw), torch.randn(len(sizes), n, k, generator=draw)
    return list(rows.to(dtype).split(list(sizes))), b.to(dtype)


def apart(t: Tensor, fill: float = torch.nan) -> Tensor:
    """A copy whose rows, and groups, lie apart in memory that holds `fill`."""
    storage = torch.full((*t.shape[:-2], t.shape[-2] + 1, t.shape[-1] + _GAP), fill, dtype=t.dtype)
    return storage[..., : t.shape[-2], : t.shape[-1]].copy_(t)


def place(parts: Sequence[Tensor], starts: Sequence[int], rows: int) -> Tensor:
    """[rows, K] with each part at its start, NaN in all other rows."""
    a = torch.full((rows, parts[0].shape[1]), torch.nan, dtype=parts[0].dtype)
    for part, start in zip(parts, starts, strict=True):
        a[start : start + len(part)] = part
    return a


def _collect(out: Tensor, parts: Sequence[Tensor], starts: Sequence[int]) -> list[Tensor]:
    """The rows of each part, after a check that other rows, and what lies between rows, still hold the sentinel."""
    rows = list(out) if out.dim() == 2 else [row for group in out for row in group]
    spans = [rows[start : start + len(part)] for part, start in zip(parts, starts, strict=True)]
    results = [torch.stack(span) if span else out.new_empty(0, out.shape[-1]) for span in spans]
    for row in itertools.chain(*spans):
        row.fill_(SENTINEL)
    assert bool((torch.empty(0, dtype=out.dtype).set_(out.untyped_storage()) == SENTINEL).all())
    return results


def _out(sizes: tuple[int, ...], dtype: torch.dtype, wide: bool) -> Tensor:
    out = torch.full(sizes, SENTINEL, dtype=dtype)
    return apart(out, SENTINEL) if wide else out


def run_offset(parts: Sequence[Tensor], b: Tensor, dtype: torch.dtype = torch.float32, *, wide: bool = False,
               lead: int = _LEAD, **hints: Any) -> list[Tensor]:  # fmt: skip
    """wide: rows and groups of all operands lie apart."""
    starts = list(itertools.accumulate([lead, *map(len, parts)]))
    a = place(parts, starts[:-1], starts[-1] + _TAIL)
    out, (a, b) = _out((len(a), b.shape[1]), dtype, wide), (map(apart, (a, b)) if wide else (a, b))
    assert m_grouped_bf16_gemm_nt_offset(a, b, out, torch.tensor(starts, dtype=torch.int32), **hints) is out
    return _collect(out, parts, starts[:-1])


def run_masked(parts: Sequence[Tensor], b: Tensor, dtype: torch.dtype = torch.float32, *, wide: bool = False,
               spare: int = _TAIL, expected_m: int = 4) -> list[Tensor]:  # fmt: skip
    groups, rows = len(parts), max(map(len, parts)) + spare
    starts = [g * rows for g in range(groups)]
    a = place(parts, starts, groups * rows).view(groups, rows, parts[0].shape[1])
    out, (a, b) = _out((groups, rows, b.shape[1]), dtype, wide), (map(apart, (a, b)) if wide else (a, b))
    masked_m = torch.tensor([len(part) for part in parts], dtype=torch.int32)
    assert m_grouped_bf16_gemm_nt_masked(a, b, out, masked_m, expected_m) is out
    return _collect(out, parts, starts)


def run_contiguous(parts: Sequence[Tensor], b: Tensor, dtype: torch.dtype = torch.float32, *, wide: bool = False,
                   gap: int = _LEAD) -> list[Tensor]:  # fmt: skip
    """Puts `gap` rows of index -1 before every group and after the last one."""
    indices, starts = [-1] * gap, []
    for g, part in enumerate(parts):
        starts.append(len(indices))
        indices += [g] * len(part) + [-1] * gap
    a = place(parts, starts, len(indices))
    out, (a, b) = _out((len(a), b.shape[1]), dtype, wide), (map(apart, (a, b)) if wide else (a, b))
    assert m_grouped_bf16_gemm_nt_contiguous(a, b, out, torch.tensor(indices, dtype=torch.int32)) is out
    return _collect(out, parts, starts)


LAYOUTS = {"offset": run_offset, "masked": run_masked, "contiguous": run_contiguous}


def check_against_fp64(run: Run, sizes: Sequence[int], n: int, k: int, dtype: torch.dtype) -> None:
    parts, b = operands(sizes, n, k, dtype)
    results = {out: run(parts, b, out) for out in OUT_DTYPES}
    for outs in results.values():
        for out, part, weight in zip(outs, parts, b, strict=True):
            assert_close(out, *product(part, weight))
    for out in OUT_DTYPES:  # each dtype rounds the same float32 sum once
        assert bits(results[out]) == bits([t.to(out) for t in results[torch.float32]])
        assert bits(run(parts, b, out, wide=True)) == bits(results[out])


def check_integers(run: Run, dtype: torch.dtype) -> None:
    """Sums of integers below 2^24 are exact in any order."""
    draw = torch.Generator().manual_seed(2)
    parts = [torch.randint(-16, 17, (rows, 1000), generator=draw).to(dtype) for rows in (5, 0, 66)]
    b = torch.randint(-16, 17, (3, 40, 1000), generator=draw).to(dtype)
    for out, part, weight in zip(run(parts, b), parts, b, strict=True):
        assert torch.equal(out.double(), part.double() @ weight.double().T)


def check_nan_stays(run: Run) -> None:
    """A NaN in a row of a makes its row of out NaN, a NaN in a row of a weight its column of that group."""
    parts, b = operands((4, 3, 9), 24, 136, torch.bfloat16)
    b = b.clone()
    b[1, 5, 131] = torch.nan
    parts[2][6, 100] = torch.nan
    expected = [torch.zeros(len(part), 24, dtype=torch.bool) for part in parts]
    expected[1][:, 5], expected[2][6] = True, True
    for out, nan in zip(run(parts, b), expected, strict=True):
        assert torch.equal(out.isnan(), nan)

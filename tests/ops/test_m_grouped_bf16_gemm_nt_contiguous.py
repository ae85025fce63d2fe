"""m_grouped_bf16_gemm_nt_contiguous against fp64; a row whose index is no group is neither read nor written."""

from __future__ import annotations

import pytest
import torch

from longcat_ops import m_grouped_bf16_gemm_nt_contiguous
from support import bf16_grouped
from support.bf16_grouped import DTYPES, SIZES, WIDTHS, operands, product, run_contiguous
from support.grouped import SENTINEL, assert_close


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), WIDTHS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_against_fp64(sizes: tuple[int, ...], n: int, k: int, dtype: torch.dtype) -> None:
    """Each dtype of out is within its bound, also where rows and groups lie apart; rows of no group are NaN in a."""
    bf16_grouped.check_against_fp64(run_contiguous, sizes, n, k, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_integers_are_exact(dtype: torch.dtype) -> None:
    bf16_grouped.check_integers(run_contiguous, dtype)


def test_nan_stays_in_its_row_and_group() -> None:
    bf16_grouped.check_nan_stays(run_contiguous)


@pytest.mark.parametrize(
    "indices",
    [
        [2, 2, 2, 0, 0, 1],  # any order of the groups
        [0, -1, 0, 0, -1, 1, 1, -1],  # gaps inside of a group
        [3, 3, 0, 0, 4, 1, 100, 2**31 - 1],  # no such group
        [-1, -2, -(2**31), 2, -1],
        [3, -1, 3],  # nothing to do
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_only_rows_of_a_group_are_read_and_written(indices: list[int], dtype: torch.dtype) -> None:
    (a, *_), b = operands((len(indices), 0, 0), 72, 168, dtype)
    out = torch.full((len(indices), 72), SENTINEL)
    valid = [0 <= g < 3 for g in indices]
    a[~torch.tensor(valid)] = torch.nan
    m_grouped_bf16_gemm_nt_contiguous(a, b, out, torch.tensor(indices, dtype=torch.int32))
    for row, g in enumerate(indices):
        if valid[row]:
            assert_close(out[row : row + 1], *product(a[row : row + 1], b[g]))
        else:
            assert bool((out[row] == SENTINEL).all())

"""m_grouped_fp8_gemm_nt_contiguous against fp64; a row whose index is no group is neither read nor written."""

from __future__ import annotations

import pytest
import torch

from longcat_ops import m_grouped_fp8_gemm_nt_contiguous
from longcat_ops.testing.op_results import bits
from support import grouped
from support.grouped import (
    NAN_CODE,
    SENTINEL,
    SIZES,
    WIDTHS,
    activations,
    assert_close,
    gemm,
    run_contiguous,
    select,
    weights,
)


@pytest.mark.parametrize(("n", "k"), WIDTHS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_against_fp64(sizes: tuple[int, ...], n: int, k: int) -> None:
    """Each dtype of out is within its bound, with NaN rows of index -1 before and after every group."""
    grouped.check_against_fp64(run_contiguous, sizes, n, k)


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_rows_of_a_group_are_read_and_written(indices: list[int], dtype: torch.dtype) -> None:
    rhs, wide_b = weights(3, 72, 160)
    (part,) = activations((len(indices),), 160)
    a, sa = part = select(part, range(len(indices)))
    for row, g in enumerate(indices):
        if not 0 <= g < 3:
            a.view(torch.uint8)[row] = NAN_CODE
            sa[row] = torch.nan
    out = torch.full((len(indices), 72), SENTINEL, dtype=dtype)
    m_grouped_fp8_gemm_nt_contiguous(part, rhs, out, torch.tensor(indices, dtype=torch.int32))
    for row, g in enumerate(indices):
        if 0 <= g < 3:
            assert_close(out[row : row + 1], *gemm(select(part, [row]), wide_b[g]))
        else:
            assert bool((out[row] == SENTINEL).all())


@pytest.mark.parametrize("sizes", [(1, 0, 2), (9, 8, 1)], ids=str)
def test_scales_by_columns_give_the_same_bits(sizes: tuple[int, ...]) -> None:
    rhs, _ = weights(3, 72, 384)
    parts = activations(sizes, 384)
    assert bits(run_contiguous(parts, rhs, column_major=True)) == bits(run_contiguous(parts, rhs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outliers(dtype: torch.dtype) -> None:
    grouped.check_outliers(run_contiguous, dtype)


def test_nan_stays_in_its_row_and_block() -> None:
    grouped.check_nan_stays(run_contiguous)


@pytest.mark.parametrize(("n", "k"), [(136, 384), (8, 160), (576, 128)])
def test_a_row_of_a_small_group_does_not_depend_on_its_neighbours(n: int, k: int) -> None:
    grouped.check_rows_stand_alone(run_contiguous, weights(3, n, k)[0], k)

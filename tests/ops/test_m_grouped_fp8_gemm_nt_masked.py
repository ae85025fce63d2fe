"""m_grouped_fp8_gemm_nt_masked against fp64; only the first rows of each group are read and written."""

from __future__ import annotations

import pytest
import torch

from longcat_ops import m_grouped_fp8_gemm_nt_masked
from longcat_ops.testing.op_results import bits
from support import grouped
from support.grouped import SENTINEL, SIZES, WIDTHS, activations, assert_close, gemm, place, run_masked, weights


@pytest.mark.parametrize(("n", "k"), WIDTHS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_against_fp64(sizes: tuple[int, ...], n: int, k: int) -> None:
    """Each dtype of out is within its bound, with NaN in the rows of each group from masked_m on."""
    grouped.check_against_fp64(run_masked, sizes, n, k)


@pytest.mark.parametrize("beyond", [6, 40, 2**31 - 1])
def test_masked_m_beyond_the_rows_is_clamped(beyond: int) -> None:
    """Operands and out lie inside larger tensors, so that an access past the last row would show."""
    groups, rows, margin = 3, 5, 64
    rhs, wide_b = weights(groups, 72, 160)
    parts = activations((rows,) * groups, 160)
    total = groups * rows
    starts = [margin + g * rows for g in range(groups)]
    inner = slice(margin, margin + total)
    lhs = tuple(t[inner].view(groups, rows, -1) for t in place(parts, starts, total + 2 * margin))
    for masked_m in ([beyond, 0, beyond], [0, beyond, 0], [1, 1, beyond], [-1, beyond, -(2**31)]):
        storage = torch.full((total + 2 * margin, 72), SENTINEL)
        out = storage[inner].view(groups, rows, 72)
        m_grouped_fp8_gemm_nt_masked(lhs, rhs, out, torch.tensor(masked_m, dtype=torch.int32), 1)
        assert bool((storage[:margin] == SENTINEL).all()) and bool((storage[margin + total :] == SENTINEL).all())
        for g, m in enumerate(masked_m):
            m = min(max(m, 0), rows)
            value, bound = gemm(parts[g], wide_b[g])
            assert_close(out[g, :m], value[:m], bound[:m])
            assert bool((out[g, m:] == SENTINEL).all())


def test_a_hint_does_not_change_a_bit() -> None:
    rhs, _ = weights(3, 136, 384)
    parts = activations((9, 0, 33), 384)
    plain = bits(run_masked(parts, rhs))
    for expected_m in (0, 1, 33, 64, 10**9, 2**40):
        assert bits(run_masked(parts, rhs, expected_m=expected_m)) == plain


@pytest.mark.parametrize("sizes", [(1, 0, 2), (9, 8, 1)], ids=str)
def test_scales_by_columns_give_the_same_bits(sizes: tuple[int, ...]) -> None:
    rhs, _ = weights(3, 72, 384)
    parts = activations(sizes, 384)
    assert bits(run_masked(parts, rhs, column_major=True)) == bits(run_masked(parts, rhs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outliers(dtype: torch.dtype) -> None:
    grouped.check_outliers(run_masked, dtype)


def test_nan_stays_in_its_row_and_block() -> None:
    grouped.check_nan_stays(run_masked)


@pytest.mark.parametrize(("n", "k"), [(136, 384), (8, 160), (576, 128)])
def test_a_row_of_a_small_group_does_not_depend_on_its_neighbours(n: int, k: int) -> None:
    grouped.check_rows_stand_alone(run_masked, weights(3, n, k)[0], k)

"""m_grouped_bf16_gemm_nt_masked against fp64; only the first rows of each group are read and written."""

from __future__ import annotations

import pytest
import torch

from longcat_ops import m_grouped_bf16_gemm_nt_masked
from longcat_ops.testing.op_results import bits
from support import bf16_grouped
from support.bf16_grouped import DTYPES, SIZES, WIDTHS, operands, product, run_masked
from support.grouped import SENTINEL, assert_close


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), WIDTHS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_against_fp64(sizes: tuple[int, ...], n: int, k: int, dtype: torch.dtype) -> None:
    """Each dtype of out is within its bound, also where rows and groups lie apart; rows of no group are NaN in a."""
    bf16_grouped.check_against_fp64(run_masked, sizes, n, k, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_integers_are_exact(dtype: torch.dtype) -> None:
    bf16_grouped.check_integers(run_masked, dtype)


def test_nan_stays_in_its_row_and_group() -> None:
    bf16_grouped.check_nan_stays(run_masked)


@pytest.mark.parametrize("beyond", [6, 40, 2**31 - 1])
def test_masked_m_beyond_the_rows_is_clamped(beyond: int) -> None:
    """a and out lie inside larger tensors, so that an access past the last row would show."""
    groups, rows, margin = 3, 5, 64
    parts, b = operands((rows,) * groups, 72, 168, torch.bfloat16)
    inner = slice(margin, margin + groups * rows)
    a = torch.full((groups * rows + 2 * margin, 168), torch.nan).bfloat16()
    a[inner] = torch.cat(parts)
    for masked_m in ([beyond, 0, beyond], [0, beyond, 0], [1, 1, beyond], [-1, beyond, -(2**31)]):
        storage = torch.full((groups * rows + 2 * margin, 72), SENTINEL)
        out = storage[inner].view(groups, rows, 72)
        counts = torch.tensor(masked_m, dtype=torch.int32)
        m_grouped_bf16_gemm_nt_masked(a[inner].view(groups, rows, 168), b, out, counts, 1)
        for g, m in enumerate(masked_m):
            m = min(max(m, 0), rows)
            assert_close(out[g, :m], *product(parts[g][:m], b[g]))
            out[g, :m] = SENTINEL
        assert bool((storage == SENTINEL).all())


def test_a_hint_does_not_change_a_bit() -> None:
    parts, b = operands((9, 0, 33), 136, 384, torch.bfloat16)
    plain = bits(run_masked(parts, b))
    for expected_m in (0, 1, 33, 64, 10**9, 2**40):
        assert bits(run_masked(parts, b, expected_m=expected_m)) == plain


def test_heads_of_one_weight() -> None:
    """b [heads, N, K] is a view of a weight [N, heads, K], a and out are views of [rows, heads, ..]: none is copied."""
    heads, rows, n, k = 3, 5, 24, 136
    _, b = operands((0,) * n, heads, k, torch.bfloat16)  # [N, heads, K]
    (a,), _ = operands((rows * heads,), 8, k, torch.bfloat16)
    x, out = a.view(rows, heads, k), torch.empty(rows, heads, n)
    counts = torch.full((heads,), rows, dtype=torch.int32)
    m_grouped_bf16_gemm_nt_masked(x.transpose(0, 1), b.transpose(0, 1), out.transpose(0, 1), counts, rows)
    for head in range(heads):
        assert_close(out[:, head], *product(x[:, head], b[:, head]))

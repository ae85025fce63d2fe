"""m_grouped_bf16_gemm_nt_offset against fp64; the three layouts and the dense product against each other."""

from __future__ import annotations

import pytest
import torch

from longcat_ops import bf16_gemm_nt, m_grouped_bf16_gemm_nt_offset
from longcat_ops.testing.op_results import bits
from support import bf16_grouped
from support.bf16_grouped import BACKEND, DTYPES, LAYOUTS, SIZES, WIDTHS, operands, product, run_offset
from support.grouped import SENTINEL, assert_close


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), WIDTHS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_against_fp64(sizes: tuple[int, ...], n: int, k: int, dtype: torch.dtype) -> None:
    """Each dtype of out is within its bound, also where rows and groups lie apart; rows of no group are NaN in a."""
    bf16_grouped.check_against_fp64(run_offset, sizes, n, k, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_integers_are_exact(dtype: torch.dtype) -> None:
    bf16_grouped.check_integers(run_offset, dtype)


def test_nan_stays_in_its_row_and_group() -> None:
    bf16_grouped.check_nan_stays(run_offset)


@pytest.mark.parametrize(
    "offsets", [[0, 5, 40], [-4, 3, 9], [-(2**31), 6, 2**31 - 1], [20, 30, 40], [-9, -5, 0], [-1, -1, 12]], ids=str
)
def test_offsets_beyond_the_rows_are_cut_off(offsets: list[int]) -> None:
    """a and out lie inside larger tensors: NaN surrounds what may be read, a sentinel what may be written."""
    rows, margin = 12, 32
    (part, _), b = operands((rows, 0), 72, 168, torch.bfloat16)
    inner = slice(margin, margin + rows)
    a = torch.full((rows + 2 * margin, 168), torch.nan).bfloat16()
    a[inner] = part
    storage = torch.full((rows + 2 * margin, 72), SENTINEL)
    m_grouped_bf16_gemm_nt_offset(a[inner], b, storage[inner], torch.tensor(offsets, dtype=torch.int32))
    inside = [min(max(at, 0), rows) for at in offsets]
    for g in range(2):
        span = slice(inside[g], inside[g + 1])
        assert_close(storage[inner][span], *product(part[span], b[g]))
        storage[inner][span] = SENTINEL
    assert bool((storage == SENTINEL).all())


def test_hints_do_not_change_a_bit() -> None:
    parts, b = operands((9, 0, 33), 136, 384, torch.bfloat16)
    plain = bits(run_offset(parts, b))
    for hint in (None, 0, 1, 8, 33, 10**9, 2**40):
        for ready in (False, True):
            assert bits(run_offset(parts, b, max_m_hint=hint, counts_ready=ready)) == plain


@pytest.mark.parametrize("split_k", [2, 4])
def test_split_k(split_k: int) -> None:
    parts, b = operands((0, 9, 1, 40), 136, 640, torch.bfloat16)
    for out, part, weight in zip(run_offset(parts, b, split_k=split_k), parts, b, strict=True):
        assert_close(out, *product(part, weight))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), [(136, 384), (72, 168), (8, 6144)])
@pytest.mark.parametrize("sizes", [(33,), (7, 0, 8), (9, 1, 70)], ids=str)
def test_the_layouts_agree(sizes: tuple[int, ...], n: int, k: int, dtype: torch.dtype) -> None:
    """Every layout has the bits of the dense product; the reference is within twice the bound."""
    parts, b = operands(sizes, n, k, dtype)
    dense = [bf16_gemm_nt(part, weight, torch.empty(len(part), n)) for part, weight in zip(parts, b, strict=True)]
    for run in LAYOUTS.values():
        outs = run(parts, b)
        if BACKEND != "reference":
            assert bits(outs) == bits(dense)
        for out, other, part, weight in zip(outs, dense, parts, b, strict=True):
            assert_close(out, other.double(), 2 * product(part, weight)[1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_weight_for_all_groups(layout: str) -> None:
    """A group stride of 0: each group reads the same weight."""
    parts, b = operands((5, 0, 9), 24, 136, torch.bfloat16)
    run = LAYOUTS[layout]
    assert bits(run(parts, b[:1].expand(3, -1, -1))) == bits(run(parts, b[:1].repeat(3, 1, 1)))

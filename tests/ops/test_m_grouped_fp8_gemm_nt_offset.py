"""m_grouped_fp8_gemm_nt_offset against fp64, and the three layouts against each other."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from longcat_ops import fp8_gemm_nt, m_grouped_fp8_gemm_nt_offset
from longcat_ops.testing.op_results import bits
from support import carried, grouped
from support.grouped import SENTINEL, SIZES, WIDTHS, activations, assert_close, gemm, place, run_offset, weights


@pytest.mark.parametrize(("n", "k"), WIDTHS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_against_fp64(sizes: tuple[int, ...], n: int, k: int) -> None:
    """Each dtype of out is within its bound, with NaN in rows of no group before the first and after the last one."""
    grouped.check_against_fp64(run_offset, sizes, n, k)


Corruption = Callable[[Tensor, Tensor, Tensor, float], None]
CORRUPTIONS: dict[str, Corruption] = {
    "a scale of a": lambda a, sa, sb, factor: sa[4, 1].mul_(factor),
    "a scale of b": lambda a, sa, sb, factor: sb[0, 1, 2].mul_(factor),
    "a k-block": lambda a, sa, sb, factor: a.view(torch.uint8)[:, 128:256].zero_(),
    "an element of a": lambda a, sa, sb, factor: a.view(torch.uint8)[8, 383:].bitwise_xor_(0x80),
}


@pytest.mark.parametrize(
    ("dtype", "factor", "tensor_cores"),
    [(torch.float32, 1 + 2.0**-10, False), (torch.bfloat16, 1 + 2.0**-4, False), (torch.bfloat16, 1 + 2.0**-4, True)],
)
@pytest.mark.parametrize("what", [*CORRUPTIONS, "8 columns"])
def test_the_check_notices(what: str, dtype: torch.dtype, factor: float, tensor_cores: bool) -> None:
    """One wrong scale, k-block, element or 8-column group must not pass: else the bound is too wide."""
    if carried.active and not tensor_cores:
        pytest.skip("the bound of float32 sums is not for tensor cores")
    (b, sb), wide_b = weights(1, 136, 384)
    ((a, sa),) = activations((9,), 384)
    expected = gemm((a, sa), wide_b[0], tensor_cores)
    (out,) = run_offset([(a, sa)], (b, sb), dtype)
    assert_close(out, *expected)
    if what == "8 columns":
        out[:, 64:72] = out[:, 72:80].clone()
    else:
        a, sa, sb = a.clone(), sa.clone(), sb.clone()
        CORRUPTIONS[what](a, sa, sb, factor)
        (out,) = run_offset([(a, sa)], (b, sb), dtype)
    with pytest.raises(AssertionError, match="elements are off"):
        assert_close(out, *expected)


@pytest.mark.parametrize(
    "offsets",
    [[0, 5, 40], [-4, 3, 9], [-(2**31), 6, 2**31 - 1], [20, 30, 40], [-9, -5, 0], [0, 12, 13], [-1, -1, 12]],
    ids=str,
)
def test_offsets_beyond_the_rows_are_cut_off(offsets: list[int]) -> None:
    """Operands and out lie inside larger tensors: NaN surrounds what may be read, a sentinel what may be written."""
    rows, margin = 12, 32
    rhs, wide_b = weights(2, 72, 160)
    (part,) = activations((rows,), 160)
    lhs = tuple(t[margin : margin + rows] for t in place([part], [margin], rows + 2 * margin))
    storage = torch.full((rows + 2 * margin, 72), SENTINEL)
    out = storage[margin : margin + rows]
    m_grouped_fp8_gemm_nt_offset(lhs, rhs, out, torch.tensor(offsets, dtype=torch.int32))
    assert bool((storage[:margin] == SENTINEL).all()) and bool((storage[margin + rows :] == SENTINEL).all())

    expected = torch.full_like(out, SENTINEL)
    inside = torch.tensor(offsets).clamp(0, rows).int()
    m_grouped_fp8_gemm_nt_offset(part, rhs, expected, inside)
    assert bits(out) == bits(expected)
    for g in range(2):
        span = slice(int(inside[g]), int(inside[g + 1]))
        assert_close(out[span], *gemm((part[0][span], part[1][span]), wide_b[g]))
    outside = [row for row in range(rows) if not inside[0] <= row < inside[2]]
    assert bool((out[outside] == SENTINEL).all())


def test_hints_do_not_change_a_bit() -> None:
    sizes = (9, 0, 33)
    rhs, _ = weights(3, 136, 384)
    parts = activations(sizes, 384)
    plain = bits(run_offset(parts, rhs))
    for hint in (None, 0, 1, 8, 33, 10**9, 2**40):
        for ready in (False, True):
            assert bits(run_offset(parts, rhs, max_m_hint=hint, counts_ready=ready)) == plain


@pytest.mark.parametrize("sizes", [(1, 0, 2), (9, 8, 1)], ids=str)
def test_scales_by_columns_give_the_same_bits(sizes: tuple[int, ...]) -> None:
    rhs, _ = weights(3, 72, 384)
    parts = activations(sizes, 384)
    assert bits(run_offset(parts, rhs, column_major=True)) == bits(run_offset(parts, rhs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outliers(dtype: torch.dtype) -> None:
    grouped.check_outliers(run_offset, dtype)


def test_nan_stays_in_its_row_and_block() -> None:
    grouped.check_nan_stays(run_offset)


@pytest.mark.parametrize(("n", "k"), [(136, 384), (8, 160), (576, 128)])
def test_a_row_of_a_small_group_does_not_depend_on_its_neighbours(n: int, k: int) -> None:
    grouped.check_rows_stand_alone(run_offset, weights(3, n, k)[0], k)


@pytest.mark.parametrize("split_k", [2, 4])
def test_split_k(split_k: int) -> None:
    """For each number of pieces, results are within the same bounds and a row's bits depend on no other row."""
    split = functools.partial(run_offset, split_k=split_k)
    grouped.check_against_fp64(split, (0, 9, 1, 40), 136, 640)
    grouped.check_rows_stand_alone(split, weights(3, 72, 384)[0], 384)


@pytest.mark.parametrize(("n", "k"), [(136, 384), (72, 160), (576, 128)])
@pytest.mark.parametrize("sizes", [(33,), (7, 0, 8), (9, 1, 33)], ids=str)
def test_the_layouts_agree(sizes: tuple[int, ...], n: int, k: int) -> None:
    """Two sums within a bound of the fp64 one are within two bounds of each other."""
    rhs, b = weights(len(sizes), n, k)
    parts = activations(sizes, k)
    runs = [run(parts, rhs) for run in (run_offset, grouped.run_masked, grouped.run_contiguous)]
    outs = [torch.empty(m, n) for m in sizes]
    runs.append([fp8_gemm_nt(part, (rhs[0][g], rhs[1][g]), outs[g]) for g, part in enumerate(parts)])
    for g, results in enumerate(zip(*runs, strict=True)):
        _, bound = gemm(parts[g], b[g])
        for other in results[1:]:
            assert_close(other, results[0].double(), 2 * bound)

"""Values under DeepGEMM's names: each layout against fp64, casts, layouts of scales, measures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import longcat_ops.compat.deep_gemm as deep_gemm
from longcat_ops import (
    fp8_gemm_nt,
    m_grouped_fp8_gemm_nt_offset,
    per_block_quant_fp8,
    per_token_group_quant_fp8,
)
from longcat_ops.testing.op_results import bits
from support.grouped import SENTINEL, activations, assert_close, by_columns, collect, gemm, place, weights

SIZES = [(9, 0, 33, 1), (0, 0, 5), (128, 1), (0,)]
N, K = 136, 384


@pytest.fixture(autouse=True)
def alignment() -> Iterator[None]:
    yield
    deep_gemm.set_mk_alignment_for_contiguous_layout(128)


def starts_and_ends(sizes: tuple[int, ...], alignment: int) -> tuple[list[int], list[int], int]:
    starts, ends, end = [], [], 0
    for size in sizes:
        starts.append(end)
        ends.append(end + size)
        end = -(-(end + size) // alignment) * alignment
    return starts, ends, end


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("column_major", [False, True])
def test_dense(column_major: bool, dtype: torch.dtype) -> None:
    (b, sb), (wide,) = weights(1, N, K)
    (part,) = activations((33,), K)
    a = (part[0], by_columns(part[1])) if column_major else part
    d = torch.full((33, N), SENTINEL, dtype=dtype)
    assert deep_gemm.fp8_gemm_nt(a, (b[0], sb[0]), d, None, None, (1, 128), (128, 128), "mn", True) is None
    assert_close(d, *gemm(part, wide))


@pytest.mark.parametrize("column_major", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_contiguous(sizes: tuple[int, ...], column_major: bool) -> None:
    """Rows of index -1, before, between and after the groups, hold NaN and become 0; d is a view of a larger tensor."""
    rhs, wide = weights(len(sizes), N, K)
    parts = activations(sizes, K)
    indices, starts = [-1] * 3, []
    for g, size in enumerate(sizes):
        starts.append(len(indices))
        indices += [g] * size + [-1] * (2 + g)
    a, sa = place(parts, starts, len(indices))
    whole = torch.full((len(indices) + 2, N + 8), SENTINEL, dtype=torch.bfloat16)
    d = whole[1:-1, :N]
    grouped_layout = torch.tensor(indices, dtype=torch.int32)
    lhs = a, by_columns(sa) if column_major else sa
    assert deep_gemm.m_grouped_fp8_gemm_nt_contiguous(lhs, rhs, d, grouped_layout) is None
    for out, part, w in zip(collect(d, parts, starts, fill=0.0), parts, wide, strict=True):
        assert_close(out, *gemm(part, w))
    assert bool((whole[:, N:] == SENTINEL).all()) and bool((whole[[0, -1]] == SENTINEL).all())


@pytest.mark.parametrize("zero_padding", [False, True])
@pytest.mark.parametrize("alignment", [1, 8, 96, 128])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_psum(sizes: tuple[int, ...], alignment: int, zero_padding: bool) -> None:
    """Groups start at multiples of the set alignment. NaN in the padding between them reaches no group's rows; rows
    after the last padding are not written; an empty group may end at its start or at the previous group's end."""
    deep_gemm.set_mk_alignment_for_contiguous_layout(alignment)
    rhs, wide = weights(len(sizes), N, K)
    parts = activations(sizes, K)
    starts, ends, end = starts_and_ends(sizes, alignment)
    lhs = place(parts, starts, end + 5)
    unaligned = [max([*ends[:g], 0]) if size == 0 else ends[g] for g, size in enumerate(sizes)]
    results = []
    for layout in (ends, unaligned):
        d = torch.full((end + 5, N), SENTINEL, dtype=torch.float32)
        deep_gemm.m_grouped_fp8_gemm_nt_contiguous(
            lhs, rhs, d, torch.tensor(layout, dtype=torch.int32), use_psum_layout=True,
            ensure_zero_padding=zero_padding, expected_m_for_psum_layout=4,
        )  # fmt: skip
        for start, part, w in zip(starts, parts, wide, strict=True):
            assert_close(d[start : start + len(part[0])], *gemm(part, w))
        assert bool((d[end:] == SENTINEL).all())
        results.append(d)
    assert bits(results[0]) == bits(results[1])


def test_psum_of_compact_rows_is_the_offset_product() -> None:
    deep_gemm.set_mk_alignment_for_contiguous_layout(1)
    rhs, _ = weights(4, N, K)
    lhs = place(activations((9, 0, 33, 1), K), [0, 9, 9, 42], 43)
    out, d = (torch.zeros(43, N, dtype=torch.bfloat16) for _ in range(2))
    m_grouped_fp8_gemm_nt_offset(lhs, rhs, out, torch.tensor([0, 9, 9, 42, 43], dtype=torch.int32))
    ends = torch.tensor([9, 9, 42, 43], dtype=torch.int32)
    deep_gemm.m_grouped_fp8_gemm_nt_contiguous(lhs, rhs, d, ends, use_psum_layout=True)
    assert bits(d) == bits(out) and ends.tolist() == [9, 9, 42, 43]


@pytest.mark.parametrize("name", ["m_grouped_fp8_gemm_nt_masked", "fp8_m_grouped_gemm_nt_masked"])
@pytest.mark.parametrize("column_major", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_masked(sizes: tuple[int, ...], column_major: bool, name: str) -> None:
    rhs, wide = weights(len(sizes), N, K)
    parts = activations(sizes, K)
    rows, groups = max(sizes) + 2, len(sizes)
    starts = [g * rows for g in range(groups)]
    a, sa = (t.view(groups, rows, -1) for t in place(parts, starts, groups * rows))
    d = torch.full((groups, rows, N), SENTINEL, dtype=torch.bfloat16)
    lhs = a, deep_gemm.get_mn_major_tma_aligned_tensor(sa) if column_major else sa
    assert getattr(deep_gemm, name)(lhs, rhs, d, torch.tensor(sizes, dtype=torch.int32), 24) is None
    for out, part, w in zip(collect(d.flatten(0, 1), parts, starts), parts, wide, strict=True):
        assert_close(out, *gemm(part, w))


def test_no_rows() -> None:
    (b, sb), _ = weights(1, N, K)
    ((a, sa),) = activations((0,), K)
    d = torch.empty(0, N, dtype=torch.bfloat16)
    assert deep_gemm.fp8_gemm_nt((a, sa), (b[0], sb[0]), d) is None
    assert deep_gemm.m_grouped_fp8_gemm_nt_contiguous((a, sa), (b, sb), d, torch.empty(0, dtype=torch.int32)) is None


@pytest.mark.slow
def test_compiled_whole() -> None:
    rhs, _ = weights(2, N, K)
    lhs = place(activations((2, 1), K), [0, 128], 129)

    def products(a: tuple, b: tuple, indices: Tensor, ends: Tensor) -> tuple[Tensor, ...]:
        out = [torch.zeros(len(a[0]), N, dtype=torch.bfloat16) for _ in range(3)]
        deep_gemm.fp8_gemm_nt(a, (b[0][0], b[1][0]), out[0])
        deep_gemm.m_grouped_fp8_gemm_nt_contiguous(a, b, out[1], indices)
        deep_gemm.m_grouped_fp8_gemm_nt_contiguous(a, b, out[2], ends, use_psum_layout=True)
        return tuple(out)

    indices = torch.full((129,), -1, dtype=torch.int32)
    indices[:2], indices[128] = 0, 1
    arguments = lhs, rhs, indices, torch.tensor([2, 129], dtype=torch.int32)
    compiled = torch.compile(products, fullgraph=True, backend="aot_eager")(*arguments)
    assert [bits(t) for t in compiled] == [bits(t) for t in products(*arguments)]


def test_casts_are_the_quantisation_ops() -> None:
    x = torch.randn(130, 264, generator=torch.Generator().manual_seed(1)).bfloat16()
    by_token, by_block = deep_gemm.utils.per_token_cast_to_fp8, deep_gemm.per_block_cast_to_fp8
    assert bits(by_token(x, False)) == bits(per_token_group_quant_fp8(x))
    assert bits(by_token(x, use_ue8m0=False, gran_k=64)) == bits(per_token_group_quant_fp8(x, 64))
    assert bits(by_block(x, use_ue8m0=False)) == bits(per_block_quant_fp8(x))
    assert (deep_gemm.ceil_div(129, 128), deep_gemm.ceil_div(128, 128), deep_gemm.align(1, 128)) == (2, 1, 128)


def test_scales_are_laid_out_for_tma() -> None:
    for shape, strides in (((5, 3), (1, 8)), ((2, 5, 3), (24, 1, 8)), ((4, 1), (1, 4)), ((0, 3), (1, 0))):
        sf = torch.randn(shape)
        out = deep_gemm.get_mn_major_tma_aligned_tensor(sf)
        assert torch.equal(out, sf) and out.stride() == strides
        assert deep_gemm.get_mn_major_tma_aligned_tensor(out) is out
    assert [deep_gemm.get_tma_aligned_size(5, size) for size in (1, 2, 4, 8, 16)] == [16, 8, 8, 6, 5]
    transform = deep_gemm.transform_sf_into_required_layout
    rows, blocks = torch.randn(5, 2), torch.randn(3, 2, 2)
    for out in (transform(rows, 5, 200, (1, 128)), transform(rows, 5, 200, (1, 128, 128), is_sfa=True)):
        assert torch.equal(out, rows) and out.stride() == (1, 8)
    assert transform(blocks, 200, 200, (128, 128), 3) is blocks
    assert transform(blocks, 200, 200, [1, 128, 128], 3, False, True) is blocks


def test_measures() -> None:
    testing = deep_gemm.testing
    x, zero = torch.tensor([3.0, 4.0]), torch.zeros(2)
    assert float(testing.calc_diff(x, x)) == float(testing.calc_diff(zero, zero)) == 0
    assert float(testing.calc_diff(x, zero)) == float(testing.calc_diff(x, torch.tensor([-4.0, 3.0]))) == 1
    assert float(testing.calc_diff(x, 2 * x)) == pytest.approx(25 / 125)
    assert not float(testing.calc_diff(x, x * torch.nan)) < 1
    assert testing.count_bytes(x, None, (zero, [x.bfloat16()])) == 8 + 8 + 4
    testing.assert_bitwise_equal(x * torch.nan, x * torch.nan)
    bytes_differ = "2 of 8 bytes differ (y); the first, 3, is 0x00 and 0x80"
    for other, text in ((-zero, bytes_differ), (x[:1], "shapes differ (y)"), (zero.int(), "dtypes differ (y)")):
        with pytest.raises(AssertionError) as caught:
            testing.assert_bitwise_equal(zero, other, "y")
        assert text in str(caught.value)
    assert testing.get_arch_major() == 9


def test_the_dense_product_is_the_op() -> None:
    """With every keyword at its default, the product equals the op bit for bit."""
    (b, sb), _ = weights(1, N, K)
    (a,) = activations((9,), K)
    d = torch.empty(9, N, dtype=torch.bfloat16)
    deep_gemm.fp8_gemm_nt(a, (b[0], sb[0]), d)
    assert bits(d) == bits(fp8_gemm_nt(a, (b[0], sb[0])))

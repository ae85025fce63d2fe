"""m_grouped_fp8_swiglu_gemm_nt_offset against fp64: products, SwiGLU, and quantisation of nearby values."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from longcat_ops import interleave_gate_up, m_grouped_fp8_swiglu_gemm_nt_offset, per_token_group_quant_fp8
from longcat_ops.testing.op_results import bits
from support import carried
from support.build_oracle import codes_of, decode
from support.grouped import (
    NAN_CODE,
    SENTINEL,
    SIZES,
    Fp8Pair,
    activations,
    assert_close,
    check_rows_stand_alone,
    few_sizes,
    place,
    select,
    wide,
)
from support.swiglu_oracle import FLOOR_SCALE, OP, UNSET_CODE, assert_quantised, expected, halves, run, weights


def dequantised(h: Tensor, sh: Tensor) -> Tensor:
    return wide(h, sh, block_rows=1)


@pytest.mark.parametrize(("width", "k"), list(itertools.product((8, 136, 256), (128, 160, 384))))
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_against_fp64(sizes: tuple[int, ...], width: int, k: int) -> None:
    rhs = weights(len(sizes), width, k)
    parts = activations(sizes, k)
    for (h, sh), (value, error) in zip(run(parts, rhs), expected(parts, rhs), strict=True):
        assert_quantised(h, sh, value, error)
        # The same check on dequantised values. e4m3 keeps 4 bits: half a step is 2^-4 of a value, or 2^-10 of a scale
        # where the value is subnormal; the division and the scale add 2^-23.
        scale = sh.double().repeat_interleave(128, 1)[:, :width]
        limit = error + (2.0**-4 + 2.0**-23) * (value.abs() + error) + 2.0**-10 * scale
        assert bool(((dequantised(h, sh) - value).abs() <= limit).all())


@pytest.mark.parametrize(("width", "k"), list(itertools.product((8, 136, 256), (128, 160, 384))))
@pytest.mark.parametrize("sizes", few_sizes(), ids=str)
def test_h_in_bf16_against_fp64(sizes: tuple[int, ...], width: int, k: int) -> None:
    rhs = weights(len(sizes), width, k)
    parts = activations(sizes, k)
    for h, (value, error) in zip(run(parts, rhs, quantise=False), expected(parts, rhs), strict=True):
        assert h.dtype == torch.bfloat16
        assert_close(h, value, error)


@pytest.mark.parametrize(("tensor_cores", "factor"), [(False, 1 + 2.0**-8), (True, 1 + 2.0**-3)])
def test_the_check_notices(tensor_cores: bool, factor: float) -> None:
    """The check fails for up instead of gate rows, a weight scale a little off, a scale off, a code one step off."""
    if carried.active and not tensor_cores:
        pytest.skip("the bound of float32 sums is not for tensor cores")
    rhs = weights(1, 136, 384)
    (part,) = activations((33,), 384)
    ((h, sh),) = run([part], rhs)
    ((value, error),) = expected([part], rhs, tensor_cores)
    assert_quantised(h, sh, value, error)
    for block in range(4):  # gate and up of columns 0 .. 127, then of 128 .. 135
        s = rhs[1].clone()
        s[0, block, 1] *= factor
        ((bad_h, bad_sh),) = run([part], (rhs[0], s))
        with pytest.raises(AssertionError):
            assert_quantised(bad_h, bad_sh, value, error)
    (gate, gate_scale), (up, up_scale) = halves(rhs, 0)
    swapped = interleave_gate_up(torch.cat([up, gate])[None], torch.cat([up_scale, gate_scale])[None])
    with pytest.raises(AssertionError):
        assert_quantised(h, sh, *expected([part], swapped, tensor_cores)[0])
    with pytest.raises(AssertionError):
        assert_quantised(h, sh * factor, value, error)
    largest = torch.from_numpy(decode(codes_of(h))).abs().argmax()
    codes = h.clone().view(torch.uint8)
    codes.view(-1)[largest] -= 1
    with pytest.raises(AssertionError, match="1 of 4224 codes are off"):
        assert_quantised(codes.view(h.dtype), sh, value, error)


def test_the_public_function_returns_what_the_bare_op_writes() -> None:
    sizes = (9, 0, 1, 7)
    rhs = weights(4, 136, 160)
    parts = activations(sizes, 160)
    a, sa = place(parts, [0, 9, 9, 10], 17)
    offsets = torch.tensor([0, 9, 9, 10, 17], dtype=torch.int32)
    h, sh = m_grouped_fp8_swiglu_gemm_nt_offset((a, sa), rhs, offsets)
    assert h.shape == (17, 136) and h.dtype == torch.float8_e4m3fn and h.is_contiguous()
    assert sh.shape == (17, 2) and sh.dtype == torch.float32
    h_parts, sh_parts = zip(*run(parts, rhs), strict=True)
    assert bits([h, sh]) == [b"".join(bits(h_parts)), b"".join(bits(sh_parts))]
    plain = m_grouped_fp8_swiglu_gemm_nt_offset((a, sa), rhs, offsets, quantise=False)
    assert plain.shape == h.shape and plain.dtype == torch.bfloat16 and plain.is_contiguous()
    assert bits(plain) == [b"".join(bits(run(parts, rhs, quantise=False)))]


def test_outliers() -> None:
    """1e6 in a row makes h as large as 1e12; the scale of its group of 128 holds it; the row's rest is not lost."""
    x = torch.randn(9, 384, generator=torch.Generator().manual_seed(2))
    x[0, 5], x[4, 200], x[8, 383] = 1e6, -1e6, 1e6
    rhs = weights(3, 136, 384)
    parts = [per_token_group_quant_fp8(rows) for rows in x.split([3, 5, 1])]
    for (h, sh), oracle in zip(run(parts, rhs), expected(parts, rhs), strict=True):
        assert_quantised(h, sh, *oracle)
        assert dequantised(h, sh).abs().max() > 1e10


@pytest.mark.parametrize("rows", [1, 8, 9])
def test_zero_activations_give_zero_and_the_smallest_scale(rows: int) -> None:
    rhs = weights(1, 136, 384)
    q, s = per_token_group_quant_fp8(torch.zeros(rows, 384))
    ((h, sh),) = run([(q, s)], rhs)
    assert not (codes_of(h) & 0x7F).any()
    assert (sh.numpy() == FLOOR_SCALE).all()


@pytest.mark.parametrize("rows", [3, 9])
def test_a_nan_stays_in_its_row(rows: int) -> None:
    rhs = weights(1, 136, 384)
    part = select(activations((rows,), 384)[0], range(rows))
    part[0].view(torch.uint8)[1, 200] = NAN_CODE
    ((h, sh),) = run([part], rhs)
    assert sh.isnan().any(1).tolist() == [row == 1 for row in range(rows)]
    (plain,) = run([part], rhs, quantise=False)
    assert plain.isnan().all(1).tolist() == plain.isnan().any(1).tolist() == sh.isnan().any(1).tolist()
    assert_quantised(h, sh, *expected([part], rhs)[0])


@pytest.mark.parametrize("offsets", [[0, 5, 40], [-4, 3, 9], [-(2**31), 6, 2**31 - 1], [20, 30, 40]], ids=str)
def test_offsets_beyond_the_rows_are_cut_off(offsets: list[int]) -> None:
    """All tensors lie inside larger ones: NaN surrounds what may be read, a sentinel what may be written."""
    rows, margin = 12, 32
    rhs = weights(2, 136, 160)
    (part,) = activations((rows,), 160)
    total, inner = rows + 2 * margin, slice(margin, margin + rows)
    a, sa = (t[inner] for t in place([part], [margin], total))
    codes, sh = torch.full((total, 136), UNSET_CODE, dtype=torch.uint8), torch.full((total, 2), SENTINEL)
    OP(a, sa, *rhs, torch.tensor(offsets, dtype=torch.int32), None, False, codes[inner].view(a.dtype), sh[inner])

    first, middle, last = (min(max(at, 0), rows) for at in offsets)
    parts = [select(part, range(first, middle)), select(part, range(middle, last))]
    written = slice(margin + first, margin + last)
    h_parts, sh_parts = zip(*run(parts, rhs), strict=True)
    assert bits([codes[written], sh[written]]) == [b"".join(bits(h_parts)), b"".join(bits(sh_parts))]
    codes[written], sh[written] = UNSET_CODE, SENTINEL
    assert bool((codes == UNSET_CODE).all()) and bool((sh == SENTINEL).all())


def test_hints_and_scales_by_columns_do_not_change_a_bit() -> None:
    rhs = weights(3, 136, 384)
    parts = activations((9, 0, 33), 384)
    for quantise in (True, False):
        plain = bits(run(parts, rhs, quantise=quantise))
        for hint, ready in itertools.product((None, 0, 1, 8, 33, 10**9, 2**40), (False, True)):
            assert bits(run(parts, rhs, max_m_hint=hint, counts_ready=ready, quantise=quantise)) == plain
        assert bits(run(parts, rhs, column_major=True, quantise=quantise)) == plain


@pytest.mark.parametrize(("width", "k"), [(136, 384), (8, 160), (256, 128)])
def test_a_row_of_a_small_group_does_not_depend_on_its_neighbours(width: int, k: int) -> None:
    """Compares a row's values and scales as bytes. Gates are around 1, where the last bit of exp matters."""

    def rows_as_bytes(parts: Sequence[Fp8Pair], rhs: Fp8Pair) -> list[Tensor]:
        both = zip(run(parts, rhs), run(parts, rhs, quantise=False), strict=True)
        return [torch.cat([t.view(torch.uint8) for t in (*pair, plain)], 1) for pair, plain in both]

    q, s = weights(3, width, k)
    for step in range(8):  # only the largest element of a group shows its last bits, so try a few
        check_rows_stand_alone(rows_as_bytes, (q, s / k**0.5 * (1 + step / 8)), k)

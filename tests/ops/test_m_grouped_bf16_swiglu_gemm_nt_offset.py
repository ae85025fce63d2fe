"""m_grouped_bf16_swiglu_gemm_nt_offset against fp64: products, SwiGLU, rounding or quantisation of nearby values."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import longcat_ops
from longcat_ops import interleave_gate_up, m_grouped_bf16_swiglu_gemm_nt_offset
from longcat_ops.ops import checking
from longcat_ops.testing.op_results import bits
from support.bf16_calls import activations, place
from support.bf16_grouped import BACKEND, DTYPES, apart
from support.bf16_swiglu_oracle import OP, expected, halves, run, weights
from support.grouped import few_sizes
from support.near_oracle import FLOOR_SCALE
from support.swiglu_oracle import assert_hidden, is_unset, prefilled

BF16, F32 = torch.bfloat16, torch.float32
EVERY_FORM = pytest.mark.parametrize(("dtype", "quantise"), list(itertools.product(DTYPES, (False, True))), ids=str)


def operands(sizes: Sequence[int], width: int, k: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    return [part.to(dtype) for part in activations(sizes, k)], weights(len(sizes), width, k, dtype)


@EVERY_FORM
@pytest.mark.parametrize(("width", "k"), [(8, 8), (136, 136), (8, 264), (256, 8)])
@pytest.mark.parametrize("sizes", few_sizes(), ids=str)
def test_against_fp64(sizes: tuple[int, ...], width: int, k: int, dtype: torch.dtype, quantise: bool) -> None:
    parts, gate_up = operands(sizes, width, k, dtype)
    for out, oracle in zip(run(parts, gate_up, quantise=quantise), expected(parts, gate_up), strict=True):
        assert_hidden(out, *oracle)


@EVERY_FORM
def test_the_check_notices(dtype: torch.dtype, quantise: bool) -> None:
    """The check fails for up instead of gate, for one wrong element of a weight or of a row, for 8 columns moved."""
    (part,), gate_up = operands((33,), 136, 136, dtype)
    (out,), (oracle,) = run([part], gate_up, quantise=quantise), expected([part], gate_up)
    assert_hidden(out, *oracle)
    swapped = interleave_gate_up(torch.cat(halves(gate_up)[::-1], 1))
    moved, element, token = gate_up.roll(8, 1), gate_up.clone(), part.clone()
    element[0, 7, 135] += 1
    token[32, 0] += 1
    for a, w in ((part, swapped), (part, moved), (part, element), (token, gate_up)):
        with pytest.raises(AssertionError):
            assert_hidden(run([a], w, quantise=quantise)[0], *oracle)


@EVERY_FORM
def test_the_public_function_returns_what_the_bare_op_writes(dtype: torch.dtype, quantise: bool) -> None:
    parts, gate_up = operands((9, 0, 1, 7), 136, 72, dtype)
    a, offsets = torch.cat(parts), torch.tensor([0, 9, 9, 10, 17], dtype=torch.int32)
    found = m_grouped_bf16_swiglu_gemm_nt_offset(a, gate_up, offsets, quantise=quantise)
    if quantise:
        h, sh = found
        assert sh.shape == (17, 2) and sh.dtype == F32
    else:
        h = found
    assert h.shape == (17, 136) and h.is_contiguous()
    assert h.dtype == (torch.float8_e4m3fn if quantise else dtype)
    expected_parts = run(parts, gate_up, quantise=quantise)
    columns = zip(*expected_parts, strict=True) if quantise else [expected_parts]
    assert bits(found) == [b"".join(bits(column)) for column in columns]


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantised_it_is_the_chain_of_two_products_and_silu_and_mul(dtype: torch.dtype) -> None:
    """Bit for bit on each backend, since all sums are float32; a float32 h has the bits that are then quantised."""
    parts, gate_up = operands((9, 0, 33), 136, 136, dtype)
    offsets = torch.tensor([0, 9, 9, 42], dtype=torch.int32)
    a, sums = torch.cat(parts), torch.empty(42, 272)
    for half, columns in zip(halves(gate_up), (slice(136), slice(136, None)), strict=True):
        sums[:, columns] = longcat_ops.m_grouped_bf16_gemm_nt_offset(a, half, torch.empty(42, 136), offsets)
    found = m_grouped_bf16_swiglu_gemm_nt_offset(a, gate_up, offsets, quantise=True)
    if BACKEND != "reference":  # its sums follow the shape of a product
        assert bits(found) == bits(longcat_ops.silu_and_mul_quant_fp8(sums))
    if dtype == F32:
        h = m_grouped_bf16_swiglu_gemm_nt_offset(a, gate_up, offsets)
        assert bits(found) == bits(longcat_ops.per_token_group_quant_fp8(h))


@EVERY_FORM
def test_edges_of_the_values(dtype: torch.dtype, quantise: bool) -> None:
    """Zero rows give 0 and the smallest scale; NaN and inf stay in their rows; a peak keeps its neighbours' bound."""
    (part,), gate_up = operands((12,), 136, 136, dtype)
    part = part.clone()
    part[1], part[4, 3], part[7, 135], part[9, 77] = 0, torch.nan, torch.inf, 2.0**20
    (out,) = run([part], gate_up, quantise=quantise)
    h, sh = out if quantise else (out, None)
    broken = [row in (4, 7) for row in range(12)]
    assert (sh if quantise else h).isfinite().all(1).logical_not().tolist() == broken
    assert not h[1].float().any()
    assert sh is None or (sh[1].numpy() == FLOOR_SCALE).all()
    rows = [row for row in range(12) if row not in (4, 7)]
    ((value, error),) = expected([part[rows]], gate_up)
    finite = [t.view(torch.uint8)[rows].view(t.dtype) if t.dtype == torch.float8_e4m3fn else t[rows]
              for t in ((h, sh) if quantise else (h,))]  # fmt: skip
    assert_hidden(finite, value, error)


@pytest.mark.parametrize("quantise", [False, True])
@pytest.mark.parametrize("offsets", [[0, 5, 40], [-4, 3, 9], [-(2**31), 6, 2**31 - 1], [20, 30, 40]], ids=str)
def test_offsets_beyond_the_rows_are_cut_off(offsets: list[int], quantise: bool) -> None:
    """All tensors lie inside larger ones: NaN surrounds what may be read, a sentinel what may be written."""
    rows, margin = 12, 32
    (part,), gate_up = operands((rows,), 136, 72, BF16)
    gate_up = weights(2, 136, 72)
    total, inner = rows + 2 * margin, slice(margin, margin + rows)
    a = place([part], [margin], total)[inner]
    h, sh = prefilled(total, 136, None if quantise else BF16)
    OP(a, gate_up, torch.tensor(offsets, dtype=torch.int32), None, False, h[inner], None if sh is None else sh[inner])

    first, middle, last = (min(max(at, 0), rows) for at in offsets)
    outside = torch.ones(total, dtype=torch.bool)
    outside[margin + first : margin + last] = False
    codes = h.view(torch.uint8) if quantise else h
    assert is_unset(codes[outside].view(h.dtype), None if sh is None else sh[outside])
    found = run([part[first:middle], part[middle:last]], gate_up, quantise=quantise)
    columns = zip(*found, strict=True) if quantise else [found]
    written = [t[~outside] for t in ((codes, sh) if quantise else (codes,))]
    assert bits(written) == [b"".join(bits(column)) for column in columns]


@EVERY_FORM
def test_hints_do_not_change_a_bit(dtype: torch.dtype, quantise: bool) -> None:
    parts, gate_up = operands((9, 0, 33), 136, 72, dtype)
    plain = bits(run(parts, gate_up, quantise=quantise))
    for hint, ready in itertools.product((0, 1, 33, 2**40), (False, True)):
        assert bits(run(parts, gate_up, quantise=quantise, max_m_hint=hint, counts_ready=ready)) == plain


@EVERY_FORM
@pytest.mark.parametrize(("width", "k"), [(136, 136), (8, 328)])
def test_a_row_does_not_depend_on_its_neighbours(width: int, k: int, dtype: torch.dtype, quantise: bool) -> None:
    if BACKEND == "reference":
        pytest.skip("the reference pads a group's rows, so their number may choose another order of sums")
    (pool,), gate_up = operands((70,), width, k, dtype)
    gate_up = gate_up.expand(4, -1, -1)
    (whole, *_) = run([pool, pool[:0], pool[:0], pool[:0]], gate_up, quantise=quantise)
    for order in ([5], [69, 0, 5], list(range(64, 70)), list(range(66))[::-1]):
        nan = torch.full((1, k), torch.nan, dtype=dtype)
        out = run([nan, pool[order], pool[:0], torch.cat([pool[order], nan])], gate_up, quantise=quantise)
        for part in (out[1], out[3]):
            for i, row in enumerate(order):
                ours, theirs = ([t[at] for t in (o if quantise else (o,))] for o, at in ((part, i), (whole, row)))
                assert bits(ours) == bits(theirs), (order, row)


@EVERY_FORM
def test_views(dtype: torch.dtype, quantise: bool) -> None:
    """Rows of tokens, weights and h apart and off 16 bytes: no bit changes, and nothing between them."""
    (part,), gate_up = operands((20,), 24, 40, dtype)
    gate_up = weights(3, 24, 40, dtype)
    offsets = torch.tensor([0, 7, 7, 20], dtype=torch.int32)
    found = m_grouped_bf16_swiglu_gemm_nt_offset(part, gate_up, offsets, quantise=quantise)
    a, w = apart(part), apart(gate_up)
    for columns in (slice(0, 24), slice(5, 29)):
        h, sh = prefilled(20, 32, None if quantise else dtype)
        untouched = h.clone()
        OP(a, w, offsets, None, False, h[:, columns], None if sh is None else sh)
        ours = [h[:, columns]] if sh is None else [h[:, columns], sh]
        assert bits(ours) == bits(found)
        untouched[:, columns] = h[:, columns]
        assert bits(h) == bits(untouched)


def test_operands_of_another_dtype_are_refused() -> None:
    (part,), gate_up = operands((5,), 24, 40, F32)
    offsets = torch.tensor([0, 5], dtype=torch.int32)
    for a, w, text in (
        (part.half(), gate_up.half(), "`a` is torch.float16, expected torch.bfloat16 or torch.float32: no LongCat"),
        (part, gate_up.bfloat16(), "`gate_up` is torch.bfloat16, expected torch.float32, the dtype of `a`"),
        (part.double(), gate_up.double(), "`a` is torch.float64, expected torch.bfloat16 or torch.float32"),
    ):
        supported, reason, _ = longcat_ops.supports("m_grouped_bf16_swiglu_gemm_nt_offset", a, w, offsets)
        assert not supported and text in reason
    on_cuda = [(*checking.describe(t)[:3], "cuda", 0, 0) for t in (part, gate_up, offsets)]
    _, reason, _ = checking.find_problem("m_grouped_bf16_swiglu_gemm_nt_offset", *on_cuda, None, False, None, None)
    assert "`a` is torch.float32, expected torch.bfloat16: on CUDA the tensor cores take bf16" in reason


def test_h_goes_with_its_scales() -> None:
    (part,), gate_up = operands((5,), 24, 40, BF16)
    offsets = torch.tensor([0, 5], dtype=torch.int32)
    (h, sh), (plain, _) = prefilled(5, 24, None), prefilled(5, 24, BF16)
    for out, scales, text in (
        (plain, sh, "`h` is torch.bfloat16, expected torch.float8_e4m3fn, as there is sh"),
        (h, None, "`h` is torch.float8_e4m3fn, expected torch.bfloat16, as there is no sh"),
        (plain.float(), None, "`h` is torch.float32, expected torch.bfloat16, as there is no sh"),
    ):
        with pytest.raises(RuntimeError, match=text):
            OP(part, gate_up, offsets, None, False, out, scales)

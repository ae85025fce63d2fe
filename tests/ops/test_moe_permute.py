"""moe_permute against indexing, bit for bit, at every row a plan names and at no other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longcat_ops import Plan, moe_permute, moe_plan

OP = torch.ops.longcat_ops.moe_permute.default
EXPERTS, K = 6, 4
RAW = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
UNSET = 0x5A5A  # each 2 bytes of an unwritten row


def raw(t: Tensor) -> Tensor:
    return t.view(RAW[t.dtype])


def plan_of(tokens: int, num_local: int = EXPERTS) -> Plan:
    """0 to K choices per token, at random places; the last token has none."""
    g = torch.Generator().manual_seed(tokens)
    ids = torch.rand(tokens, EXPERTS + 3, generator=g).argsort(1)[:, :K].to(torch.int32)
    ids[-1:] = -1
    return moe_plan(ids.masked_fill(ids >= EXPERTS, -1), num_local)


def any_bits(tokens: int, width: int, dtype: torch.dtype) -> Tensor:
    """Rows of random bits, so NaNs of every payload, infinities, subnormals and zeros of both signs are among them."""
    info, g = torch.iinfo(RAW[dtype]), torch.Generator().manual_seed(width)
    return torch.randint(info.min, info.max, (tokens, width), generator=g, dtype=RAW[dtype]).view(dtype)


def unset(rows: int, width: int, dtype: torch.dtype, gap: int = 0) -> Tensor:
    """[rows, width], `gap` elements between rows, all UNSET."""
    out = torch.empty(rows, width + gap, dtype=dtype)
    out.view(torch.int16).fill_(UNSET)
    return out[:, :width]


def expected(x: Tensor, plan: Plan) -> Tensor:
    """Token by token, choice by choice; other rows are UNSET."""
    out = unset(len(plan.src_of), x.shape[1], x.dtype)
    for t, rows in enumerate(plan.row_of.tolist()):
        for row in rows:
            if row >= 0:
                raw(out)[row] = raw(x)[t]
    return out


def into_unset(x: Tensor, plan: Plan, gap: int = 0) -> Tensor:
    out = unset(len(plan.src_of), x.shape[1], x.dtype, gap)
    OP(x, plan.row_of, plan.src_of, out)
    return out


def assert_same(actual: Tensor, wanted: Tensor) -> None:
    assert actual.dtype == wanted.dtype and torch.equal(raw(actual), raw(wanted))


@pytest.mark.parametrize("dtype", RAW, ids=str)
@pytest.mark.parametrize("width", [8, 128, 160, 576])
@pytest.mark.parametrize("tokens", [0, 1, 7, 33])
def test_equals_indexing(tokens: int, width: int, dtype: torch.dtype) -> None:
    x, plan = any_bits(tokens, width, dtype), plan_of(tokens)
    wanted, used = expected(x, plan), int(plan.offsets[-1])
    assert_same(into_unset(x, plan), wanted)
    out = moe_permute(x, plan)
    assert out.shape == (tokens * K, width) and out.dtype == dtype and out.is_contiguous()
    assert_same(out[:used], wanted[:used])
    assert used < len(out) or tokens == 0


@pytest.mark.parametrize("dtype", RAW, ids=str)
@pytest.mark.parametrize(("gap", "offset"), [(8, 0), (3, 0), (0, 1), (5, 7)])
def test_rows_apart_and_off_their_alignment(gap: int, offset: int, dtype: torch.dtype) -> None:
    """x and out with `gap` elements between rows, x `offset` elements off an aligned address: gaps stay untouched."""
    tokens, width = 7, 160
    storage, plan = any_bits(1, (tokens + 1) * (width + gap) + offset, dtype)[0], plan_of(tokens)
    x = storage[offset:].as_strided((tokens, width), (width + gap, 1))
    out = into_unset(x, plan, gap)
    assert out.stride() == (width + gap, 1)
    assert_same(out, expected(x.contiguous(), plan))
    whole = torch.empty(0, dtype=dtype).set_(out.untyped_storage()).view(len(out), width + gap)
    assert (whole[:, width:].contiguous().view(torch.int16) == UNSET).all()
    assert_same(
        moe_permute(x, plan)[: int(plan.offsets[-1])], moe_permute(x.contiguous(), plan)[: int(plan.offsets[-1])]
    )


def test_a_nan_keeps_its_payload() -> None:
    """Signalling and quiet NaNs of both signs, in every copy of their token and in no other row."""
    patterns = torch.tensor([0x7F80_0001, 0x7FC0_1234, -0x0040_0001, -0x007F_FFFF], dtype=torch.int32)
    x = torch.zeros(4, 8)
    x.view(torch.int32)[2, :4] = patterns
    plan = moe_plan(torch.tensor([[0, 1], [1, -1], [1, 0], [-1, -1]], dtype=torch.int32), 2)
    out = into_unset(x, plan)
    assert plan.row_of[2].tolist() == [4, 1] and int(plan.offsets[-1]) == 5
    for row in (4, 1):
        assert torch.equal(out.view(torch.int32)[row, :4], patterns)
    assert not out.view(torch.int32)[[0, 2, 3]].any()


@pytest.mark.parametrize("num_local", [1, 2])
def test_a_rank_with_few_experts(num_local: int) -> None:
    x, plan = any_bits(33, 160, torch.bfloat16), plan_of(33, num_local)
    assert 0 < int(plan.offsets[-1]) < len(plan.src_of) == 33 * num_local
    assert_same(into_unset(x, plan), expected(x, plan))


def test_rows_of_no_choice_are_not_written() -> None:
    x, plan = any_bits(33, 160, torch.bfloat16), plan_of(33)
    used = int(plan.offsets[-1])
    assert 33 < used < len(plan.src_of)
    assert (raw(into_unset(x, plan))[used:] == UNSET).all()
    nothing = moe_plan(torch.full((33, K), -1, dtype=torch.int32), EXPERTS)
    assert (raw(into_unset(x, nothing)) == UNSET).all()


def test_a_source_that_does_not_exist_is_safe() -> None:
    x, plan = any_bits(20, 160, torch.bfloat16), plan_of(20)
    garbage = torch.tensor([20 * K, 2**31 - 1, -2, -(2**31), 20 * K + 1], dtype=torch.int32)
    wanted = expected(x, plan)
    for at in (0, 11, int(plan.offsets[-1])):
        src_of, there = plan.src_of.clone(), wanted.clone()
        src_of[at : at + 5] = garbage
        raw(there)[at : at + 5] = UNSET
        assert_same(into_unset(x, plan._replace(src_of=src_of)), there)


@pytest.mark.parametrize("threads", [1, 2])
def test_work_for_several_threads(threads: int) -> None:
    """Rows enough to be spread over threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, plan = any_bits(65, 1024, torch.float32), plan_of(65)
        assert_same(into_unset(x, plan), expected(x, plan))
    finally:
        torch.set_num_threads(before)

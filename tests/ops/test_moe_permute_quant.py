"""moe_permute_quant against per_token_group_quant_fp8, bit for bit, at every row a plan names and at no other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longcat_ops import Plan, moe_permute_quant, moe_plan, per_token_group_quant_fp8

OP = torch.ops.longcat_ops.moe_permute_quant.default
EXPERTS, K = 6, 4
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
NO_BYTE, NO_SCALE = 0x5A, 777.0  # the contents of unwritten rows


def case(tokens: int, width: int, dtype: torch.dtype = torch.bfloat16, num_local: int = EXPERTS) -> tuple[Tensor, Plan]:
    """Rows of widely varying magnitude; 0 to K choices per token, at random places."""
    g = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, width, generator=g) * 4 ** torch.randn(tokens, 1, generator=g)
    ids = torch.rand(tokens, EXPERTS + 3, generator=g).argsort(1)[:, :K].to(torch.int32)
    return x.to(dtype), moe_plan(ids.masked_fill(ids >= EXPERTS, -1), num_local)


def as_bytes(q: Tensor) -> Tensor:
    return q.view(torch.uint8)


def into_sentinels(x: Tensor, plan: Plan, column_major: bool = False) -> tuple[Tensor, Tensor]:
    """The op's (q, s), in outputs that were filled with sentinels."""
    rows, blocks = len(plan.src_of), -(-x.shape[1] // 128)
    q = torch.full((rows, x.shape[1]), NO_BYTE, dtype=torch.uint8).view(torch.float8_e4m3fn)
    s = (
        torch.full((blocks, rows + -rows % 4), NO_SCALE).t()[:rows]
        if column_major
        else torch.full((rows, blocks), NO_SCALE)
    )
    OP(x, plan.row_of, plan.src_of, q, s)
    return q, s


def assert_rows(q: Tensor, s: Tensor, x: Tensor, src_of: Tensor) -> None:
    """Rows whose source exists are the quantised token; the others are unchanged."""
    want_q, want_s = per_token_group_quant_fp8(x)
    for row, src in enumerate(src_of.tolist()):
        if 0 <= src < len(x) * K:
            assert torch.equal(as_bytes(q)[row], as_bytes(want_q)[src // K]), row
            assert torch.equal(s[row].view(torch.int32), want_s[src // K].view(torch.int32)), row  # NaN equals NaN
        else:
            assert (as_bytes(q)[row] == NO_BYTE).all(), row
            assert (s[row] == NO_SCALE).all(), row


@pytest.mark.parametrize("column_major", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [8, 128, 160, 576])
@pytest.mark.parametrize("tokens", [1, 2, 7, 33])
def test_equals_the_quantised_rows(tokens, width, dtype, column_major):
    x, plan = case(tokens, width, dtype)
    assert_rows(*into_sentinels(x, plan, column_major), x, plan.src_of)
    q, s = moe_permute_quant(x, plan, column_major_scales=column_major)
    used = int(plan.offsets[-1])
    want_q, want_s = into_sentinels(x, plan)
    assert torch.equal(as_bytes(q)[:used], as_bytes(want_q)[:used])
    assert torch.equal(s[:used], want_s[:used])
    rows = len(plan.src_of)
    assert q.shape == (rows, width) and q.is_contiguous()
    assert s.stride() == ((1, rows + -rows % 4) if column_major else (want_s.shape[1], 1))


def test_every_choice_of_a_token_gets_a_copy():
    """Every row that row_of names for a token holds a copy of the quantised token."""
    x, plan = case(33, 160)
    q, s = moe_permute_quant(x, plan)
    want_q, want_s = per_token_group_quant_fp8(x)
    copies = 0
    for t, rows in enumerate(plan.row_of.tolist()):
        for row in rows:
            if row >= 0:
                copies += 1
                assert torch.equal(as_bytes(q)[row], as_bytes(want_q)[t])
                assert torch.equal(s[row], want_s[t])
    assert copies == int(plan.offsets[-1]) > 33


@pytest.mark.parametrize("num_local", [1, 2])
def test_a_rank_with_few_experts(num_local):
    x, plan = case(33, 160, num_local=num_local)
    assert 0 < int(plan.offsets[-1]) < len(plan.src_of) == 33 * num_local
    assert_rows(*into_sentinels(x, plan), x, plan.src_of)


def test_rows_behind_the_last_are_not_written():
    x, plan = case(33, 160)
    used = int(plan.offsets[-1])
    for column_major in (False, True):
        q, s = into_sentinels(x, plan, column_major)
        assert used < len(q)
        assert (as_bytes(q)[used:] == NO_BYTE).all()
        assert (s[used:] == NO_SCALE).all()
    nothing = moe_plan(torch.full((33, K), -1, dtype=torch.int32), EXPERTS)
    q, s = into_sentinels(x, nothing)
    assert (as_bytes(q) == NO_BYTE).all()
    assert (s == NO_SCALE).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_inf_stay_in_the_copies_of_their_token(bad):
    x, plan = case(20, 160)
    clean_q, clean_s = into_sentinels(x, plan)
    x[4, 3] = bad
    q, s = into_sentinels(x, plan)
    assert_rows(q, s, x, plan.src_of)
    own = (plan.src_of >= 0) & (plan.src_of // K == 4)
    assert own.any()
    assert not s[own, 0].isfinite().any()
    assert s[own, 1].isfinite().all()  # the other group of the row
    assert torch.equal(as_bytes(q)[~own], as_bytes(clean_q)[~own])
    assert torch.equal(s[~own], clean_s[~own])


def test_a_row_of_zeros_has_a_finite_scale():
    """amax is at least 1e-4: with a scale of 0 the values would be 0 / 0."""
    x, plan = case(3, 160)
    x[1] = 0
    q, s = moe_permute_quant(x, plan)
    rows = plan.row_of[1][plan.row_of[1] >= 0].long()
    assert len(rows)
    assert not as_bytes(q)[rows].any()
    assert (s[rows] == torch.tensor(1e-4) / 448).all()


def test_a_source_that_does_not_exist_is_safe():
    x, plan = case(20, 160)
    garbage = torch.tensor([20 * K, 2**31 - 1, -2, -(2**31), 20 * K + 1], dtype=torch.int32)
    for at in (0, 11, int(plan.offsets[-1])):
        src_of = plan.src_of.clone()
        src_of[at : at + 5] = garbage
        assert_rows(*into_sentinels(x, plan._replace(src_of=src_of)), x, src_of)


def test_no_tokens():
    q, s = moe_permute_quant(*case(0, 160))
    assert q.shape == (0, 160)
    assert s.shape == (0, 2)

"""moe_plan equals Python's stable sort exactly; then the invariants for any ids."""

from __future__ import annotations

import itertools
import os
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from longcat_ops import Plan, moe_plan, reference
from longcat_ops.testing.op_results import bits
from support import plan_oracle

OP = torch.ops.longcat_ops.moe_plan.default
TOKENS = [0, 1, 2, 7, 31, 33, 96, 1000]
if os.environ.get("LONGCAT_OPS_BACKEND") == "emu":
    TOKENS.pop()  # slow; test_moe_plan_emu.py has more choices than one block takes
INT_MIN, INT_MAX = -(2**31), 2**31 - 1
PlanLists = tuple[list[int], list[list[int]], list[int]]


def sorted_plan(ids: Tensor, num_local: int, weights: Tensor | None = None) -> PlanLists:
    """(offsets, row_of, src_of) by sorting (expert, place) pairs; for tokens that name no expert twice."""
    tokens, k = ids.shape
    weighed = [1.0] * ids.numel() if weights is None else weights.flatten().tolist()
    places = sorted(
        (e, place)
        for place, (e, weight) in enumerate(zip(ids.flatten().tolist(), weighed, strict=True))
        if 0 <= e < num_local and weight != 0
    )
    row_of = [-1] * (tokens * k)
    for row, (_, place) in enumerate(places):
        row_of[place] = row
    counts = [0] * num_local
    for e, _ in places:
        counts[e] += 1
    src_of = [place for _, place in places]
    return (
        list(accumulate(counts, initial=0)),
        [row_of[t * k : (t + 1) * k] for t in range(tokens)],
        src_of + [-1] * (tokens * min(k, num_local) - len(src_of)),
    )


def random_ids(tokens: int, num_local: int, k: int, seed: int = 0) -> Tensor:
    """Distinct experts out of 1.5 times the local ones, in any order; a third of the non-local ids become -1."""
    g = torch.Generator().manual_seed(seed)
    experts = max(num_local + num_local // 2, k + k // 2, 2)
    ids = torch.rand(tokens, experts, generator=g).argsort(1)[:, :k].to(torch.int32)
    lost = (ids >= num_local) & (torch.rand(tokens, k, generator=g) < 1 / 3)
    return ids.masked_fill(lost, -1).contiguous()


def as_lists(plan: Plan) -> PlanLists:
    assert [t.dtype for t in plan] == [torch.int32] * 3
    return tuple(t.tolist() for t in plan)


def assert_sound(plan: Plan, ids: Tensor, num_local: int) -> None:
    """Invariants of every plan, for any ids: nothing points outside, and both directions agree."""
    tokens, k = ids.shape
    offsets, row_of, src_of = (t.long() for t in plan)
    rows = tokens * min(k, num_local)
    assert [list(t.shape) for t in plan] == [[num_local + 1], [tokens, k], [rows]]
    used = int(offsets[-1])
    assert offsets[0] == 0
    assert (offsets.diff() >= 0).all()
    assert used == min(int(((ids >= 0) & (ids < num_local)).sum()), rows)
    assert (src_of[used:] == -1).all()
    flat = row_of.flatten()
    assert torch.equal(flat[src_of[:used]], torch.arange(used))
    placed = (flat >= 0).nonzero()[:, 0]
    assert (flat >= -1).all()
    assert len(placed) == used
    assert torch.equal(src_of[flat[placed]], placed)
    expert = ids.flatten()[placed].long()
    assert ((flat[placed] >= offsets[expert]) & (flat[placed] < offsets[expert + 1])).all()


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(
    ("num_local", "k"),
    [(1, 1), (1, 12), (6, 4), (6, 12), (6, 32), (96, 1), (96, 8), (512, 12), (512, 32), (1024, 12)],
)
def test_equals_a_stable_sort(tokens, num_local, k):
    ids = random_ids(tokens, num_local, k)
    plan = moe_plan(ids, num_local)
    assert as_lists(plan) == sorted_plan(ids, num_local)
    assert_sound(plan, ids, num_local)


@pytest.mark.parametrize("tokens", [*TOKENS, 300])
@pytest.mark.parametrize(("num_local", "k"), [(1, 1), (1, 12), (6, 1), (6, 4), (6, 32), (96, 8), (512, 32)])
def test_choices_of_weight_0_have_no_row(tokens, num_local, k):
    """Weights of +0 and -0 have no row; NaN, inf, negative and subnormal ones do. 300 x 32 choices exceed a block."""
    ids, weights = plan_oracle.weighted(random_ids(tokens, num_local, k))
    expected = sorted_plan(ids, num_local, weights)
    assert as_lists(moe_plan(ids, num_local, weights)) == expected
    assert as_lists(reference.moe_plan(ids, num_local, weights)) == expected
    assert bits(moe_plan(ids.masked_fill(weights == 0, -1), num_local)) == bits(moe_plan(ids, num_local, weights))


def test_what_a_weight_of_0_is():
    """By hand: tokens lose their last choice, all but one, or all local ones; a repeated expert 0 takes no row."""
    nan, inf = torch.nan, torch.inf
    ids = torch.tensor([[0, 1, 0, 0], [1, 0, 2, 1], [2, 1, 0, 3]], dtype=torch.int32)
    weights = torch.tensor([[0.0, 2.0, 0.0, -0.0], [nan, 1e-45, -inf, 0.0], [-0.0, 0.0, -0.0, 1.0]])
    want = ([0, 1, 3, 4], [[-1, 1, -1, -1], [2, 0, 3, -1], [-1, -1, -1, -1]], [5, 1, 4, 6, *[-1] * 5])
    for plan in (moe_plan(ids, 3, weights), reference.moe_plan(ids, 3, weights)):
        assert as_lists(plan) == want


@pytest.mark.parametrize("tokens", [1, 9, 300])
def test_weights_of_0_alone_leave_no_row(tokens):
    ids, weights = random_ids(tokens, 6, 32), torch.zeros(tokens, 32)
    weights[:, ::3] = -0.0
    offsets, row_of, src_of = as_lists(moe_plan(ids, 6, weights))
    assert offsets == [0] * 7
    assert row_of == [[-1] * 32] * tokens
    assert src_of == [-1] * tokens * 6


@pytest.mark.parametrize("value", [1.0, -1.0, 1e-45, torch.nan, -torch.inf])
def test_other_weights_change_nothing(value):
    ids = random_ids(96, 6, 4)
    weights = torch.full((96, 4), value)
    assert bits(moe_plan(ids, 6, weights)) == bits(moe_plan(ids, 6, None)) == bits(moe_plan(ids, 6))
    assert bits(moe_plan(ids, 6, weights=weights)) == bits(moe_plan(ids, 6))


def test_expert_0_at_weight_0_takes_no_row_from_others():
    """Engines pass zero experts this way, up to K - 1 times per token; only the real choices have rows."""
    ids = torch.zeros(50, 12, dtype=torch.int32)
    weights = torch.zeros(50, 12)
    weights[:, 11] = 0.5
    plan = moe_plan(ids, 1, weights)  # R is T here
    assert plan.offsets.tolist() == [0, 50]
    assert plan.row_of[:, 11].tolist() == list(range(50)) and (plan.row_of[:, :11] == -1).all()


@pytest.mark.parametrize("groups", plan_oracle.GROUPS)
def test_all_sizes_equal_torch_sort(groups):
    few = os.environ.get("LONGCAT_OPS_BACKEND") == "emu"
    sizes = itertools.product(plan_oracle.TOKENS[:4] if few else plan_oracle.TOKENS, plan_oracle.TOP_K)
    for tokens, top_k in [*sizes, *[(8192, 12), (65536, 12)] * (groups == 96 and not few)]:
        ids = plan_oracle.experts(tokens, groups, top_k)
        expected = bits(plan_oracle.sorted_plan(ids, groups))
        assert bits(moe_plan(ids, groups)) == expected
        assert bits(reference.moe_plan(ids, groups)) == expected


@pytest.mark.parametrize("tokens", [0, 3, 96])
def test_every_element_is_written(tokens):
    """Every element of prefilled outputs is written, as the public function passes uninitialised memory."""
    ids = random_ids(tokens, 6, 4)
    plan = Plan(*(torch.full_like(t, 12345) for t in moe_plan(ids, 6)))
    OP(ids, 6, None, *plan)
    assert as_lists(plan) == sorted_plan(ids, 6)
    ids, weights = plan_oracle.weighted(ids)
    plan = Plan(*(torch.full_like(t, 12345) for t in plan))
    OP(ids, 6, weights, *plan)
    assert as_lists(plan) == sorted_plan(ids, 6, weights)


@pytest.mark.parametrize("expert", [0, 5, 511])
def test_no_token_is_dropped_when_all_choose_one_expert(expert):
    """No capacity factor: the busiest expert may get every token."""
    ids = torch.full((777, 12), -1, dtype=torch.int32)
    ids[:, 7] = expert
    plan = moe_plan(ids, 512)
    assert plan.offsets.tolist() == [0] * (expert + 1) + [777] * (512 - expert)
    assert plan.row_of[:, 7].tolist() == list(range(777))
    assert plan.src_of[:777].tolist() == list(range(7, 777 * 12, 12))


def test_no_choice_here():
    for ids in (torch.full((9, 4), -1, dtype=torch.int32), torch.full((9, 4), 3, dtype=torch.int32)):
        offsets, row_of, src_of = as_lists(moe_plan(ids, 3))
        assert offsets == [0] * 4
        assert row_of == [[-1] * 4] * 9
        assert src_of == [-1] * 27


def test_ids_out_of_range_have_no_row():
    ids = torch.tensor([[INT_MIN, 0, INT_MAX, 2], [3, -2, 1, -1], [4, 1024, 0, -1024], [2, 65536, -65536, 1]])
    ids = ids.to(torch.int32)
    plan = moe_plan(ids, 3)
    assert as_lists(plan) == ([0, 2, 4, 6], [[-1, 0, -1, 4], [-1, -1, 2, -1], [-1, -1, 1, -1], [5, -1, -1, 3]],
                              [1, 10, 6, 15, 3, 12, -1, -1, -1, -1, -1, -1])  # fmt: skip


@pytest.mark.parametrize(("num_local", "k"), [(1, 32), (2, 5), (3, 12), (6, 32)])
@pytest.mark.parametrize("tokens", [1, 8, 33])
def test_repeated_ids_stay_within_the_rows(tokens, num_local, k):
    """Repeated ids are illegal, but nothing is written outside: R rows do not hold T * K choices."""
    ids = torch.full((tokens, k), num_local - 1, dtype=torch.int32)
    plan = moe_plan(ids, num_local)
    assert_sound(plan, ids, num_local)
    assert plan.offsets.tolist() == [0] * num_local + [tokens * min(k, num_local)]


@given(data=st.data())
def test_any_ids_give_a_sound_plan(data):
    tokens, k, num_local = (data.draw(st.integers(low, high)) for low, high in ((0, 9), (1, 8), (1, 7)))
    value = st.one_of(st.integers(-2, num_local + 1), st.sampled_from([INT_MIN, INT_MAX]))
    row = st.lists(value, min_size=k, max_size=k)
    ids = torch.tensor(data.draw(st.lists(row, min_size=tokens, max_size=tokens)), dtype=torch.int32).view(tokens, k)
    plan = moe_plan(ids, num_local)
    assert_sound(plan, ids, num_local)
    if all(len({e for e in r if e >= 0}) == sum(e >= 0 for e in r) for r in ids.tolist()):
        assert as_lists(plan) == sorted_plan(ids, num_local)
    number = st.one_of(st.sampled_from(plan_oracle.WEIGHTS), st.floats(width=32))
    weights = data.draw(st.lists(number, min_size=tokens * k, max_size=tokens * k))
    weights = torch.tensor(weights, dtype=torch.float32).view(tokens, k)
    kept = ids.masked_fill(weights == 0, -1)
    plan = moe_plan(ids, num_local, weights)
    assert_sound(plan, kept, num_local)
    assert bits(plan) == bits(moe_plan(kept, num_local))


def test_few_local_experts_need_few_rows():
    """R = T * min(K, G): a rank with one expert of 512 reserves T rows, not 12 T."""
    ids = random_ids(50, 512, 12)
    for num_local in (1, 2, 11, 12, 13):
        plan = moe_plan(ids, num_local)
        assert len(plan.src_of) == 50 * min(12, num_local)
        assert as_lists(plan) == sorted_plan(ids, num_local)
    ids = torch.arange(12, dtype=torch.int32).flip(0).repeat(50, 1)
    plan = moe_plan(ids, 4)  # each token names every local expert: R is reached exactly
    assert int(plan.offsets[-1]) == len(plan.src_of) == 200
    assert as_lists(plan) == sorted_plan(ids, 4)


def test_the_same_bits_on_every_run():
    ids = random_ids(1000, 96, 8)
    first = moe_plan(ids, 96)
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(moe_plan(ids, 96), first, strict=True))


def test_more_tokens_do_not_change_the_order_of_the_first():
    ids = random_ids(96, 6, 4)
    whole, part = moe_plan(ids, 6), moe_plan(ids[:40], 6)
    first = [src for src in whole.src_of.tolist() if 0 <= src < 160]
    assert first == part.src_of[: int(part.offsets[-1])].tolist()

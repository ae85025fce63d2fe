"""The kernels of moe_plan in the host emulator, with its detectors on, equal torch's stable sort exactly. The op's own
tests run on them too (tests/kernels/test_emu_backend.py).
"""

from __future__ import annotations

import itertools

import pytest
import torch

from longcat_ops.ops import emulated
from longcat_ops.testing.op_results import bits
from support.plan_calls import (
    check,
    check_no_choice_at_all,
    check_repeated_ids_write_nothing_outside,
    check_weighted,
    plan,
)
from support.plan_oracle import GROUPS, TOKENS, TOP_K, experts, sorted_plan

# (tokens, groups, top_k): a block of one, few and many warps with one step each; more and fewer experts than a block's
# choices. Above 8192 choices a cluster of two blocks, above 16384 (in the emulator) several launches, whose last block
# is full, ends inside a warp, or has most warps without a choice.
CASES = [(0, 8, 4), (1, 24, 12), (2, 1000, 32), (7, 8, 12), (33, 3, 1), (96, 24, 8), (192, 48, 12)]
SEVERAL = [(257, 40, 32), (320, 9, 32), (512, 24, 32), (513, 24, 32), (545, 9, 32)]


@pytest.mark.parametrize("policy", emulated.POLICIES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_a_stable_sort(case: tuple[int, ...], policy: str) -> None:
    for seed in (1, 2):
        emulated.configure(seed=seed, policy=policy)
        check(*case, seed=seed)


@pytest.mark.parametrize("policy", emulated.POLICIES)
@pytest.mark.parametrize("case", SEVERAL, ids=str)
def test_several_blocks_equal_a_stable_sort(case: tuple[int, ...], policy: str) -> None:
    for seed in (1, 2):
        emulated.configure(seed=seed, policy=policy)
        check(*case, seed=seed)


@pytest.mark.parametrize("policy", emulated.POLICIES)
@pytest.mark.parametrize("case", [*CASES, *SEVERAL], ids=str)
def test_choices_of_weight_0_have_no_row(case: tuple[int, ...], policy: str) -> None:
    """Choices of weight 0, among weights of every kind, have no row, in one block and in several."""
    emulated.configure(seed=3, policy=policy)
    check_weighted(*case, seed=3)


def test_weights_that_are_not_0_change_nothing() -> None:
    for tokens in (96, 300, 520):
        ids = experts(tokens, 24, 32)
        made = plan(ids, 24, torch.full(ids.shape, torch.nan))
        assert bits(made) == bits(plan(ids, 24)) == bits(sorted_plan(ids, 24))


@pytest.mark.slow
@pytest.mark.parametrize("groups", GROUPS)
def test_all_sizes_equal_a_stable_sort(groups: int) -> None:
    for seed, (tokens, top_k) in enumerate(itertools.product(TOKENS, TOP_K)):
        emulated.configure(seed=seed, policy=list(emulated.POLICIES)[seed % 3])
        check(tokens, groups, top_k, seed)


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "groups"), [(8192, 512), (8192, 64), (65536, 512)])
def test_prefill_equals_a_stable_sort(tokens: int, groups: int) -> None:
    emulated.configure(seed=1, policy="eager", detectors=tokens < 65536)
    check(tokens, groups, 12, seed=0)


def test_ids_that_no_expert_has() -> None:
    """Ids below 0 or from the number of experts on, to both ends of int32, have no row, in one block and in several."""
    values = torch.tensor([-(2**31), -2, -1, 0, 4, 5, 6, 1024, 65536, 2**31 - 1], dtype=torch.int32)
    for tokens in (5, 1700, 3300):
        ids = values[torch.arange(tokens * 5).view(tokens, 5) * 3 % 10].contiguous()
        made = plan(ids, 5)
        assert bits(made) == bits(sorted_plan(ids, 5))
        assert 0 < int(made.offsets[-1]) < len(made.src_of)


def test_no_choice_at_all() -> None:
    check_no_choice_at_all()


@pytest.mark.parametrize("tokens", [40, 300])
def test_repeated_ids_write_nothing_outside(tokens: int) -> None:
    check_repeated_ids_write_nothing_outside(tokens)


def test_the_same_bits_on_50_runs() -> None:
    ids = experts(40, 24, 8)
    first = bits(plan(ids, 24))
    for seed in range(50):
        emulated.configure(seed=seed, policy=list(emulated.POLICIES)[seed % 3])
        assert bits(plan(ids, 24)) == first


def test_the_order_of_the_first_tokens_stays_in_larger_batches() -> None:
    """The first tokens keep their order when a batch grows from one block to several."""
    ids = experts(300, 24, 32)
    whole, part = plan(ids, 24), plan(ids[:100].contiguous(), 24)
    first = whole.src_of[(whole.src_of >= 0) & (whole.src_of < 3200)]
    assert torch.equal(first, part.src_of[: int(part.offsets[-1])])

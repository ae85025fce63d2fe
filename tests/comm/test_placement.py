"""balance_experts: every expert is placed, ranks are balanced, the result is one; and experts in slots give the bits of
the logical ones.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from longcat_ops import LongcatShapeError, Placement, Routing, fused_moe, moe_place, moe_plan
from longcat_ops.comm import balance_experts
from longcat_ops.testing.op_results import bits
from support.fused_moe_cases import BF16, dense_weights, fp8_weights, make


def assert_sound(placement: Placement, experts: int, ranks: int, replicas: int) -> None:
    """By loops: the three tables agree, each rank has as many slots, by rising expert, and no expert twice."""
    slots, counts, expert_of = (t.tolist() for t in placement)
    assert [t.dtype for t in placement] == [torch.int32] * 3
    assert len(slots) == len(counts) == experts
    assert len(expert_of) == sum(counts) == experts + replicas
    assert placement.slots.shape[1] == max(counts) <= ranks
    size = len(expert_of) // ranks
    for expert, (row, count) in enumerate(zip(slots, counts, strict=True)):
        assert count >= 1
        assert row == [s for s, e in enumerate(expert_of) if e == expert] + [-1] * (len(row) - count)
    for rank in range(ranks):
        own = expert_of[rank * size : (rank + 1) * size]
        assert own == sorted(set(own)), "an expert twice on a rank"


def loads(counts: Tensor, placement: Placement, ranks: int) -> Tensor:
    """Tokens of each rank, where replicas share their expert's evenly."""
    share = counts.double() / placement.replicas
    return share[placement.experts.long()].view(ranks, -1).sum(1)


def imbalance(counts: Tensor, placement: Placement, ranks: int) -> float:
    found = loads(counts, placement, ranks)
    return float(found.max() / found.mean())


def skewed(experts: int, seed: int, power: float = 0.7) -> Tensor:
    """Counts that fall off as a power of the rank of popularity, in random order, with some noise."""
    g = torch.Generator().manual_seed(seed)
    popular = (torch.randperm(experts, generator=g) + 1.0) ** -power
    return (1e5 * popular * (0.8 + 0.4 * torch.rand(experts, generator=g))).int()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("experts", "ranks", "replicas", "bound"),
    [
        (512, 8, 0, 1.03),
        (512, 8, 64, 1.001),
        (512, 32, 32, 1.002),
        (512, 32, 128, 1.002),
        (512, 128, 128, 1.015),
        (96, 8, 32, 1.003),
        (16, 4, 8, 1.02),
    ],
)
def test_ranks_are_balanced(experts, ranks, replicas, bound, seed):
    """The busiest rank has at most `bound` of the mean. In order of their ids, experts do worse: 1.26 to 8 times."""
    counts = skewed(experts, seed)
    placement = balance_experts(counts, ranks, replicas)
    assert_sound(placement, experts, ranks, replicas)
    found, in_order = imbalance(counts, placement, ranks), counts.view(ranks, -1).double().sum(1)
    assert found <= bound < float(in_order.max() / in_order.mean())


def test_by_hand():
    """Counts 8, 6, 2, 2 with two further slots: the first has 4 a replica then, the second 3. Three slots a rank; the
    heaviest first: 4 and 4 to ranks 0 and 1, 3 and 3 likewise, 2 to rank 0 and 2 to rank 1."""
    placement = balance_experts([8, 6, 2, 2], ranks=2, replicas=2)
    assert placement.replicas.tolist() == [2, 2, 1, 1]
    assert placement.experts.tolist() == [0, 1, 2, 0, 1, 3]
    assert placement.slots.tolist() == [[0, 3], [1, 4], [2, -1], [5, -1]]


def test_without_replicas_the_heaviest_come_first():
    placement = balance_experts([1, 5, 2, 4], ranks=2)  # 5 to rank 0, 4 to rank 1, 2 there, 1 to rank 0
    assert placement.experts.tolist() == [0, 1, 2, 3]
    placement = balance_experts([5, 1, 1, 5, 1, 5], ranks=3)
    assert placement.experts.tolist() == [0, 1, 2, 3, 4, 5]
    placement = balance_experts([1, 1, 5, 5], ranks=2)
    assert placement.experts.tolist() == [0, 2, 1, 3]
    assert placement.slots.tolist() == [[0], [2], [1], [3]]


def test_ties_go_to_lower_ids_and_lower_ranks():
    """Equal counts: further slots for experts 0 and 1, and all of it in order of experts, ranks in turn."""
    placement = balance_experts([3, 3, 3, 3], ranks=2, replicas=2)
    assert placement.replicas.tolist() == [2, 2, 1, 1]
    assert placement.experts.tolist() == [0, 1, 2, 0, 1, 3]
    # A third is exact: three replicas of 1/3 weigh as much as one of 1.
    placement = balance_experts([1, 1, 1, 1, 1, 1], ranks=3, replicas=0)
    assert placement.experts.tolist() == [0, 3, 1, 4, 2, 5]
    assert balance_experts([1 / 3] * 6, ranks=3).experts.tolist() == [0, 3, 1, 4, 2, 5]


def test_no_tokens_yet():
    """Of counts that are all 0, the lowest experts have the replicas, and each rank its share of slots."""
    placement = balance_experts([0] * 6, ranks=2, replicas=2)
    assert_sound(placement, 6, 2, 2)
    assert placement.replicas.tolist() == [2, 2, 1, 1, 1, 1]
    assert_sound(balance_experts([0] * 512, 8, 64), 512, 8, 64)
    assert_sound(balance_experts([0.0], 1), 1, 1, 0)


def test_all_tokens_to_one_expert():
    """It is on every rank; the other slots go to the lowest ids."""
    counts = torch.zeros(8, dtype=torch.int32)
    counts[5] = 1000
    placement = balance_experts(counts, ranks=4, replicas=4)
    assert_sound(placement, 8, 4, 4)
    assert placement.replicas.tolist() == [2, 1, 1, 1, 1, 4, 1, 1]
    assert loads(counts, placement, 4).tolist() == [250.0] * 4


def test_one_rank_and_full_replication():
    placement = balance_experts([4, 9, 1], ranks=1)
    assert placement.experts.tolist() == [0, 1, 2] and placement.slots.tolist() == [[0], [1], [2]]
    placement = balance_experts([4, 9, 1], ranks=4, replicas=9)  # every expert on every rank
    assert placement.experts.view(4, 3).tolist() == [[0, 1, 2]] * 4
    assert_sound(balance_experts([7], ranks=5, replicas=4), 1, 5, 4)


def test_the_same_for_every_form_of_the_counts():
    counts = skewed(64, 3)
    expected = bits(balance_experts(counts, 8, 8))
    for form in (
        counts.long(),
        counts.double(),
        counts.tolist(),
        tuple(counts.tolist()),
        [c * 0.25 for c in counts.tolist()],
    ):
        assert bits(balance_experts(form, 8, 8)) == expected
    for _ in range(3):
        assert bits(balance_experts(counts.clone(), 8, 8)) == expected


def test_counts_beyond_what_floats_hold():
    """2^53 + 1 and 2^53 are one float64: the larger still has the replica."""
    assert balance_experts([2**53, 2**53 + 1, 0], 2, 1).replicas.tolist() == [1, 2, 1]
    assert balance_experts([1e-300, 1e300, 5e-324], 2, 1).replicas.tolist() == [1, 2, 1]


@given(data=st.data())
def test_any_counts(data):
    ranks, experts = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 14))
    legal = [r for r in range(experts * (ranks - 1) + 1) if (experts + r) % ranks == 0]
    if not legal:
        return
    replicas = data.draw(st.sampled_from(legal))
    number = st.one_of(st.integers(0, 3), st.integers(0, 2**40), st.floats(0, 1e9))
    counts = data.draw(st.lists(number, min_size=experts, max_size=experts))
    placement = balance_experts(counts, ranks, replicas)
    assert_sound(placement, experts, ranks, replicas)
    shares = [count / copies for count, copies in zip(counts, placement.replicas.tolist(), strict=True)]
    for a, copies in enumerate(placement.replicas.tolist()):
        if copies > 1:  # it got its last slot as the busiest, but for those on every rank
            before = counts[a] / (copies - 1)
            others = [s for s, c in zip(shares, placement.replicas.tolist(), strict=True) if c < ranks]
            assert all(before >= share * (1 - 1e-12) for share in others)


BAD = [
    (([], 1), "`counts` is empty, expected at least one expert"),
    (([1, -1], 1), "`counts[1]` is -1, expected a finite number, at least 0"),
    (([1.0, math.nan], 1), "`counts[1]` is nan, expected a finite number, at least 0"),
    (([math.inf], 1), "`counts[0]` is inf, expected a finite number"),
    ((torch.tensor([0.0, torch.nan]), 1), "`counts[1]` is nan"),
    (([1, "2"], 1), "`counts[1]` is of type str, expected int or float"),
    (([True], 1), "`counts[0]` is of type bool, expected int or float"),
    ((3, 1), "`counts` is of type int, expected a tensor or a sequence"),
    (("123", 1), "`counts` is of type str, expected a tensor or a sequence"),
    ((torch.ones(2, 2), 1), "`counts` is torch.float32 of shape [2, 2], expected integers or floats of shape [N]"),
    ((torch.ones(2, dtype=torch.bool), 1), "`counts` is torch.bool of shape [2], expected integers or floats"),
    ((torch.zeros(0), 1), "`counts` is empty"),
    (([1, 2], 0), "`ranks` is 0, expected at least 1"),
    (([1, 2], 2.0), "`ranks` is of type float, expected of type int"),
    (([1, 2], True), "`ranks` is of type bool, expected of type int"),
    (([1, 2], 2, -2), "`replicas` is -2, expected at least 0"),
    (([1, 2], 2, None), "`replicas` is of type NoneType, expected of type int"),
    (([1, 2], 1, 1), "`replicas` is 1, expected at most 0, one of each of N = 2 experts on each further rank"),
    (([1, 2], 3, 7), "`replicas` is 7, expected at most 4"),
    (([1, 2, 3], 2, 2), "`replicas` is 2, expected a number for which N + replicas = 3 + 2 is a multiple of ranks = 2"),
    (([1, 2, 3], 2), "`replicas` is 0, expected a number for which N + replicas = 3 + 0 is a multiple of ranks = 2"),
]


@pytest.mark.parametrize(("arguments", "text"), BAD)
def test_bad_arguments(arguments, text):
    with pytest.raises(LongcatShapeError) as caught:
        balance_experts(*arguments)
    assert str(caught.value).startswith("balance_experts: argument `")
    assert text in str(caught.value)


def gathered(weight: Tensor | tuple[Tensor, Tensor], experts: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    return tuple(t[experts] for t in weight) if isinstance(weight, tuple) else weight[experts]


def routed(routing: Routing, experts: int) -> Routing:
    """With choices that are none: id -1, weight 0, and both."""
    ids, weights = routing.ids.clone(), routing.weights.clone()
    weights[1::5, 0] = 0.0
    ids[2::7, 1], weights[2::7, 1] = -1, 0.0
    ids[3:4], weights[3:4] = -1, 0.0
    assert int(ids.max()) == experts - 1
    return routing._replace(ids=ids, weights=weights)


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize(("ranks", "replicas"), [(2, 0), (2, 4), (3, 3), (6, 18)])
def test_experts_in_slots_give_the_bits_of_the_logical_ones(ranks, replicas, fp8):
    tokens, experts = 61, 6
    x, routing, gate_up, down = make(tokens, 128, 64, experts, dtype=BF16)
    weights = (fp8_weights if fp8 else dense_weights)(gate_up, down)
    routing = routed(routing, experts)
    expected = fused_moe(x, routing, *weights)
    placement = balance_experts(routing.counts[:experts], ranks, replicas)
    slot_experts = placement.experts.long()
    for layer in (0, 13):
        slots = moe_place(routing.ids, placement, layer)
        assert torch.equal(slots >= 0, routing.ids >= 0)
        assert torch.equal(slot_experts[slots.clamp(min=0).long()][slots >= 0], routing.ids[slots >= 0].long())
        placed = routing._replace(ids=slots)
        out = fused_moe(x, placed, *(gathered(w, slot_experts) for w in weights))
        assert bits(out) == bits(expected)
    used = moe_plan(slots, experts + replicas, routing.weights).offsets.diff().count_nonzero()
    assert used > experts or replicas < 4  # replicas are in use

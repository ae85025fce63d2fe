"""moe_place equals plain loops; its choice of replicas is even, and the same wherever the same tokens are seen."""

from __future__ import annotations

import itertools
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longcat_ops import Placement, moe_place, moe_plan, reference
from support.place_oracle import (
    INT_MAX,
    INT_MIN,
    hostile_placement,
    murmur3_finaliser,
    placed,
    random_ids,
    random_placement,
)

OP = torch.ops.longcat_ops.moe_place.default
EMULATED = os.environ.get("LONGCAT_OPS_BACKEND") == "emu"
LAYERS = [0, 1, 27, 2**31 - 1]


def both(ids: torch.Tensor, placement: Placement, layer: int) -> list[list[int]]:
    out = moe_place(ids, placement, layer)
    assert out.dtype == torch.int32 and out.shape == ids.shape and out.is_contiguous()
    assert torch.equal(out, reference.moe_place(ids, placement, layer))
    return out.tolist()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("experts", "most"), [(1, 1), (6, 1), (6, 4), (96, 3), (512, 8), (1024, 2)])
@pytest.mark.parametrize("tokens", [0, 1, 7, 33, 192])
def test_equals_plain_loops(tokens, experts, most, layer):
    for k in (1, 4, 12, 32):
        ids, placement = random_ids(tokens, k, experts, tokens + k), random_placement(experts, most, k)
        assert both(ids, placement, layer) == placed(ids, placement, layer)


def test_the_hash_is_the_one_that_is_documented():
    """By hand: values of the published finaliser, and what they make of the first tokens of layers 0 and 1."""
    assert [murmur3_finaliser(h) for h in (0, 1, 2**32 - 1)] == [0, 0x514E28B7, 0x81F16F39]
    ids = torch.zeros(2, 1, dtype=torch.int32)
    slots = torch.arange(1000, dtype=torch.int32)[None]
    placement = Placement(slots, torch.tensor([1000], dtype=torch.int32), torch.zeros(1000, dtype=torch.int32))
    assert both(ids, placement, 0) == [[0], [0x514E28B7 % 1000]]
    assert both(ids[:1], placement, 1) == [[murmur3_finaliser(0x9E3779B9) % 1000]]
    assert both(ids[:1], placement, 2) == [[murmur3_finaliser(2 * 0x9E3779B9 % 2**32) % 1000]]


def test_ids_without_an_expert_have_no_slot():
    ids = torch.tensor([[-1, 0, 3, 2], [INT_MIN, INT_MAX, 4, -2]], dtype=torch.int32)
    placement = Placement(
        torch.tensor([[4], [1], [0]], dtype=torch.int32),
        torch.ones(3, dtype=torch.int32),
        torch.tensor([2, 1, 0, 0, 0], dtype=torch.int32),
    )
    assert both(ids, placement, 5) == [[-1, 4, -1, 0], [-1, -1, -1, -1]]


@pytest.mark.parametrize(("experts", "most"), [(8, 1), (64, 3), (512, 2)])
def test_no_content_of_the_tables_is_unsafe(experts, most):
    """Numbers of replicas out of 1 .. M leave no slot. What the slots hold is passed on, and moe_plan takes it."""
    ids, placement = random_ids(50, 12, experts), hostile_placement(experts, most)
    out = both(ids, placement, 3)
    assert out == placed(ids, placement, 3)
    assert moe_plan(torch.tensor(out, dtype=torch.int32), 6).offsets[-1] <= 50 * 6


@pytest.mark.parametrize("tokens", [0, 3, 96])
def test_every_element_is_written(tokens):
    ids, placement = random_ids(tokens, 12, 64), random_placement(64, 3)
    out = torch.full_like(ids, 12345)
    OP(ids, placement.slots, placement.replicas, 1, out)
    assert out.tolist() == placed(ids, placement, 1)


def test_threads_count_tokens_from_the_first():
    """So many tokens that several threads share them."""
    tokens = 400 if EMULATED else 30000
    ids, placement = random_ids(tokens, 12, 512), random_placement(512, 4)
    assert torch.equal(moe_place(ids, placement, 7), reference.moe_place(ids, placement, 7))


def shares(tokens: int, replicas: int, layer: int) -> torch.Tensor:
    """Tokens of one expert at each of its replicas."""
    ids = torch.zeros(tokens, 1, dtype=torch.int32)
    slots = torch.arange(replicas, dtype=torch.int32)
    placement = Placement(slots[None], torch.tensor([replicas], dtype=torch.int32), torch.zeros_like(slots))
    return moe_place(ids, placement, layer).flatten().bincount(minlength=replicas)


@pytest.mark.parametrize("replicas", [2, 3, 4, 7, 8])
def test_replicas_share_the_tokens_evenly(replicas):
    """As evenly as random choices: chi-square of R - 1 degrees, whose mean over layers and sizes is R - 1."""
    found = []
    for tokens in (192, 512) if EMULATED else (192, 1024, 8192):
        for layer in range(28):
            counts, mean = shares(tokens, replicas, layer).double(), tokens / replicas
            assert counts.sum() == tokens
            found.append(float(((counts - mean) ** 2 / mean).sum()))
    freedom = replicas - 1
    assert sum(found) / len(found) < freedom + 4 * (2 * freedom / len(found)) ** 0.5
    assert max(found) < freedom + 6 * (2 * freedom) ** 0.5 + 6


def test_the_tokens_of_an_expert_share_evenly_too():
    """Tokens at even places alone, every third, and a random fifth: no pattern of tokens prefers a replica."""
    g = torch.Generator().manual_seed(0)
    for chosen in (torch.arange(2000) % 2 == 0, torch.arange(2000) % 3 == 1, torch.rand(2000, generator=g) < 0.2):
        ids = torch.where(chosen, 0, -1).int()[:, None]
        placement = Placement(torch.tensor([[0, 1]]).int(), torch.tensor([2]).int(), torch.tensor([0, 0]).int())
        found = moe_place(ids, placement, 11).flatten()
        count = int(chosen.sum())
        assert (found[~chosen] == -1).all()
        assert abs(int((found == 1).sum()) - count / 2) < 4 * (count / 4) ** 0.5


def test_layers_choose_independently():
    """Of 8192 tokens, neighbouring layers give a half, not all, the same of two replicas."""
    tokens = 512 if EMULATED else 8192
    ids = torch.zeros(tokens, 1, dtype=torch.int32)
    placement = Placement(torch.tensor([[0, 1]]).int(), torch.tensor([2]).int(), torch.tensor([0, 0]).int())
    layers = [moe_place(ids, placement, layer) for layer in range(28)]
    for a, b in itertools.pairwise(layers):
        assert abs(int((a == b).sum()) - tokens / 2) < 5 * (tokens / 4) ** 0.5


def test_the_same_tokens_have_the_same_replicas_on_every_rank():
    """The choice reads the number of the token and the layer alone: not the other tokens, nor the place among k."""
    ids, placement = random_ids(96, 12, 64), random_placement(64, 5)
    whole = moe_place(ids, placement, 4)
    assert torch.equal(moe_place(ids[:40].contiguous(), placement, 4), whole[:40])
    assert torch.equal(moe_place(ids.flip(1).contiguous(), placement, 4), whole.flip(1))
    for _ in range(3):
        assert torch.equal(moe_place(ids.clone(), placement, 4), whole)


@given(data=st.data())
def test_any_tables_and_ids(data):
    tokens, k, experts, most = (data.draw(st.integers(low, high)) for low, high in ((0, 5), (1, 4), (1, 5), (1, 4)))
    number = st.one_of(st.integers(-2, 6), st.sampled_from([INT_MIN, INT_MAX]))

    def table(*shape: int) -> torch.Tensor:
        count = torch.Size(shape).numel()
        values = data.draw(st.lists(number, min_size=count, max_size=count))
        return torch.tensor(values, dtype=torch.int32).view(shape)

    ids, placement = table(tokens, k), Placement(table(experts, most), table(experts), table(0))
    layer = data.draw(st.integers(0, 2**31 - 1))
    assert both(ids, placement, layer) == placed(ids, placement, layer)

"""Decode = verify, bit for bit: a draft beside a row, accepted or rolled back, does not change the row's logits."""

from __future__ import annotations

import pytest
import torch

from support import models
from support.decode_passes import NEW, gather, plain, prefilled, verified

pytestmark = pytest.mark.long

# Wide enough that a CPU library blocks its sums differently for different row counts; no width fills whole vectors.
SHAPE = dict(hidden_size=160, q_lora_rank=96, kv_lora_rank=80, ffn_hidden_size=200, expert_ffn_hidden_size=72,
             n_routed_experts=8, zero_expert_num=4, moe_topk=4)  # fmt: skip
KINDS = {
    "fp32": dict(dtype=torch.float32),
    "fp64": dict(dtype=torch.float64),
    "bf16": dict(dtype=torch.bfloat16),
    "fp8_bf16": dict(dtype=torch.bfloat16, precision="fp8"),
    "fp8_fp32": dict(dtype=torch.float32, precision="fp8"),
}
STARTS = {
    1: [[59], [125]],
    3: [[60, 1, 126], [63, 64, 65]],
    4: [[62, 3, 20, 64], [1, 2, 3, 4]],
    8: [[1, 63, 9, 33, 60, 127, 2, 64]],
}


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return models.build(**KINDS[request.param], **SHAPE)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("batch", STARTS)
def test_decode_equals_verify(model, batch, threads):
    for case, starts in enumerate(STARTS[batch][: 3 - threads]):
        ids = torch.stack([models.prompt(max(starts) + NEW + 2, seed=7 * case + b) for b in range(batch)])
        alone = plain(model, ids, starts)
        assert alone.std() > 0.1
        for seed in range(3 - threads):
            assert torch.equal(verified(model, ids, starts, seed), alone), (starts, seed)


def test_rows_of_an_earlier_use_do_not_leak(model):
    """Whole pages are read, so rows past the length enter with weight 0; their finite values change no bit."""
    ids = torch.stack([models.prompt(80, seed=b) for b in range(3)])
    starts = [60, 1, 30]
    assert torch.equal(plain(model, ids, starts, fill=1e4), plain(model, ids, starts))


def test_neighbours_do_not_change_a_row(model):
    """A sequence's logits do not depend on the contents of other sequences or on whether they still run."""
    ids = torch.stack([models.prompt(80, seed=b) for b in range(3)])
    other = torch.stack([ids[0], models.prompt(80, seed=8), models.prompt(80, seed=9)])
    whole, mixed = (plain(model, x, [60, 5, 30])[0] for x in (ids, other))
    assert torch.equal(whole, mixed)
    cache = prefilled(model, ids, [60, 5, 30])
    alone = [model(gather(ids, cache, 1), cache, lengths=[1, 0, 0])[0, 0] for _ in range(NEW)]
    assert torch.equal(torch.stack(alone), whole)


def test_one_sequence_beside_seven(model, threads):
    """A sequence has the bits that it has alone in its batch."""
    starts = [60, 1, 63, 9, 33, 2, 127, 64]
    ids = torch.stack([models.prompt(140, seed=b) for b in range(8)])
    together = verified(model, ids, starts, threads)
    for b in (0, 5, 6):
        assert torch.equal(plain(model, ids[b : b + 1], starts[b : b + 1])[0], together[b])


def test_logits_and_hidden_of_a_wider_pass(model):
    """Up to 8 new tokens a sequence get the bits of single-token passes, and so do any rows of the head."""
    ids = models.prompt(80)[None]
    alone = plain(model, ids, [60])
    cache = prefilled(model, ids, [60])
    together, hidden = model(ids[:, 60:68], cache, return_hidden=True)
    assert torch.equal(together, alone)
    for picked in ([2, 3], [5], [0, 3, 6], list(range(8))):
        assert torch.equal(model.head(hidden[0, picked]), together[0, picked])


ODD = {
    "one_layer": dict(num_layers=1),
    "three_layers": dict(num_layers=3),
    "one_head": dict(num_attention_heads=1, v_head_dim=24),
    "six_heads": dict(num_attention_heads=6, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8),
    "ranks": dict(q_lora_rank=48, kv_lora_rank=16),
    "wide_rope": dict(qk_rope_head_dim=32, qk_nope_head_dim=8, rope_theta=1e7),
    "wide": dict(hidden_size=128, ffn_hidden_size=200, expert_ffn_hidden_size=40),
    "no_zero_experts": dict(zero_expert_num=0),
    "mostly_zero_experts": dict(n_routed_experts=3, zero_expert_num=9, moe_topk=5),
    "top_1": dict(moe_topk=1),
    "top_all": dict(n_routed_experts=8, zero_expert_num=4, moe_topk=12),
    "many_experts": dict(n_routed_experts=40, zero_expert_num=20, moe_topk=10, expert_ffn_hidden_size=16),
    "one_expert": dict(n_routed_experts=1, zero_expert_num=2, moe_topk=2, vocab_size=67),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ODD)
def test_odd_networks(name, dtype):
    """Verified in a batch of four, each sequence has the bits that it has decoded alone."""
    model, starts = models.build(dtype, std=0.07, **ODD[name]), [60, 1, 63, 9]
    ids = torch.stack([models.prompt(80, seed=b) for b in range(4)])
    together = verified(model, ids, starts, seed=0)
    for b in range(4):
        assert torch.equal(plain(model, ids[b : b + 1], starts[b : b + 1])[0], together[b])

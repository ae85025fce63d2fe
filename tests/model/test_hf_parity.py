"""The whole network agrees with HF transformers on the same random weights: prefill, decode, verify, ragged batches."""

from __future__ import annotations

import pytest
import torch

from longcat_ops import LongcatFlashForCausalLM, ops
from support import hf

pytestmark = pytest.mark.long

# Every configuration keeps routed_scaling_factor 6 and a non-zero bias: 1 and 0 would hide mistakes. Two draw smaller
# weights (std): at 0.1 some of their tokens amplify rounding until HF itself is 1e-5 from its fp64 truth.
CONFIGS = {
    "base": {},
    "one_layer": dict(num_layers=1),
    "three_layers": dict(num_layers=3),
    "one_head": dict(num_attention_heads=1, std=0.07, v_head_dim=24),
    "six_heads": dict(num_attention_heads=6, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8),
    "ranks": dict(q_lora_rank=48, kv_lora_rank=16),
    "wide_rope": dict(qk_rope_head_dim=32, qk_nope_head_dim=8, rope_theta=1e7),
    "wide": dict(hidden_size=128, std=0.07, ffn_hidden_size=200, expert_ffn_hidden_size=40),
    "no_zero_experts": dict(zero_expert_num=0),
    "mostly_zero_experts": dict(n_routed_experts=3, zero_expert_num=9, moe_topk=5),
    "top_1": dict(moe_topk=1),
    "top_all": dict(n_routed_experts=8, zero_expert_num=4, moe_topk=12),
    "many_experts": dict(n_routed_experts=40, zero_expert_num=20, moe_topk=10, expert_ffn_hidden_size=16),
    "one_expert": dict(n_routed_experts=1, zero_expert_num=2, moe_topk=2, vocab_size=33),
}


def pair(dtype=torch.float32, seed=0, **changes):
    reference, config = hf.build(seed=seed, dtype=dtype, **changes)
    return reference, LongcatFlashForCausalLM.from_state_dict(config, hf.published(reference), dtype)


def tokens(model, batch, length, seed=1):
    return torch.randint(0, model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def in_pieces(model, ids, sizes):
    cache = model.new_cache(*ids.shape)
    return torch.cat([model(part, cache) for part in ids.split(sizes, 1)], 1)


@torch.inference_mode()
def hf_in_pieces(model, ids, sizes):
    past, out = None, []
    for part in ids.split(sizes, 1):
        step = model(part, past_key_values=past, use_cache=True)
        past = step.past_key_values
        out.append(step.logits)
    return torch.cat(out, 1)


@torch.inference_mode()
def hf_logits(model, ids):
    return model(ids, use_cache=False).logits


def error(ours, theirs):
    assert ours.shape == theirs.shape
    return (ours.double() - theirs.double()).abs().max().item()


@pytest.mark.parametrize("name", CONFIGS)
def test_fp32_logits(name):
    reference, model = pair(**CONFIGS[name])
    ids = tokens(model, 3, 21)
    truth = hf_logits(reference, ids)
    assert truth.std() > 0.3  # an absolute limit means nothing on flat logits
    assert error(model(ids), truth) <= 2e-5  # prefill
    # Decode, verify, up to 8 rows, a second prefill.
    for sizes in ([1] * 21, [13, *[1] * 8], [11, *[2] * 5], [5, 8, 8], [9, 12]):
        assert error(in_pieces(model, ids, sizes), truth) <= 2e-5, sizes
        assert error(in_pieces(model, ids, sizes), hf_in_pieces(reference, ids, sizes)) <= 2e-5, sizes


@pytest.mark.parametrize("name", CONFIGS)
def test_fp64_logits(name, monkeypatch):
    hf.compute_wide(monkeypatch, torch.float64)
    reference, model = pair(torch.float64, **CONFIGS[name])
    ids = tokens(model, 2, 19)
    for sizes in ([19], [1] * 19, [11, 2, 2, 2, 2], [6, 13]):
        assert error(in_pieces(model, ids, sizes), hf_in_pieces(reference, ids, sizes)) <= 1e-9, sizes


def test_ragged_batch_then_ragged_decode():
    reference, model = pair()
    ids = tokens(model, 3, 30)
    lengths, more = [17, 9, 1], [2, 1, 0]
    cache = model.new_cache(3, 40)
    logits = model(ids[:, :17], cache, lengths=lengths)
    second = torch.stack([ids[b, n : n + 2] for b, n in enumerate(lengths)])
    verified = model(second, cache, lengths=more)
    assert cache.lengths.tolist() == [19, 10, 1]
    truth = hf_logits(reference, ids)
    for b, (n, m) in enumerate(zip(lengths, more, strict=True)):
        assert error(logits[b, :n], truth[b, :n]) <= 2e-5
        assert not logits[b, n:].any()
        assert m == 0 or error(verified[b, :m], truth[b, n : n + m]) <= 2e-5
        assert not verified[b, m:].any()


@pytest.mark.parametrize("chunk", [4, 16])
@pytest.mark.parametrize("start", [0, 7])
def test_chunked_prefill(chunk, start, monkeypatch):
    monkeypatch.setattr("longcat_ops.model.passes.CHUNK", chunk)
    hf.compute_wide(monkeypatch, torch.float64)
    reference, model = pair(torch.float64)
    ids = tokens(model, 1, 4 * chunk + 9)
    sizes = [start, ids.shape[1] - start] if start else [ids.shape[1]]
    assert error(in_pieces(model, ids, sizes), hf_logits(reference, ids)) <= 1e-9


@pytest.mark.parametrize("length", [511, 512, 513, 700])
def test_prompts_beyond_one_chunk_and_many_pages(length):
    reference, model = pair(num_layers=1, max_position_embeddings=1024)
    ids = tokens(model, 1, length + 3)
    sizes = [length, 1, 2]
    assert error(in_pieces(model, ids, sizes), hf_logits(reference, ids)) <= 2e-5


def test_two_epsilons_are_told_apart():
    """q_a_layernorm and kv_a_layernorm use 1e-6 where every other norm uses rms_norm_eps = 1e-5."""
    reference, config = hf.build()
    weights = hf.published(reference)
    ids = torch.arange(40)[None]
    truth = hf_logits(reference, ids)
    build = LongcatFlashForCausalLM.from_state_dict
    changed = build(type(config)(**{**vars(config), "lora_norm_eps": 1e-5}), weights)(ids)
    right = build(config, weights)(ids)
    assert error(right, truth) <= 2e-5
    assert error(changed, truth) > 2 * error(right, truth)
    swapped = build(type(config)(**{**vars(config), "rms_norm_eps": 1e-6}), weights)(ids)
    assert error(swapped, truth) > 2 * error(right, truth)


def record_routing(monkeypatch):
    seen, route = [], ops.moe_route

    def recording(*args, **kwargs):
        seen.append(route(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(ops, "moe_route", recording)
    return seen


@pytest.mark.parametrize(
    "name", ["base", "three_layers", "no_zero_experts", "mostly_zero_experts", "top_1", "many_experts"]
)
def test_router_choices(name, monkeypatch):
    """Every layer chooses equal experts and weights; the few rows that nearly tie at the K-th choice are skipped."""
    # Logits that differ by 2e-5 change a weight by at most 6 * s * (1 - s) * 2 * 2e-5.
    tolerance = 6e-5
    eps, rows, skipped = 2e-5, 0, 0
    reference, model = pair(**CONFIGS[name])
    theirs, seen = [], record_routing(monkeypatch)
    for layer in reference.model.layers:
        layer.mlp.router.register_forward_hook(lambda router, _, out: theirs.append((router, *out)))
    ids = tokens(model, 1, 64)
    hf_logits(reference, ids)
    model(ids)
    assert len(seen) == len(theirs) == model.config.num_layers
    c = model.config
    for routing, (router, logits, weights, chosen) in zip(seen, theirs, strict=True):
        ranked = (logits.softmax(-1) + router.e_score_correction_bias).sort(-1, descending=True).values
        clear = torch.ones(64, dtype=torch.bool)
        if c.moe_topk < c.num_experts:
            clear = ranked[:, c.moe_topk - 1] - ranked[:, c.moe_topk] >= eps
        rows, skipped = rows + 64, skipped + int((~clear).sum())
        for t in clear.nonzero()[:, 0].tolist():
            want = dict(zip(chosen[t].tolist(), weights[t].tolist(), strict=True))
            real = {e: w for e, w in want.items() if e < c.n_routed_experts}
            got = {e: w for e, w in zip(routing.ids[t].tolist(), routing.weights[t].tolist(), strict=True) if e >= 0}
            assert got == pytest.approx(real, abs=tolerance)
            assert routing.zero_weight[t] == pytest.approx(sum(want.values()) - sum(real.values()), abs=tolerance)
            assert routing.num_real[t] == len(real)
    assert skipped <= 0.02 * rows


def row_errors(got, truth):
    """The median row's error: in either implementation, a router choice that bf16 flips changes a whole row."""
    return ((got.double() - truth.double()).norm(dim=-1) / truth.double().norm(dim=-1)).median().item()


@pytest.mark.parametrize(("layers", "std", "limit"), [(1, 0.02, 5e-3), (2, 0.02, 6e-3), (2, 0.1, 1.5e-2)])
def test_bf16_is_nearer_the_truth_than_hf(layers, std, limit):
    """On the same bf16-rounded weights ours is nearer to fp32 than HF: it keeps RoPE, norms and logits wider."""
    for seed in range(3):
        reference, model = pair(torch.bfloat16, seed=seed, num_layers=layers, std=std)
        assert all(layer.mlp.router.dtype == layer.mlp.bias.dtype == torch.float32 for layer in model.layers)
        ids = tokens(model, 2, 64)
        wide = LongcatFlashForCausalLM.from_state_dict(model.config, hf.published(reference), torch.float32)
        truth = wide(ids)
        ours, decoded, theirs = model(ids), in_pieces(model, ids, [48, *[2] * 8]), hf_logits(reference, ids)
        assert row_errors(ours, truth) <= limit
        assert row_errors(decoded, truth) <= limit
        assert row_errors(ours, truth) < row_errors(theirs, truth)

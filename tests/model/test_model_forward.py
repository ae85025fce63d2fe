"""model.forward: its forms, its bookkeeping and its refusals of bad arguments; the configuration's checks."""

from __future__ import annotations

import json

import pytest
import torch

from longcat_ops import (
    LongcatCheckpointError,
    LongcatFlashConfig,
    LongcatFlashForCausalLM,
    LongcatShapeError,
    LongcatUnsupportedError,
)
from longcat_ops.model import LatentCache
from support import models


@pytest.fixture(scope="module")
def model():
    return models.build(num_layers=1, max_position_embeddings=100)


def test_forms(model):
    ids = models.prompt(12).view(2, 6)
    logits, hidden = model(ids, return_hidden=True)
    assert logits.shape == (2, 6, 61)
    assert hidden.shape == (2, 6, 64)
    assert torch.equal(torch.stack([model.head(rows) for rows in hidden]), logits)
    assert model.head(hidden[0, :0]).shape == (0, 61)
    for dtype in (torch.uint8, torch.int32, torch.int16):
        assert torch.equal(model(ids.to(dtype)), logits)
    assert model(ids[:, :0]).shape == (2, 0, 61)
    assert not model(ids, lengths=[0, 0]).any()
    assert not logits.requires_grad
    bf16 = models.build(torch.bfloat16, num_layers=1)
    assert bf16(ids).dtype == torch.float32
    assert bf16.new_cache(1, 5).rows.dtype == torch.bfloat16


def test_the_cache_grows_by_each_length_only(model):
    cache = model.new_cache(2, 20)
    ids = models.prompt(12).view(2, 6)
    model(ids, cache, lengths=[6, 2])
    assert cache.lengths.tolist() == [6, 2]
    model(ids, cache, lengths=torch.tensor([0, 3]))
    assert cache.lengths.tolist() == [6, 5]
    with pytest.raises(LongcatShapeError, match=r"`max_length` is 20, expected at least 21.\n  sequence 0 grows to it"):
        for _ in range(4):
            model(ids, cache)
    assert cache.lengths.tolist() == [18, 17]  # the refused call changed nothing


def test_bad_arguments(model):
    ids = torch.zeros(2, 3, dtype=torch.int64)
    narrow = LatentCache(model.config, 2, 9, num_slots=3)
    few = LatentCache(model.config, 2, 9, num_slots=1, dtype=torch.float32)
    thin = LatentCache(models.config(kv_lora_rank=8), 2, 9, num_slots=3, dtype=torch.float32)
    away = LatentCache(model.config, 2, 9, num_slots=3, dtype=torch.float32, device="meta")
    cases = [
        ((ids[0],), {}, r"`input_ids` is torch.int64 \[3\], expected int64 \[B,S\]"),
        ((ids.float(),), {}, r"`input_ids` is torch.float32 \[2, 3\], expected int64 \[B,S\]"),
        ((ids > 0,), {}, r"`input_ids` is torch.bool \[2, 3\], expected int64 \[B,S\]"),
        ((ids + 61,), {}, r"`input_ids` is ids 61 .. 61, expected 0 .. 60"),
        ((ids - 1,), {}, r"`input_ids` is ids -1 .. -1, expected 0 .. 60"),
        ((ids, model.new_cache(3, 9)), {}, r"`input_ids` is 2 rows, expected 3, as the cache"),
        (
            (ids, narrow),
            {},
            r"`cache` is 3 slots of torch.bfloat16 \[32\] on cpu, expected 2 or more of torch.float32 ",
        ),
        ((ids, few), {}, r"`cache` is 1 slots of torch.float32 \[32\] on cpu, expected 2 or more"),
        (
            (ids, thin),
            {},
            r"`cache` is 3 slots of torch.float32 \[16\] on cpu, expected 2 or more of torch.float32 \[32",
        ),
        ((ids, away), {}, r"`cache` is 3 slots of torch.float32 \[32\] on meta, expected 2 or more of .* on cpu"),
        ((ids, [1, 2]), {}, r"`cache` is \[1, 2\], expected a LatentCache or None.\n  fix: model.new_cache"),
        ((ids, {}), {}, r"`cache` is \{\}, expected a LatentCache or None"),
        ((None,), {}, r"`input_ids` is None, expected int64 \[B,S\]"),
        (("text",), {}, r"`input_ids` is 'text', expected int64 \[B,S\]"),
        (([[1, 2]],), {}, r"`input_ids` is \[\[1, 2\]\], expected int64 \[B,S\]"),
        ((torch.tensor(3),), {}, r"`input_ids` is torch.int64 \[\], expected int64 \[B,S\]"),
        ((ids.to("meta"),), {}, r"`input_ids` is torch.int64 \[2, 3\] on meta, expected a dense tensor on the CPU"),
        ((ids.to_sparse(),), {}, r"`input_ids` is torch.int64 \[2, 3\], torch.sparse_coo, expected a dense tensor"),
        ((ids,), dict(lengths=3), r"`lengths` is 3, expected a sequence of integers, one for each row, or None"),
        ((ids,), dict(lengths="33"), r"`lengths` is '33', expected a sequence of integers"),
        ((ids,), dict(lengths=[1.5, 2]), r"`lengths` is \[1.5, 2\], expected a sequence of integers"),
        ((ids,), dict(lengths=[True, 2]), r"`lengths` is \[True, 2\], expected a sequence of integers"),
        ((ids,), dict(lengths=[None, 2]), r"`lengths` is \[None, 2\], expected a sequence of integers"),
        ((ids,), dict(lengths=torch.ones(2)), r"`lengths` is torch.float32 \[2\], expected a sequence of integers"),
        ((ids,), dict(lengths=torch.ones(1, 2).long()), r"`lengths` is torch.int64 \[1, 2\], expected a sequence of"),
        ((ids,), dict(lengths=[3]), r"`lengths` is \[3\], expected 2 numbers in 0 .. 3"),
        ((ids,), dict(lengths=[3, 4]), r"`lengths` is \[3, 4\], expected 2 numbers in 0 .. 3"),
        ((ids,), dict(lengths=[-1, 3]), r"`lengths` is \[-1, 3\], expected 2 numbers in 0 .. 3"),
        (
            (ids[:, :1].expand(2, 101),),
            {},
            r"`input_ids` is 101 tokens with the cache, expected at most max_position_emb",
        ),
    ]
    for arguments, options, text in cases:
        with pytest.raises(LongcatShapeError, match=f"LongcatFlashForCausalLM: argument {text}"):
            model(*arguments, **options)


def test_random_is_reproducible():
    c = models.config(num_layers=1)
    a, b, other = (LongcatFlashForCausalLM.random(c, seed=s) for s in (1, 1, 2))
    ids = models.prompt(9)[None]
    assert torch.equal(a(ids), b(ids))
    assert not torch.equal(a(ids), other(ids))


def test_fp8_decodes_when_built_in_inference_mode():
    with torch.inference_mode():
        inside = models.build(precision="fp8", num_layers=1)
    outside = models.build(precision="fp8", num_layers=1)
    ids = models.prompt(9)[None]
    assert torch.equal(inside(ids), outside(ids))


RELEASED = dict(
    vocab_size=131072, hidden_size=6144, num_layers=28, num_attention_heads=64, q_lora_rank=1536, kv_lora_rank=512,
    qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, ffn_hidden_size=12288, expert_ffn_hidden_size=2048,
    n_routed_experts=512, zero_expert_num=256, moe_topk=12,
)  # fmt: skip


def test_config_of_the_released_model():
    c = LongcatFlashConfig.from_dict(RELEASED)
    assert c == LongcatFlashConfig()
    assert (c.num_experts, c.qk_head_dim, c.latent_width) == (768, 192, 576)
    assert c.q_lora_scale == 2.0
    assert c.kv_lora_scale == pytest.approx(12**0.5)
    off = LongcatFlashConfig(mla_scale_q_lora=False, mla_scale_kv_lora=False)
    assert off.q_lora_scale == off.kv_lora_scale == 1.0


@pytest.mark.parametrize(
    ("raw", "field", "value"),
    [
        (dict(rope_parameters=dict(rope_type="default", rope_theta=5e5)), "rope_theta", 5e5),
        (dict(rope_theta=3e5, rope_scaling=None), "rope_theta", 3e5),
        (dict(num_hidden_layers=56), "num_layers", 28),
        (dict(dtype="bfloat16"), "torch_dtype", "bfloat16"),
        (dict(model_type="longcat_flash", eos_token_id=[7, 8]), "eos_token_id", (7, 8)),
    ],
)
def test_config_spellings(raw, field, value):
    assert getattr(LongcatFlashConfig.from_dict(RELEASED | raw), field) == value


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (dict(model_type="llama"), r"`model_type` is 'llama', expected 'longcat_flash'"),
        (dict(attention_bias=True), r"`attention_bias` is True, expected False"),
        (dict(norm_topk_prob=True), r"`norm_topk_prob` is True, expected False"),
        (dict(zero_expert_type="copy"), r"`zero_expert_type` is 'copy', expected 'identity'"),
        (dict(tie_word_embeddings=True), r"`tie_word_embeddings` is True, expected False"),
        (dict(rope_scaling=dict(type="yarn", factor=4)), r"`rope_scaling` is .*yarn.*, expected none: plain RoPE"),
    ],
)
def test_config_values_that_would_change_the_mathematics(raw, text):
    with pytest.raises(LongcatUnsupportedError, match=f"LongcatFlashConfig: argument {text}"):
        LongcatFlashConfig.from_dict(RELEASED | raw)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (dict(hidden_size=0), r"`hidden_size` is 0, expected a positive integer"),
        (dict(hidden_size="64"), r"`hidden_size` is '64', expected a positive integer"),
        (dict(q_lora_rank=None), r"`q_lora_rank` is None, expected a positive integer"),
        (dict(kv_lora_rank=1.5), r"`kv_lora_rank` is 1.5, expected a positive integer"),
        (dict(expert_ffn_hidden_size=0), r"`expert_ffn_hidden_size` is 0, expected a positive integer"),
        (dict(expert_ffn_hidden_size=36), r"`expert_ffn_hidden_size` is 36, expected what the ops of the network take"),
        (dict(num_layers=-1), r"`num_layers` is -1, expected an integer >= 0"),
        (dict(zero_expert_num=-1), r"`zero_expert_num` is -1, expected an integer >= 0"),
        (dict(n_routed_experts=0), r"`n_routed_experts` is 0, expected a positive integer"),
        (dict(qk_rope_head_dim=7), r"`qk_rope_head_dim` is 7, expected an even number"),
        (dict(n_routed_experts=4, zero_expert_num=2, moe_topk=7), r"`moe_topk` is 7, expected 1 .. 6"),
        (dict(moe_topk=0), r"`moe_topk` is 0, expected a positive integer, at most"),
    ],
)
def test_config_sizes_that_cannot_be(raw, text):
    with pytest.raises(LongcatShapeError, match=f"LongcatFlashConfig: argument {text}"):
        LongcatFlashConfig.from_dict(RELEASED | raw)


def test_config_files(tmp_path):
    with pytest.raises(LongcatCheckpointError, match=r"config.json does not exist; a checkpoint is a folder with"):
        LongcatFlashConfig.from_pretrained(tmp_path)
    file = tmp_path / "config.json"
    for text, error in (
        ("{", "is not valid JSON: "),
        ("[1]", "holds a list, expected an object"),
        ("\xff", "not valid"),
    ):
        file.write_bytes(text.encode("latin-1"))
        with pytest.raises(LongcatCheckpointError, match=f"config.json {error}" if text != "\xff" else error):
            LongcatFlashConfig.from_pretrained(tmp_path)
    file.write_text(json.dumps(RELEASED | {"vocab_size": 99, "num_layers": 3}))
    assert LongcatFlashConfig.from_pretrained(tmp_path) == LongcatFlashConfig.from_pretrained(file)
    assert LongcatFlashConfig.from_pretrained(str(tmp_path)).vocab_size == 99

"""Descriptions of networks: parameters as published, any config.json with experts, and what is said of a bad one."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from longcat_ops import LongcatFlashConfig, LongcatShapeError
from longcat_ops.perf.deployment import NETWORKS, from_config
from longcat_ops.perf.deployment.network import known

MIXTRAL = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "total", "active", "tolerance"),
    # LongCat-Flash's report: 560 B, 18.6 .. 31.3 B, 27 in the mean. README_WEIGHTS.md of DeepSeek-V3: 671 B, 36.6 B
    # with the head. Qwen3: 235 B, and 22 B with embedding and head.
    [("LongCat-Flash", 560.66, 27.15, 0.01), ("DeepSeek-V3", 671.0, 36.6, 0.05),
     ("Qwen3-235B-A22B", 235.1, 22.2 - 151936 * 4096 / 1e9, 0.05)],
)  # fmt: skip
def test_published_parameters(name: str, total: float, active: float, tolerance: float) -> None:
    network = NETWORKS[name]
    assert network.parameters / 1e9 == pytest.approx(total, abs=tolerance)
    assert network.active() / 1e9 == pytest.approx(active, abs=tolerance)
    assert known(name.upper()) is network and network.source


def test_active_parameters_of_longcat_flash() -> None:
    network = NETWORKS["LongCat-Flash"]
    assert [round(network.active(k) / 1e9, 2) for k in (0, 8, 12)] == [18.69, 27.15, 31.38]
    assert network.ffn_experts == 8 and network.cache_slots == 56 and network.attention.row == 576
    assert 28 * network.attentions * network.attention.row * 2 == 64512  # bytes of a token's cache


def test_longcat_flash_is_the_models_configuration() -> None:
    config = LongcatFlashConfig()
    assert from_config(asdict(config) | {"num_nextn_predict_layers": 1}, "LongCat-Flash",
                       NETWORKS["LongCat-Flash"].source) == NETWORKS["LongCat-Flash"]  # fmt: skip
    spelled = {"model_type": "longcat_flash", "num_hidden_layers": 56, **asdict(config), "num_nextn_predict_layers": 1}
    del spelled["num_layers"], spelled["ffn_hidden_size"]
    spelled["intermediate_size"] = 12288
    assert from_config(spelled, "LongCat-Flash", NETWORKS["LongCat-Flash"].source) == NETWORKS["LongCat-Flash"]


def test_mtp_head_of_deepseek() -> None:
    """11.5 B of its own, by README_WEIGHTS.md."""
    network = NETWORKS["DeepSeek-V3"]
    assert network.mtp_moe_layers == 1
    assert (network.mtp_dense + network.experts * network.expert) / 1e9 == pytest.approx(11.5, abs=0.15)


def test_other_networks() -> None:
    mixtral = from_config(MIXTRAL, "Mixtral-8x7B")
    assert mixtral.parameters / 1e9 == pytest.approx(46.7, abs=0.05)  # as published
    assert mixtral.active() / 1e9 == pytest.approx(12.9 - 32000 * 4096 / 1e9, abs=0.05)  # published with the embedding
    assert mixtral.expert_width == 14336 and mixtral.attention.row == 2 * 8 * 128
    nested = from_config({"text_config": MIXTRAL, "vision_config": {}}, "Mixtral-8x7B")
    assert nested.parameters == mixtral.parameters and "text_config" in nested.notes[0]
    mixed = from_config(MIXTRAL | {"layer_types": ["sliding_attention", "full_attention"] * 16}, "mixed")
    assert mixed.notes == ("layers of sliding_attention count as full attention",)


@pytest.mark.parametrize(
    ("keys", "layers"),
    [({"first_k_dense_replace": 3}, 29), ({"moe_layer_freq": 2}, 16), ({"decoder_sparse_step": 2}, 16),
     ({"mlp_only_layers": [0, 5, 31]}, 29), ({"moe_layer_freq": [0] + [1] * 31}, 31),
     ({"first_k_dense_replace": 1, "moe_layer_freq": 2}, 15)],
)  # fmt: skip
def test_layers_with_experts(keys: dict, layers: int) -> None:
    network = from_config(MIXTRAL | keys, "one")
    assert (network.moe_layers, network.dense_layers) == (layers, 32 - layers)


def test_missing_keys_are_listed_together() -> None:
    with pytest.raises(LongcatShapeError) as caught:
        from_config({"hidden_size": 8, "kv_lora_rank": 4, "vocab_size": "many"}, "half.json")
    text = str(caught.value)
    assert text.startswith("perf-model: argument `config` is half.json, which describes no network with experts")
    for names in ("num_layers or num_hidden_layers", "num_attention_heads", "moe_topk or num_experts_per_tok",
                  "n_routed_experts or num_local_experts or num_experts", "qk_nope_head_dim", "qk_rope_head_dim",
                  "v_head_dim", "expert_ffn_hidden_size or moe_intermediate_size or intermediate_size"):  # fmt: skip
        assert names in text
    assert "vocab_size is 'many', expected an integer in 1 .. 16777216" in text
    assert "hidden_size is" not in text and "vocab_size;" not in text


@pytest.mark.parametrize(
    ("keys", "text"),
    [({"num_local_experts": 0}, "num_local_experts is 0"),
     ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000, expected an integer in 1 .. 4096"),
     ({"num_experts_per_tok": 9}, "`num_experts_per_tok` is 9, expected 1 .. 8"),
     ({"hidden_size": True}, "hidden_size is True"), ({"first_k_dense_replace": 32}, "0 of 32 layers"),
     ({"first_k_dense_replace": "x"}, "first_k_dense_replace is 'x'"),
     ({"mlp_only_layers": 3}, "mlp_only_layers is 3, expected a list"), ({"vocab_size": -1}, "vocab_size is -1"),
     ({"n_shared_experts": -1}, "n_shared_experts is -1")],
)  # fmt: skip
def test_impossible_networks(keys: dict, text: str) -> None:
    with pytest.raises(LongcatShapeError) as caught:
        from_config(MIXTRAL | keys, "one")
    assert text in str(caught.value)

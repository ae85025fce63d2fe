"""config.json: every key has a type, a range and its spellings; a config of another network is refused."""

from __future__ import annotations

import itertools
import json
import warnings
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from transformers import LongcatFlashConfig as HFConfig

from longcat_ops import (
    LongcatError,
    LongcatFlashConfig,
    LongcatFlashForCausalLM,
    LongcatShapeError,
    LongcatUnsupportedError,
    moe_route,
)
from longcat_ops.loading.sizing import size_rank
from longcat_ops.model.config_keys import DTYPES, KEYS
from support import net_oracle
from support.net_oracle import BASE

IDS = [3, 4, 5, 60, 7, 96, 0, 2]
HUGE = pytest.param(10**5000, id="5000 digits")
# A config of the family must have these keys; every other key has a default.
REQUIRED = (
    "vocab_size", "hidden_size", "num_layers", "num_attention_heads", "q_lora_rank", "kv_lora_rank",
    "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "ffn_hidden_size", "expert_ffn_hidden_size",
    "n_routed_experts", "zero_expert_num", "moe_topk",
)  # fmt: skip
NULLABLE = ("num_nextn_predict_layers", "bos_token_id", "pad_token_id")
NAMES = [(name, spelled) for name, key in KEYS.items() for spelled in (name, *key.aliases)]


def read(drop: tuple[str, ...] = (), **changes) -> LongcatFlashConfig:
    return LongcatFlashConfig.from_dict({k: v for k, v in BASE.items() if k not in drop} | changes)


def refused(kind: type[LongcatError], drop: tuple[str, ...] = (), **changes) -> str:
    with pytest.raises(kind) as info:
        read(drop, **changes)
    return str(info.value)


def agrees(folder, **oracle) -> None:
    """Compares the fp64 model with the oracle. The model's angles are fp32 and below 8, so off by at most 2^-21; the
    rest is fp64, and the logits' relative error is smaller (measured: 2^-26)."""
    weights = net_oracle.tensors(BASE)
    want = net_oracle.forward64(BASE, weights, IDS, **oracle)
    model = LongcatFlashForCausalLM.from_pretrained(folder, dtype=torch.float64, progress=False)
    got = model(torch.tensor([IDS]))[0].numpy()
    assert np.abs(got - want).max() <= 2**-21 * np.abs(want).max()


@pytest.mark.parametrize("value", ["64", [64], {}, 1e300, float("nan"), float("inf"), -2, 10**18, HUGE])
@pytest.mark.parametrize(("name", "spelled"), NAMES)
def test_values_that_cannot_be(name, spelled, value):
    text = refused(LongcatShapeError, (name,), **{spelled: value})
    assert f"LongcatFlashConfig: argument `{spelled}` is " in text and "expected" in text


@pytest.mark.parametrize(("name", "spelled"), [*NAMES, ("num_layers", "num_hidden_layers")])
def test_null_and_truth_values(name, spelled):
    if name in NULLABLE:
        assert getattr(read((name,), **{spelled: None}), name) is None
    else:
        assert f"`{spelled}` is None, expected" in refused(LongcatShapeError, (name,), **{spelled: None})
    if KEYS[name].kind is bool:
        assert f"`{spelled}` is 1, expected true or false" in refused(LongcatShapeError, **{spelled: 1})
    else:
        assert f"`{spelled}` is True, expected" in refused(LongcatShapeError, (name,), **{spelled: True})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_hidden_layers", 3), ("num_hidden_layers", "4"), ("num_hidden_layers", -2), ("num_hidden_layers", 10**6),
        ("eos_token_id", []), ("eos_token_id", "2"), ("eos_token_id", [2, "3"]), ("eos_token_id", 97),
        ("eos_token_id", [[2]]), ("eos_token_id", True), ("eos_token_id", 2.0), ("eos_token_id", {}),
        ("bos_token_id", 97), ("torch_dtype", "bananas"), ("torch_dtype", 16), ("torch_dtype", "int8"), ("dtype", []),
        ("quantization_config", "fp8"), ("quantization_config", []), ("architectures", "LongcatFlashForCausalLM"),
        ("architectures", [3]), ("rope_scaling", 4), ("rope_parameters", ["default"]), ("head_dim", 16),
        ("qk_head_dim", 8), ("num_key_value_heads", 1), ("moe_topk", 25), ("moe_topk", 0),
        ("rms_norm_eps", 0), ("routed_scaling_factor", 0.0), ("rope_theta", None), ("rope_theta", 0),
    ],
)  # fmt: skip
def test_other_values_that_cannot_be(name, value):
    drop = ("num_layers",) if name == "num_hidden_layers" else ("torch_dtype",) if name == "dtype" else ()
    assert f"LongcatFlashConfig: argument `{name}` is " in refused(LongcatShapeError, drop, **{name: value})


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_key_is_named_under_all_its_names(name):
    text = refused(LongcatShapeError, (name,))
    assert "missing: " + " or ".join((name, *KEYS[name].aliases)) in text
    assert text.count(";") == 0


def test_what_is_no_config_of_the_family():
    llama = dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
                 intermediate_size=14336, vocab_size=128256, rope_theta=5e5, rms_norm_eps=1e-5, eos_token_id=128001,
                 rope_scaling=dict(rope_type="llama3", factor=8.0))  # fmt: skip
    for raw in (llama, llama | dict(rope_scaling=None, num_key_value_heads=32), dict(bos_token_id=1, eos_token_id=2)):
        with pytest.raises(LongcatError, match=r"missing: (.|\n)*q_lora_rank; kv_lora_rank(.|\n)*moe_topk or num_exp"):
            LongcatFlashConfig.from_dict(raw)
    with pytest.raises(LongcatShapeError, match="the keys inside text_config are not read"):
        LongcatFlashConfig.from_dict(dict(text_config=BASE))


@pytest.mark.parametrize(("name", "spelled"), [pair for pair in NAMES if pair[0] != pair[1]])
def test_spellings_agree_or_are_refused(name, spelled):
    value = BASE.get(name, 1)
    assert read((name,), **{spelled: value}) == read(**{name: value, spelled: value}) == read(**{name: value})
    other = value - 1
    text = refused(LongcatShapeError, **{name: value, spelled: other})
    assert f"`{spelled}` is {other}, expected {value}, as {name} says" in text


def test_num_hidden_layers_counts_attentions():
    assert read(("num_layers",), num_hidden_layers=4) == read(num_hidden_layers=4) == read()
    text = refused(LongcatShapeError, num_hidden_layers=2)
    assert "`num_hidden_layers` is 2, expected 4: num_layers is 2" in text


def test_another_spelling_of_the_top_k_is_computed_with(tmp_path):
    config = {k: v for k, v in BASE.items() if k != "moe_topk"} | {"num_experts_per_tok": 5}
    agrees(net_oracle.write(tmp_path, config, net_oracle.tensors(BASE)))


def rope_changes():
    """Every way to state theta in none, one or several of three places."""
    top = [{}, {"rope_theta": 3e3}]
    inner = [None, {}, {"rope_type": "default"}, {"rope_theta": 7e2}, {"type": "default", "rope_theta": 5e2}]
    for a, b, c in itertools.product(top, inner, inner):
        yield a | ({} if b is None else {"rope_parameters": b}) | ({} if c is None else {"rope_scaling": c})


@pytest.mark.parametrize("changes", list(rope_changes()), ids=json.dumps)
def test_theta_is_that_of_transformers(changes):
    want = HFConfig(**json.loads(json.dumps(changes))).rope_parameters["rope_theta"]
    assert read(("rope_theta",), **changes).rope_theta == want


def test_the_inner_theta_is_computed_with(tmp_path):
    config = BASE | {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}
    agrees(net_oracle.write(tmp_path, config, net_oracle.tensors(BASE)), theta=50.0)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    "rope",
    [
        "yarn", "default", {"type": "yarn", "factor": 4}, {"rope_type": "linear", "factor": 1.0}, {"factor": 40},
        {"rope_type": "default", "type": "yarn"}, {"rope_type": "dynamic"}, {"rope_type": None, "type": "su"},
        {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}, {"mrope_section": [2, 2]},
        {"partial_rotary_factor": 0.5}, {"rope_type": ["yarn"]},
    ],
)  # fmt: skip
def test_other_rope_is_refused(key, rope):
    assert f"`{key}` is " in refused(LongcatUnsupportedError, **{key: rope})


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_a_theta_inside_has_a_range_too(key):
    for theta in (None, "1e4", -1, float("inf"), []):
        assert f"`{key}.rope_theta` is " in refused(LongcatShapeError, **{key: {"rope_theta": theta}})


OTHER_NETWORKS = dict(
    model_type="llama", architectures=["LongcatCausalLM"], streaming_sparse_attention=True, sliding_window=4096,
    index_topk=2048, index_n_heads=16, cli_factor=2, oe_vocab_size_ratio=78, ngram_vocab_size_ratio=78.5,
    emb_neighbor_num=4, attn_logit_softcapping=50.0, final_logit_softcapping=30.0, router_logit_softcapping=1.0,
    scoring_func="sigmoid", n_group=8, topk_group=4, first_k_dense_replace=1, moe_layer_freq=2, n_shared_experts=1,
    rope_interleave=False, use_mla=False, norm_topk_prob=True, router_bias=True, attention_bias=True, mlp_bias=True,
    tie_word_embeddings=True, zero_expert_type="copy", attention_method="GQA", hidden_act="gelu", use_qk_norm=True,
    partial_rotary_factor=0.5, num_nextn_predict_layers=3, mtp_num_layers=3, layer_types=["sliding_attention"] * 2,
    logit_scale=0.5, embedding_multiplier=12, mtp_replicate_modules=True, attention_sink=4, topk_method="greedy",
    sparse_attention_config={"block": 64}, use_sliding_window=True, linear_attn_config={"a": 1}, n_gram=[2, 3],
)  # fmt: skip


@pytest.mark.parametrize("name", OTHER_NETWORKS)
def test_keys_of_other_networks_are_refused_by_name(name):
    expected = "num_nextn_predict_layers" if name == "mtp_num_layers" else name
    assert f"`{expected}` is " in refused(LongcatUnsupportedError, **{name: OTHER_NETWORKS[name]})


@pytest.mark.parametrize("architecture", ["LongcatCausalLM", "LongcatFlashNgramForCausalLM", "LlamaForCausalLM"])
def test_other_architectures_are_refused_without_a_model_type(architecture):
    assert "`architectures`" in refused(LongcatUnsupportedError, ("model_type",), architectures=[architecture])


def test_the_same_keys_when_they_are_off_change_nothing():
    off = {n: None for n in OTHER_NETWORKS} | dict(
        streaming_sparse_attention=False, sliding_window=0, n_group=1, topk_group=1, scoring_func="softmax",
        moe_layer_freq=1, first_k_dense_replace=0, n_shared_experts=0, use_mla=True, rope_interleave=True,
        oe_split_num=0, layer_types=["full_attention"] * 2, attention_dropout=0.1, head_dim=8, qk_head_dim=24,
        num_key_value_heads=2, partial_rotary_factor=1.0, hidden_act="silu", topk_method="noaux_tc",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(**off) == read()


def test_unknown_keys_are_named_in_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="keys that are not known here: unheard_of, another$"):
        read(unheard_of=3, another="x", silent=None, off=False)
    (tmp_path / "config.json").write_text(json.dumps(BASE | {"unheard_of": 3}))
    with pytest.warns(UserWarning, match="unheard_of"):
        LongcatFlashConfig.from_pretrained(tmp_path)


def test_a_config_that_transformers_saved(tmp_path):
    ours = read(pad_token_id=0)
    known = {n: v for n, v in asdict(ours).items() if n in HFConfig.__dataclass_fields__}
    HFConfig(**known, head_dim=8, dtype="float32", rope_parameters={"rope_type": "default", "rope_theta": 1e4},
             architectures=["LongcatFlashForCausalLM"]).save_pretrained(tmp_path)  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert LongcatFlashConfig.from_pretrained(tmp_path) == ours


@pytest.mark.parametrize("name", DTYPES)
def test_dtypes_are_spelled_as_torch_spells_them(name):
    want = str(getattr(torch, name)).removeprefix("torch.")
    assert read(torch_dtype=name).torch_dtype == want
    assert read(("torch_dtype",), dtype=f"torch.{name}").torch_dtype == want
    assert read(torch_dtype=want, dtype=name).torch_dtype == want
    other = "float64" if want != "float64" else "float32"
    assert f"`dtype` is '{other}', expected '{want}', as torch_dtype says" in refused(
        LongcatShapeError, torch_dtype=name, dtype=other
    )


def test_the_limits_are_those_of_the_router():
    def routes(experts: int, top_k: int) -> None:
        moe_route(torch.zeros(1, experts), torch.zeros(experts), top_k=top_k, num_experts=experts, num_zero_experts=8,
                  scale=1.0)  # fmt: skip

    for experts, top_k in ((1024, 12), (1024, 32)):
        routes(experts, top_k)
        assert read(n_routed_experts=experts - 8, moe_topk=top_k).num_experts == experts
    for experts, top_k, name in ((1025, 12, "n_routed_experts + zero_expert_num"), (1024, 33, "moe_topk")):
        with pytest.raises(LongcatShapeError) as info:
            routes(experts, top_k)
        first_line = str(info.value).splitlines()[0]
        text = refused(LongcatShapeError, n_routed_experts=experts - 8, moe_topk=top_k)
        assert f"`{name}`" in text and first_line in text


def test_a_hidden_size_that_no_op_takes():
    assert read(hidden_size=72).hidden_size == 72
    assert "[1, 68], expected [T, H] with H a positive multiple of 8" in refused(LongcatShapeError, hidden_size=68)


@pytest.mark.parametrize(
    "raw", [None, [], "config.json", 3, [("hidden_size", 64)], {1: 2}, {None: 2}, {b"hidden_size": 64}]
)
def test_what_is_no_table_of_names(raw):
    with pytest.raises(LongcatShapeError, match=r"LongcatFlashConfig: argument `config` is of type"):
        LongcatFlashConfig.from_dict(BASE | raw if isinstance(raw, dict) else raw)


@pytest.mark.parametrize("path", [None, 3, b"folder", ["folder"], {}])
def test_what_is_no_path(path):
    for read_from in (LongcatFlashConfig.from_pretrained, LongcatFlashForCausalLM.from_pretrained, size_rank):
        with pytest.raises(LongcatShapeError, match=r"from_pretrained: argument `path` is of type"):
            read_from(path)


def test_a_config_made_in_python_has_the_same_rules():
    for change in ({"rope_theta": float("nan")}, {"num_layers": 10**6}, {"eos_token_id": "2"}, {"hidden_size": 68}):
        with pytest.raises(LongcatShapeError, match=next(iter(change))):
            replace(read(), **change)

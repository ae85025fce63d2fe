"""Extra tensors: the loader ignores what transformers writes for zero experts and names everything else.

Also: an MTP head that the config announces and the files lack; impossible FP8 rules and widths.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from longcat_ops import LongcatCheckpointError, LongcatFlashConfig, LongcatFlashForCausalLM, LongcatShapeError
from longcat_ops.loading.checkpoint import CheckpointSource
from longcat_ops.loading.sizing import size_rank
from longcat_ops.model.precision import Precision
from support import net_oracle
from support.checkpoints import to_fp8
from support.net_oracle import BASE

IDS = [3, 4, 5, 60, 7, 96, 0, 2]
SMALL = BASE | {"num_layers": 1, "n_routed_experts": 4, "zero_expert_num": 2, "moe_topk": 2}
WIDTH, HIDDEN = SMALL["expert_ffn_hidden_size"], SMALL["hidden_size"]


def load(folder: Path, **options) -> LongcatFlashForCausalLM:
    return LongcatFlashForCausalLM.from_pretrained(folder, progress=False, **options)


def refused(folder: Path, kind=LongcatCheckpointError, **options) -> str:
    with pytest.raises(kind) as info:
        load(folder, **options)
    return str(info.value)


def expert(layer: int | str, number: int | str, *parts: str, shape=None) -> dict[str, torch.Tensor]:
    """One expert's tensors full of NaN, which would show in the logits if read."""
    shapes = {"gate": (WIDTH, HIDDEN), "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
    prefix = f"model.layers.{layer}.mlp.experts.{number}"
    return {f"{prefix}.{p}_proj.weight": torch.full(shape or shapes[p], torch.nan) for p in parts}


@pytest.mark.parametrize("ffn,zero", [(8, 16), (12, 12), (15, 9)])
def test_stored_experts_that_the_config_does_not_count(tmp_path, ffn, zero):
    """16 FFN and 8 zero experts are stored, and other counts of the same sum are refused: the router's width fits, but
    ids of FFN experts would become zero experts."""
    folder = net_oracle.write(
        tmp_path, BASE | {"n_routed_experts": ffn, "zero_expert_num": zero}, net_oracle.tensors(BASE)
    )
    text = refused(folder)
    assert f"{2 * 3 * (16 - ffn)} problems" in text
    named = {int(e) for e in re.findall(r"unexpected model\.layers\.0\.mlp\.experts\.(\d+)\.", text)}
    assert named and named <= set(range(ffn, 16))


def test_what_transformers_writes_for_zero_experts_is_passed_over(tmp_path):
    weights = net_oracle.tensors(SMALL)
    more = expert(0, 4, "gate", "up") | expert(0, 5, "gate", "up")
    model = load(net_oracle.write(tmp_path, SMALL, weights | more), dtype=torch.float64)
    want = net_oracle.forward64(SMALL, weights, IDS)
    assert np.abs(model(torch.tensor([IDS]))[0].numpy() - want).max() <= 2**-21 * np.abs(want).max()


@pytest.mark.parametrize(
    "more",
    [
        expert(0, 4, "gate", "up", "down"), expert(0, 5, "down"), expert(0, 6, "gate", "up"), expert(0, 10**9, "gate"),
        expert(1, 4, "gate", "up"), expert(1, 0, "gate", "up", "down"), expert(0, "04", "gate", "up"),
        expert(0, 4, "gate", "up", shape=(HIDDEN, WIDTH)), expert(0, "9" * 5000, "gate"), expert("00", 4, "gate"),
        {"model.layers.0.mlp.experts.4.gate_proj.bias": torch.zeros(3)},
        {"model.layers.0.mlp.experts.4.other.weight": torch.zeros(3)},
        {"model.layers.0.mlp.experts.gate_up_proj": torch.zeros(6, 2 * WIDTH, HIDDEN)},
        {"other.layers.0.mlp.experts.4.gate_proj.weight": torch.zeros(WIDTH, HIDDEN)},
        {"model.layers.0.mlp.experts.4.gate_proj.weight_scale_inv": torch.ones(1, 1)},
        {"model.layers.0.mlp.shared_experts.gate_proj.weight": torch.zeros(WIDTH, HIDDEN)},
        {"lm_head.bias": torch.zeros(97)}, {"model.mtpx.norm.weight": torch.zeros(HIDDEN)},
    ],
    ids=range(18),
)  # fmt: skip
def test_everything_else_is_named(tmp_path, more):
    text = refused(net_oracle.write(tmp_path, SMALL, net_oracle.tensors(SMALL) | more))
    assert f" {len(more)} problems." in text
    assert all(f"unexpected {name}" in text for name in more)


def test_another_rank_s_experts_are_passed_over_and_no_one_s_are_not(tmp_path):
    config = LongcatFlashConfig.from_dict(SMALL)
    folder = net_oracle.write(tmp_path, SMALL, net_oracle.tensors(SMALL))
    CheckpointSource(folder, config, experts=range(1, 3)).close()
    net_oracle.write(tmp_path, SMALL, net_oracle.tensors(SMALL) | expert(0, 7, "gate", "up", "down"))
    with pytest.raises(LongcatCheckpointError, match=r" 3 problems"):
        CheckpointSource(folder, config, experts=range(1, 3))


@pytest.mark.parametrize("key", ["num_nextn_predict_layers", "mtp_num_layers"])
def test_a_head_that_is_promised_and_absent(tmp_path, key):
    weights = net_oracle.tensors(SMALL)
    folder = net_oracle.write(tmp_path, SMALL | {key: 1}, weights)
    text = refused(folder)
    assert " 1 problems.\n  the MTP head that num_nextn_predict_layers promises is absent" in text
    assert "\n  fix: num_nextn_predict_layers: 0 in config.json" in text and text.count("\n") == 2
    assert any("MTP head" in note and "not stored" in note for note in size_rank(folder).notes)
    for remedy in (0, None):
        net_oracle.write(folder, SMALL | {"num_nextn_predict_layers": remedy}, weights)
        model = load(folder, dtype=torch.float64)
        assert model.mtp is None
        want = net_oracle.forward64(SMALL, weights, IDS)
        assert np.abs(model(torch.tensor([IDS]))[0].numpy() - want).max() <= 2**-21 * np.abs(want).max()


def test_half_a_head_is_named_tensor_by_tensor(tmp_path):
    weights = net_oracle.tensors(SMALL, mtp=True)
    gone = ["model.mtp.layers.0.eh_proj.weight", "model.mtp.layers.0.hnorm.m.weight"]
    for name in gone:
        del weights[name]
    text = refused(net_oracle.write(tmp_path, SMALL | {"num_nextn_predict_layers": 1}, weights))
    assert " 2 problems." in text and all(f"missing {name}" in text for name in gone)


NEVER = ["model.norm", "*.input_layernorm.0", "*.mlp.router.classifier", "*.router.*", "lm_head", "lm_head.weight",
         "model.embed_tokens", "*.e_score_correction_bias", "*.kv_b_proj"]  # fmt: skip
NOTHING = ["re:.*self_attn.*", "self_attn", "*.self_attn", "o_proj", "model.layers.7.*", "*.experts.4.*", "Linear", "",
           "*.O_PROJ", "model.mtp.*"]  # fmt: skip


def with_policy(folder: Path, policy: dict[str, str]) -> Path:
    file = folder / "policy.json"
    file.write_text(json.dumps(policy))
    return file


@pytest.mark.parametrize("pattern", [*NEVER, *NOTHING])
def test_rules_of_a_policy_that_fit_no_projection(tmp_path, pattern):
    weights = net_oracle.tensors(SMALL)
    folder = net_oracle.write(tmp_path, SMALL | {"num_nextn_predict_layers": 0}, weights)
    policy = with_policy(tmp_path, {"*.o_proj": "fp8", pattern: "fp8"})
    config = LongcatFlashConfig.from_pretrained(folder)
    calls = (
        lambda: load(folder, precision=policy),
        lambda: size_rank(folder, precision=policy),
        lambda: LongcatFlashForCausalLM.from_state_dict(config, weights, precision=Precision(policy)),
        lambda: LongcatFlashForCausalLM.random(config, precision=Precision(policy)),
    )
    for call in calls:
        with pytest.raises(LongcatShapeError) as info:
            call()
        why = "never quantised" if pattern in NEVER else "fits no projection"
        assert pattern in str(info.value) and why in str(info.value)


@pytest.mark.parametrize("pattern", ["*.self_attn.*", "*.experts.3.*", "*.o_proj.weight", "model.layers.0.*", "*"])
def test_rules_that_fit_are_followed(tmp_path, pattern):
    folder = net_oracle.write(tmp_path, SMALL, net_oracle.tensors(SMALL))
    policy = with_policy(tmp_path, {pattern: "bf16", "lm_head": "bf16"})  # the head is never anything else
    assert load(folder, precision=policy).layers[0].self_attn[0].o_proj.fp8 is False
    assert size_rank(folder, precision=policy).parts["attention"].scale_bytes == 0


@pytest.mark.parametrize("stored", [False, True])
def test_widths_that_fp8_products_do_not_take(tmp_path, monkeypatch, stored):
    """A width that is a multiple of 8 runs; one with a remainder of 4 is refused before a weight is read."""
    good, bad = 72, 68
    for width in (good, bad):
        config = SMALL | {"ffn_hidden_size": width}
        weights = to_fp8(net_oracle.tensors(config)) if stored else net_oracle.tensors(config)
        net_oracle.write(tmp_path / str(width), config, weights)
    precision = None if stored else "fp8"
    assert load(tmp_path / str(good), precision=precision)(torch.tensor([IDS])).isfinite().all()
    assert load(tmp_path / str(bad), precision="bf16")(torch.tensor([IDS])).isfinite().all()
    monkeypatch.setattr(CheckpointSource, "fetch", lambda *_: pytest.fail("a weight was read"))
    text = refused(tmp_path / str(bad), LongcatShapeError, precision=precision)
    assert f"[{bad}, 64]" in text and 'precision="bf16"' in text
    with pytest.raises(LongcatShapeError, match='precision="bf16"'):
        size_rank(tmp_path / str(bad), precision=precision)

"""Configs of other networks and inconsistent checkpoints are refused, by name."""

from __future__ import annotations

import json
import re

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, FineGrainedFP8Config, LongcatFlashForCausalLM

from longcat_ops import LongcatCheckpointError, LongcatUnsupportedError
from longcat_ops.integrations.transformers import enabled, fit
from longcat_ops.integrations.transformers.weights import at_least
from support.hf_published import write

FIT = fit()
pytestmark = [
    pytest.mark.skipif(not FIT.fits, reason=f"transformers {FIT.version}: {FIT.reason}"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def from_published(folder, **options):
    return LongcatFlashForCausalLM.from_pretrained(folder, experts_implementation="longcat_ops", **options)


@pytest.mark.parametrize(
    "keys,text",
    [
        ({"norm_topk_prob": True}, "`norm_topk_prob` is True, expected False"),
        ({"lora_norm_eps": 1e-5}, "`lora_norm_eps` is 1e-05, expected 1e-06"),
        ({"mla_scale_q_lora": False}, "`mla_scale_q_lora` is False, expected True"),
        ({"hidden_act": "gelu"}, "`hidden_act` is 'gelu', expected 'silu'"),
        ({"ngram_vocab_size_ratio": 78}, "`ngram_vocab_size_ratio` is 78, expected null"),
        ({"hidden_size": 68}, "`hidden_size` is 68, expected what the ops take"),
        ({"moe_topk": 40}, "is 11, 5, 40, 6.0, expected what the ops take"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "is quant_method = 'gptq', expected 'fp8'"),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}},
            r"is weight_block_size = \[64, 64\], expected \[128, 128\]",
        ),
    ],
)
def test_configs_of_another_network(keys, text, tmp_path):
    folder = write(tmp_path / "other", **keys)
    with enabled(), pytest.raises(LongcatUnsupportedError, match=text):
        from_published(folder)


def rewritten(folder, change):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return folder


@pytest.mark.parametrize(
    "missing", ["experts.2.down_proj.weight", "experts.4.up_proj.weight", "router.classifier.weight"]
)
@pytest.mark.parametrize("fp8", [False, True])
def test_a_checkpoint_without_a_tensor(missing, fp8, tmp_path):
    """Without one expert's tensor a stack has the wrong size, which transformers reports; it would fill a missing stack
    at random."""
    folder = rewritten(write(tmp_path / "part", "blocks", fp8=fp8), lambda t: t.pop(f"model.layers.1.mlp.{missing}"))
    with enabled(), pytest.raises((LongcatCheckpointError, RuntimeError), match=r"router.classifier|report|conver"):
        from_published(folder)


def test_a_checkpoint_without_experts(tmp_path):
    def drop(tensors):
        for name in [n for n in tensors if "layers.1.mlp.experts" in n and "down" in n]:
            del tensors[name]

    folder = rewritten(write(tmp_path / "part", "blocks"), drop)
    with enabled(), pytest.raises(LongcatCheckpointError, match=r"holds nothing for .*1\.mlp\.experts\.down_proj"):
        from_published(folder)
    tensors = load_file(folder / "model.safetensors")
    with enabled():
        config = AutoConfig.from_pretrained(folder)
        with pytest.raises(LongcatCheckpointError, match="what was loaded holds nothing for"):
            from_published(None, config=config, state_dict=tensors)


def test_fp8_that_does_not_hold_together(tmp_path):
    one = "model.layers.1.mlp.experts.3.up_proj.weight"
    folder = rewritten(write(tmp_path / "a", "blocks", fp8=True), lambda t: t.pop(f"{one}_scale_inv"))
    with enabled(), pytest.raises(LongcatCheckpointError, match=f"{one} is float8_e4m3fn but {one}_scale_inv is"):
        from_published(folder)
    folder = rewritten(write(tmp_path / "b", "blocks", fp8=True), lambda t: t.update({one: t[one].float()}))
    with enabled(), pytest.raises(LongcatCheckpointError, match=r"layer 1 are partly FP8, expected all or none: .*F32"):
        from_published(folder)
    folder = write(tmp_path / "c", "blocks", fp8=True)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if k != "quantization_config"}))
    with enabled(), pytest.raises(LongcatCheckpointError, match=r"FP8 scales \(.*\), but its config.json says nothing"):
        from_published(folder)
    again = FineGrainedFP8Config()
    for checkpoint in (tmp_path / "a", write(tmp_path / "d", "blocks")):
        with enabled(), pytest.raises(LongcatUnsupportedError, match="is a FineGrainedFP8Config, expected None"):
            from_published(checkpoint, quantization_config=again)


def test_ids_of_experts_that_are_none():
    for number in (1, 8, 9, 10, 11, 99, 100, 512, 1000):
        pattern = re.compile("|".join(at_least(number)))
        assert all(bool(pattern.fullmatch(str(n))) == (n >= number) for n in (*range(1200), 51200)), number

"""What `quantize` writes, in Hugging Face transformers: its own dequantisation of blocks gives the values of our
loader, and through the adapter it loads the folder.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from longcat_ops import LongcatFlashConfig, LongcatFlashForCausalLM
from longcat_ops.integrations.transformers import enabled, fit
from longcat_ops.loading.checkpoint import CheckpointSource
from longcat_ops.loading.quantize import quantize
from longcat_ops.model.source import released
from support import checkpoints, models
from support.hf_published import BF16, EXPERTS_IN_FP8, F32, row_errors, write

FIT = fit()
pytestmark = [
    pytest.mark.skipif(not FIT.fits, reason=f"transformers {FIT.version}: {FIT.reason}"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of transformers
]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_its_dequantisation_gives_the_values_of_our_loader(tmp_path):
    """Of whole blocks: transformers derives the size of a block from the shapes, and so refuses a ragged one."""
    sizes = dict(hidden_size=256, q_lora_rank=128, kv_lora_rank=120, qk_rope_head_dim=8, num_attention_heads=4,
                 qk_nope_head_dim=56, v_head_dim=64, ffn_hidden_size=384, expert_ffn_hidden_size=128, num_layers=1,
                 n_routed_experts=2, zero_expert_num=1, moe_topk=2)  # fmt: skip
    config = models.config(**sizes)
    tensors = {n: t if "router" in n else t.bfloat16() for n, t in models.tensors(config).items()}
    quantize(checkpoints.write(tmp_path / "bf16", config, tensors), tmp_path / "fp8")
    stored = load_file(next((tmp_path / "fp8").glob("*.safetensors")))
    names = [name for name in stored if name + "_scale_inv" in stored]
    assert len(names) == 8 + 6 + 6 + 4 + 3 + 1
    found, _ = LongcatFlashConfig.read_files(tmp_path / "fp8")
    with released(CheckpointSource(tmp_path / "fp8", found, F32, precision="bf16", progress=False)) as source:
        for name in names:
            pair = {"weight": [stored[name]], "weight_scale_inv": [stored[name + "_scale_inv"]]}
            theirs = Fp8Dequantize(None).convert(pair)["weight"]
            ours = source.linear(name, *stored[name].shape)
            assert theirs.dtype == ours.dtype == F32 and torch.equal(theirs, ours), name
            assert (ours - tensors[name].float()).abs().max() > 0


@pytest.mark.parametrize("policy", ["all", "mixed"])
def test_the_adapter_loads_it(tmp_path, policy):
    """Ragged blocks, weights of zero experts, remote code in the config. Mixed: one layer's experts stay dense."""
    source = write(tmp_path / "bf16", "blocks", dtype=BF16)
    chosen = policy
    if policy == "mixed":
        chosen = tmp_path / "policy.json"
        chosen.write_text(json.dumps({"model.layers.0.mlp.experts.*": "bf16", "*": "fp8"}))
    quantize(source, tmp_path / "fp8", policy=chosen, shard_bytes=500_000)
    assert len(list((tmp_path / "fp8").glob("*.safetensors"))) > 1
    with enabled():
        options = dict(experts_implementation="longcat_ops", dtype=F32, output_loading_info=True)
        model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "fp8", **options)
    assert not any(info.values())
    kinds = [layer.mlp.experts.gate_up_proj.dtype for layer in model.model.layers]
    assert kinds == [F32 if policy == "mixed" else torch.float8_e4m3fn, torch.float8_e4m3fn]
    # The adapter widens whatever is no expert; so does our network here.
    rules = tmp_path / "loading.json"
    rules.write_text(json.dumps({"model.layers.0.mlp.experts.*": "bf16"} if policy == "mixed" else {}))
    rules.write_text(json.dumps(json.loads(rules.read_text()) | EXPERTS_IN_FP8))
    ours = LongcatFlashForCausalLM.from_pretrained(tmp_path / "fp8", dtype=F32, precision=rules, progress=False)
    ids = torch.randint(3, 53, (2, 17), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        theirs = model(ids, use_cache=False).logits.float()
    assert row_errors(theirs, ours(ids)).max() <= 1e-4

"""Checkpoint folders in the published layout, and error measures for the tests of the transformers adapter."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from support import checkpoints, models

F32, BF16 = torch.float32, torch.bfloat16
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
EXPERTS_IN_FP8 = {"*.mlp.experts.*": "fp8", "*": "bf16"}  # loader policy: FP8 where the adapter keeps it
# Keys of this library's config that a published config.json lacks.
_OWN = ("lora_norm_eps", "torch_dtype", "quantization_config", "num_nextn_predict_layers", "pad_token_id")

SHAPES = {
    # From the tiny config in transformers' own test file, with a scale that affects the output.
    "theirs": dict(
        vocab_size=99, hidden_size=144, ffn_hidden_size=288, expert_ffn_hidden_size=48, num_layers=1,
        num_attention_heads=8, kv_lora_rank=16, q_lora_rank=48, qk_rope_head_dim=4, v_head_dim=8, qk_nope_head_dim=8,
        n_routed_experts=4, zero_expert_num=2, moe_topk=2, max_position_embeddings=128, rms_norm_eps=1e-6,
    ),
    "odd": dict(
        vocab_size=61, hidden_size=72, ffn_hidden_size=88, expert_ffn_hidden_size=40, num_layers=2,
        num_attention_heads=3, kv_lora_rank=12, q_lora_rank=20, qk_rope_head_dim=6, v_head_dim=14, qk_nope_head_dim=10,
        n_routed_experts=11, zero_expert_num=5, moe_topk=7,
    ),
    # Ragged blocks of 128 in every expert.
    "blocks": dict(
        vocab_size=53, hidden_size=136, expert_ffn_hidden_size=152, num_layers=2, n_routed_experts=5, zero_expert_num=3,
        moe_topk=4,
    ),
}  # fmt: skip


def write(folder: Path, name: str = "odd", dtype: torch.dtype = F32, *, fp8: bool = False, placeholders: bool = True,
          **keys: object) -> Path:  # fmt: skip
    """Writes a folder as published: FFN experts one by one, an MTP head, router in fp32. config.json has no model_type,
    an integer scale, `keys`, and an auto_map to remote code that does not exist. With `placeholders`, which
    transformers writes, zero experts have gate and up, with values large enough to show in the output.
    """
    config = models.config(**SHAPES[name])
    tensors = {n: t if "router" in n else t.to(dtype) for n, t in models.tensors(config, std=0.08).items()}
    if fp8:
        wanted = ("experts", "mlps.1.down_proj", "self_attn.0.q_a_proj")
        wide = {n: t.float() for n, t in tensors.items()}
        tensors |= checkpoints.to_fp8(wide, lambda n: any(part in n for part in wanted) and "mtp" not in n)
        tensors = {n: t if "router" in n or n + "_scale_inv" in tensors or n.endswith("_scale_inv") else t.to(dtype)
                   for n, t in tensors.items()}  # fmt: skip
    width, hidden = config.expert_ffn_hidden_size, config.hidden_size
    for layer in range(config.num_layers):
        for e in range(config.n_routed_experts, config.num_experts if placeholders else 0):
            for part in ("gate", "up"):
                zero = f"model.layers.{layer}.mlp.experts.{e}.{part}_proj.weight"
                tensors[zero] = torch.full((width, hidden), 1e3, dtype=dtype)
    checkpoints.write(folder, config, tensors, shards=2 if name == "odd" else 1)
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    raw = {key: value for key, value in raw.items() if key not in _OWN} | {
        "architectures": ["LongcatFlashForCausalLM"], "attention_method": "MLA", "zero_expert_type": "identity",
        "routed_scaling_factor": 6, "torch_dtype": str(dtype).removeprefix("torch."), "attention_bias": False,
        "auto_map": {"AutoConfig": "configuration_longcat_flash.LongcatFlashConfig",
                     "AutoModelForCausalLM": "modeling_longcat_flash.LongcatFlashForCausalLM"},
    } | ({"quantization_config": FP8} if fp8 else {}) | keys  # fmt: skip
    text = json.dumps({key: value for key, value in raw.items() if value is not None})
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


def row_errors(got: Tensor, truth: Tensor) -> Tensor:
    """Relative error of each row: rounding can flip a router choice and so change a row, in any implementation."""
    return ((got.double() - truth.double()).norm(dim=-1) / truth.double().norm(dim=-1)).flatten()


def count_greedy(tokens: Tensor, logits: Tensor, near: float = 1e-4) -> tuple[int, int]:
    """(number of tokens that are not the argmax, number of these whose top two logits differ by more than `near`);
    tokens [T], logits [T,V] of the rows that chose them.
    """
    best = logits.topk(2).values
    other = logits.argmax(-1) != tokens
    return int(other.sum()), int((other & (best[:, 0] - best[:, 1] > near)).sum())

"""An HF transformers model that holds the weights of a checkpoint folder, copied in memory.

transformers cannot read the published layout (it allocates gate and up rows for zero experts, which have no tensors),
so the folder is read with safetensors alone and FP8 is widened here, independently of the library's loader.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import LongcatFlashConfig as HFConfig
from transformers.models.longcat_flash import modeling_longcat_flash as hf

from support.hf import keep_router_fp32


def widened(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint in fp32; FP8 weights multiplied by the scale of their 128x128 block."""
    stored = {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}
    tensors = {}
    for name, t in stored.items():
        if name.endswith("_scale_inv"):
            continue
        wide = t.float()
        if t.dtype == torch.float8_e4m3fn:
            scale = stored[name + "_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
            wide = wide * scale[: t.shape[0], : t.shape[1]]
        tensors[name] = wide
    return tensors


def from_checkpoint(folder: Path, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> torch.nn.Module:
    """transformers' LongcatFlashForCausalLM with the folder's weights; it has no place for MTP tensors."""
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = HFConfig(
        **{k: v for k, v in raw.items() if k in HFConfig.__dataclass_fields__ and k != "quantization_config"}
        | {
            "head_dim": raw["qk_rope_head_dim"],
            "routed_scaling_factor": float(raw["routed_scaling_factor"]),  # published as an integer
            "rope_parameters": {"rope_type": "default", "rope_theta": raw["rope_theta"]},
        }
    )
    config._attn_implementation = attention
    model = hf.LongcatFlashForCausalLM(config).eval()
    tensors, state = widened(folder), {}
    for name, slot in model.state_dict().items():
        prefix, _, kind = name.partition(".experts.")
        if not kind:
            state[name] = tensors[name]
            continue
        state[name] = slot.zero_()  # rows of zero experts exist in HF and are never read
        for e in range(config.n_routed_experts):
            parts = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
            slot[e] = torch.cat([tensors[f"{prefix}.experts.{e}.{part}.weight"] for part in parts])
    model.load_state_dict(state)
    keep_router_fp32(model.to(dtype))
    return model

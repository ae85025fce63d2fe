"""The tiny network in the published checkpoint layout: split experts, FP8 weights with 128 x 128 block scales."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from longcat_ops import dequant_fp8, per_block_quant_fp8
from tiny_model import TINY_CONFIG
from tiny_optimizer import is_projection

QUANTIZATION = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
_EXPERTS = "mlp.experts."


def published_tensors(masters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same values under the published names: one gate, up and down matrix per expert."""
    out = {}
    for name, value in masters.items():
        if _EXPERTS not in name:
            out[name] = value
            continue
        prefix = name[: name.index(_EXPERTS) + len(_EXPERTS)]
        for expert, matrix in enumerate(value):
            if name.endswith("down_proj"):
                out[f"{prefix}{expert}.down_proj.weight"] = matrix
            else:
                gate, up = matrix.chunk(2, 0)
                out[f"{prefix}{expert}.gate_proj.weight"] = gate
                out[f"{prefix}{expert}.up_proj.weight"] = up
    return out


def fp8_tensors(masters: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the file holds: projections FP8 with scales, the router f32, everything else bf16."""
    out = {}
    for name, value in published_tensors(masters).items():
        value = value.detach().float()
        if is_projection(name):
            out[name], out[name + "_scale_inv"] = per_block_quant_fp8(value)
        elif ".router." in name:
            out[name] = value.contiguous()
        else:
            out[name] = value.bfloat16().contiguous()
    return out


def write_checkpoint(masters: dict[str, torch.Tensor], config: dict, directory: Path, *, fp8: bool = True) -> None:
    """model.safetensors, config.json and generation_config.json; the tokenizer files are written by tiny_corpus.
    fp8: False keeps every bit of the f32 masters.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = fp8_tensors(masters) if fp8 else {n: t.contiguous() for n, t in published_tensors(masters).items()}
    save_file(dict(sorted(tensors.items())), directory / "model.safetensors", metadata={"format": "pt"})
    full = {**config, "torch_dtype": "bfloat16" if fp8 else "float32"}
    full |= {"quantization_config": QUANTIZATION} if fp8 else {}
    (directory / "config.json").write_text(json.dumps(full, indent=2) + "\n")
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (directory / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n")


def read_checkpoint(directory: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """(stacked f32 parameters, config) of a checkpoint of `write_checkpoint` or `grow_depth`: the trainer's view."""
    stored = {name: t for file in sorted(directory.glob("*.safetensors")) for name, t in load_file(file).items()}
    config = json.loads((directory / "config.json").read_text())
    values = {}
    for name, value in stored.items():
        if name.endswith("_scale_inv"):
            continue
        scales = stored.get(name + "_scale_inv")
        values[name] = value.float() if scales is None else dequant_fp8(value, scales, torch.float32)
    for layer in range(config["num_layers"]):
        prefix = f"model.layers.{layer}.{_EXPERTS}"
        names = [f"{prefix}{e}." for e in range(config["n_routed_experts"])]
        gate, up, down = (
            torch.stack([values.pop(f"{n}{part}_proj.weight") for n in names]) for part in ("gate", "up", "down")
        )
        values[prefix + "gate_up_proj"] = torch.cat((gate, up), 1)
        values[prefix + "down_proj"] = down
    return values, {name: config[name] for name in TINY_CONFIG}

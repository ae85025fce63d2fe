"""Checkpoint folders written by the tests: published names, one or several files, dense or FP8."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

NEVER_FP8 = ("norm", "embed_tokens", "lm_head", "router", ".m.weight")


def write(folder: Path, config, tensors: dict[str, torch.Tensor], shards: int = 1) -> Path:
    """Writes config.json and the tensors, dealt to `shards` files; more than one file gets an index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    tensors = {name: t.contiguous() for name, t in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[i::shards])
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def quantise(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantises 128x128 blocks to e4m3, in plain loops."""
    rows, cols = w.shape
    q = torch.empty(rows, cols, dtype=torch.float8_e4m3fn)
    s = torch.empty(-(-rows // 128), -(-cols // 128))
    for i in range(s.shape[0]):
        for j in range(s.shape[1]):
            block = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
            s[i, j] = w[block].abs().max() / 448
            q[block] = (w[block] / s[i, j]).to(torch.float8_e4m3fn)
    return q, s


def dequantise(q: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    wide = s.repeat_interleave(128, 0).repeat_interleave(128, 1)[: q.shape[0], : q.shape[1]]
    return q.float() * wide


def to_fp8(tensors: dict[str, torch.Tensor], wanted=lambda name: True) -> dict[str, torch.Tensor]:
    """Quantises every projection that `wanted` accepts to an FP8 pair; keeps the other tensors."""
    out = {}
    for name, t in tensors.items():
        if wanted(name) and not any(part in name for part in NEVER_FP8):
            out[name], out[f"{name}_scale_inv"] = quantise(t)
        else:
            out[name] = t
    return out


def widened(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The fp32 values of an FP8 checkpoint."""
    return {
        name: dequantise(t, tensors[f"{name}_scale_inv"]) if t.dtype == torch.float8_e4m3fn else t.float()
        for name, t in tensors.items()
        if not name.endswith("_scale_inv")
    }

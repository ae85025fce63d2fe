"""Writes the bf16 form of an FP8 checkpoint.

    python tools/dequantise_checkpoint.py checkpoints/longcat-tiny build/longcat-tiny-bf16

Every weight that has a `<name>_scale_inv` is multiplied out, block by block, and stored in --dtype; every other tensor
is kept as it is. config.json loses its quantization_config; all other files are copied. One shard is in memory at a
time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from longcat_ops import LongcatCheckpointError, dequant_fp8
from longcat_ops.types import BLOCK

INDEX = "model.safetensors.index.json"
SCALE = "_scale_inv"
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def _dequantise(name: str, weight: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """weight [R, C] times its block's scale, in f32, rounded once to `dtype`; the last blocks may be ragged."""
    expected = [-(-side // BLOCK) for side in weight.shape]
    if list(scales.shape) != expected:
        raise LongcatCheckpointError(
            f"{name}: scales of shape {list(scales.shape)} do not fit the weight "
            f"{list(weight.shape)}, expected {expected}"
        )
    return dequant_fp8(weight.contiguous(), scales.float(), dtype)


def _shards(source: Path) -> list[str]:
    if (source / INDEX).exists():
        return sorted(set(json.loads((source / INDEX).read_text())["weight_map"].values()))
    if not (source / "model.safetensors").exists():
        raise LongcatCheckpointError(f"{source}: neither {INDEX} nor model.safetensors")
    return ["model.safetensors"]


def convert(source: Path, target: Path, dtype: torch.dtype = torch.bfloat16) -> int:
    """Writes `source` to `target`, a new or empty folder; returns how many tensors were dequantised."""
    if target.exists() and any(target.iterdir()):
        raise LongcatCheckpointError(f"{target} is not empty")
    config = json.loads((source / "config.json").read_text())
    block = config.pop("quantization_config", {}).get("weight_block_size", [BLOCK, BLOCK])
    if block != [BLOCK, BLOCK]:
        raise LongcatCheckpointError(f"{source}: weight_block_size is {block}, expected {[BLOCK, BLOCK]}")
    shards = _shards(source)
    target.mkdir(parents=True, exist_ok=True)
    files = {shard: safe_open(source / shard, "pt") for shard in shards}
    names = {shard: list(file.keys()) for shard, file in files.items()}
    home = {name: files[shard] for shard in shards for name in names[shard]}
    converted, weight_map, total = 0, {}, 0
    for shard in shards:
        tensors = {}
        for name in names[shard]:
            if name.endswith(SCALE):
                if name.removesuffix(SCALE) not in home:
                    raise LongcatCheckpointError(f"{source / shard}: {name} has no weight")
                continue
            value = files[shard].get_tensor(name)
            if name + SCALE in home:  # the scales may lie in another shard
                value = _dequantise(name, value, home[name + SCALE].get_tensor(name + SCALE), dtype)
                converted += 1
            elif value.dtype == torch.float8_e4m3fn:
                raise LongcatCheckpointError(f"{source / shard}: {name} is FP8 but {name + SCALE} is missing")
            tensors[name] = value
            weight_map[name] = shard
            total += value.numel() * value.element_size()
        save_file(tensors, target / shard, metadata=files[shard].metadata() or {"format": "pt"})
    if (source / INDEX).exists():
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (target / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for path in source.iterdir():
        if path.is_file() and path.name not in {*shards, INDEX, "config.json"}:
            shutil.copyfile(path, target / path.name)
    return converted


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, help="new or empty folder")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the dequantised weights")
    args = parser.parse_args(arguments)
    count = convert(args.source, args.target, DTYPES[args.dtype])
    print(f"{args.target}: {count} weights dequantised to {args.dtype}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

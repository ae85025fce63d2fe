"""tools/dequantise_checkpoint.py writes the bf16 form of an FP8 checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dequantise_checkpoint import convert, main
from longcat_ops.errors import LongcatCheckpointError

SHIPPED = Path(__file__).resolve().parents[2] / "checkpoints" / "longcat-tiny"
QUANTIZATION = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}


def fp8(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator).to(torch.float8_e4m3fn)
    return weight, torch.rand(-(-rows // 128), -(-columns // 128), generator=generator) + 0.5


def by_element(weight, scales):
    """Dequantisation by its definition, one element at a time."""
    rows, columns = weight.shape
    wide, out = weight.float(), torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            out[i, j] = wide[i, j] * scales[i // 128, j // 128]
    return out


def write(directory, shards, config=None):
    directory.mkdir()
    for name, tensors in shards.items():
        save_file(tensors, directory / name, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {tensor: shard for shard, tensors in shards.items() for tensor in tensors}
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config = config or {"hidden_size": 8, "quantization_config": QUANTIZATION}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text("{}")
    return directory


def test_single_file_with_ragged_blocks(tmp_path):
    weight, scales = fp8(160, 200, 0)
    norm, bias = torch.randn(7).bfloat16(), torch.randn(3)
    source = write(
        tmp_path / "fp8",
        {
            "model.safetensors": {
                "a.weight": weight,
                "a.weight_scale_inv": scales,
                "norm.weight": norm,
                "router.bias": bias,
            }
        },
    )
    assert main([str(source), str(tmp_path / "bf16")]) == 0
    out = load_file(tmp_path / "bf16" / "model.safetensors")
    assert sorted(out) == ["a.weight", "norm.weight", "router.bias"]
    assert out["a.weight"].dtype == torch.bfloat16
    assert torch.equal(out["a.weight"], by_element(weight, scales).bfloat16())
    assert out["norm.weight"].dtype == torch.bfloat16 and torch.equal(out["norm.weight"], norm)
    assert out["router.bias"].dtype == torch.float32 and torch.equal(out["router.bias"], bias)
    assert json.loads((tmp_path / "bf16" / "config.json").read_text()) == {"hidden_size": 8}
    assert (tmp_path / "bf16" / "tokenizer.json").read_text() == "{}"


def test_shards_with_the_scales_in_another_shard(tmp_path):
    (first, first_scales), (second, second_scales) = fp8(8, 8, 1), fp8(130, 8, 2)
    source = write(
        tmp_path / "fp8",
        {
            "model-00001-of-00002.safetensors": {"a.weight": first, "b.weight_scale_inv": second_scales},
            "model-00002-of-00002.safetensors": {"a.weight_scale_inv": first_scales, "b.weight": second},
        },
    )
    assert convert(source, tmp_path / "f32", torch.float32) == 2
    index = json.loads((tmp_path / "f32" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {
        "a.weight": "model-00001-of-00002.safetensors",
        "b.weight": "model-00002-of-00002.safetensors",
    }
    assert index["metadata"]["total_size"] == 4 * (64 + 130 * 8)
    for name, weight, scales in (("a", first, first_scales), ("b", second, second_scales)):
        out = load_file(tmp_path / "f32" / index["weight_map"][f"{name}.weight"])
        assert torch.equal(out[f"{name}.weight"], by_element(weight, scales))


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda t: t.pop("a.weight"), "has no weight"),
        (lambda t: t.pop("a.weight_scale_inv"), "is missing"),
        (lambda t: t.update({"a.weight_scale_inv": torch.ones(2, 1)}), "do not fit"),
    ],
)
def test_broken_pairs_are_refused(tmp_path, spoil, text):
    weight, scales = fp8(8, 8, 3)
    tensors = {"a.weight": weight, "a.weight_scale_inv": scales}
    spoil(tensors)
    source = write(tmp_path / "fp8", {"model.safetensors": tensors})
    with pytest.raises(LongcatCheckpointError, match=text):
        convert(source, tmp_path / "bf16")


def test_folders(tmp_path):
    weight, scales = fp8(8, 8, 4)
    source = write(tmp_path / "fp8", {"model.safetensors": {"a.weight": weight, "a.weight_scale_inv": scales}})
    with pytest.raises(LongcatCheckpointError, match="not empty"):
        convert(source, source)
    (source / "model.safetensors").unlink()
    with pytest.raises(LongcatCheckpointError, match="neither"):
        convert(source, tmp_path / "bf16")


def test_the_shipped_checkpoint(tmp_path):
    stored = load_file(SHIPPED / "model.safetensors")
    scaled = [name for name in stored if name.endswith("_scale_inv")]
    assert convert(SHIPPED, tmp_path / "bf16") == len(scaled)
    out = load_file(tmp_path / "bf16" / "model.safetensors")
    assert set(out) == set(stored) - set(scaled)
    assert not [name for name, value in out.items() if value.dtype == torch.float8_e4m3fn]
    name = "model.layers.0.self_attn.0.kv_a_proj_with_mqa.weight"  # 160 rows: a ragged last block
    assert torch.equal(out[name], by_element(stored[name], stored[name + "_scale_inv"]).bfloat16())
    for name, value in stored.items():
        if name in out and name + "_scale_inv" not in stored:
            assert torch.equal(out[name], value)

"""`plan` finds the stored precision in a config, an index or headers, with exceptions, spellings and doubts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from longcat_ops import LongcatFlashForCausalLM, LongcatShapeError
from longcat_ops.cli import main
from longcat_ops.loading.sizing import Sizing, size_rank
from support import net_oracle
from support.checkpoints import to_fp8
from support.net_oracle import BASE

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
WEIGHTS = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]}
PACKED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": WEIGHTS}},
    "ignore": ["lm_head"],
}
INT4 = {"targets": ["x"], "weights": {"num_bits": 4}}
PARTS = ("gate", "up", "down")
FEW = {"num_nextn_predict_layers": 0, "torch_dtype": "bfloat16"}
EXPERTS = [f"model.layers.{i}.mlp.experts.{e}.{p}_proj" for i in (0, 1) for e in range(16) for p in PARTS]
LISTS = ("modules_to_not_convert", "ignored_layers", "ignore", "disable_quant_module")


def size(folder: Path, quantisation: object = None, **changes) -> Sizing:
    folder.mkdir(exist_ok=True)
    changes = FEW | changes | ({} if quantisation is None else {"quantization_config": quantisation})
    (folder / "config.json").write_text(json.dumps(BASE | changes))
    return size_rank(folder)


def fp8_parts(sizing: Sizing) -> set[str]:
    return {name for name, part in sizing.parts.items() if part.scale_bytes}


def doubts(sizing: Sizing) -> list[str]:
    return [note for note in sizing.notes if "cannot tell" in note]


def projections(excepted: tuple[str, ...]) -> int:
    """The number of scales if all projections are FP8 except those whose names contain one of these texts. Each is a
    single 128 x 128 block; kv_b stays dense."""
    names = [n for n in net_oracle.shapes(BASE) if n.endswith("_proj.weight") or "kv_a_proj" in n]
    return sum("kv_b" not in n and not any(text in n for text in excepted) for n in names)


@pytest.mark.parametrize("key", LISTS)
@pytest.mark.parametrize(
    ("entries", "excepted"),
    [
        ([], ()), (None, ()), (["lm_head", "model.embed_tokens", "model.norm"], ()),
        (["self_attn"], ("self_attn",)), (["mlps"], ("mlps",)), (["experts"], ("experts",)), (["o_proj"], ("o_proj",)),
        (["model.layers.1"], ("layers.1.",)), (["model.layers.0.self_attn.1"], ("layers.0.self_attn.1.",)),
        (["model.layers.1.mlps.0.down_proj.weight"], ("layers.1.mlps.0.down_proj",)),
        (["re:.*self_attn.*"], ("self_attn",)), (["*.mlps.*.up_proj"], ("up_proj",)), (["model.layers.*"], ("layers",)),
        (EXPERTS, ("experts",)),
    ],
    ids=range(14),
)  # fmt: skip
def test_exceptions_are_counted_dense(tmp_path, key, entries, excepted):
    if excepted == ("up_proj",):
        excepted = ("mlps.0.up_proj", "mlps.1.up_proj")
    sizing = size(tmp_path, FP8 | {key: entries})
    assert doubts(sizing) == []
    assert sum(part.scale_bytes for part in sizing.parts.values()) == 4 * projections(excepted)


def test_compressed_tensors_are_recognised(tmp_path):
    whole = size(tmp_path / "fp8", FP8)
    packed = size(tmp_path / "packed", PACKED)
    assert packed.parts == whole.parts and packed.bytes < size(tmp_path / "bf16").bytes
    assert any("_scale_inv" in note for note in packed.notes)
    some = PACKED | {"ignore": ["lm_head", "re:.*self_attn.*"]}
    assert fp8_parts(size(tmp_path / "some", some)) == {"dense FFN", "experts"}
    aimed = json.loads(json.dumps(PACKED))
    aimed["config_groups"]["group_0"]["targets"] = ["re:.*mlps.*"]
    assert fp8_parts(size(tmp_path / "aimed", aimed)) == {"dense FFN"}
    old = {"compression_config": PACKED}
    assert size(tmp_path / "old", **old).parts == whole.parts


INT8 = PACKED | {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int"}}}}


@pytest.mark.parametrize(
    "quantisation",
    [
        {"quant_method": "awq", "bits": 4}, {"quant_method": "gptq"}, {"quant_method": "modelopt"}, {"quant_method": 8},
        {"bits": 8}, {"quant_method": "fp8", "fmt": "e5m2"}, INT8, PACKED | {"config_groups": None},
        PACKED | {"config_groups": {"group_0": 3}}, PACKED | {"config_groups": {"group_0": {"weights": WEIGHTS}}},
        PACKED | {"config_groups": PACKED["config_groups"] | {"group_1": INT4}},
    ],
    ids=range(11),
)  # fmt: skip
def test_what_cannot_be_told_is_said(tmp_path, quantisation):
    sizing = size(tmp_path, quantisation)
    assert doubts(sizing) and fp8_parts(sizing) == set()


@pytest.mark.parametrize("key", LISTS)
@pytest.mark.parametrize(
    "entries",
    ["self_attn", {"a": 1}, [3], ["no_such_module"], ["lm_head", "model.layers.9"], ["model.layers.0.mlp.experts.5"],
     ["re:(["]],
    ids=range(7),
)  # fmt: skip
def test_exceptions_that_cannot_be_told_are_said(tmp_path, key, entries):
    (doubt,) = doubts(size(tmp_path, FP8 | {key: entries}))
    named = entries[-1] if isinstance(entries, list) and isinstance(entries[-1], str) else key
    assert named in doubt


def test_the_command_says_it_too(tmp_path, capsys):
    size(tmp_path, {"quant_method": "awq"}, unheard_of=3)
    assert main(["plan", str(tmp_path)]) == 0
    text = capsys.readouterr()
    assert "note: cannot tell which projections are quantised" in text.out and "'awq'" in text.out
    assert "note: config keys that are not known here: unheard_of" in text.out and text.err == ""


@pytest.mark.parametrize("spelling", ["{}", "torch.{}"])
@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
@pytest.mark.parametrize(
    ("name", "bytes_"),
    [("bfloat16", 2), ("float16", 2), ("half", 2), ("float32", 4), ("float", 4), ("float64", 8), ("double", 8),
     ("float8_e4m3fn", 2)],
)  # fmt: skip
def test_dtypes_in_the_spellings_of_torch(tmp_path, key, spelling, name, bytes_):
    size(tmp_path)
    config = {k: v for k, v in (BASE | FEW).items() if k != "torch_dtype"} | {key: spelling.format(name)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert size_rank(tmp_path).parts["embedding"].bytes == 97 * 64 * bytes_


def test_a_dtype_that_torch_has_not(tmp_path):
    for name in ("bf16", "torch", "", "Float32", "float8", "int8"):
        with pytest.raises(LongcatShapeError, match="torch_dtype"):
            size(tmp_path, torch_dtype=name)


def test_names_tell_more_than_the_config(tmp_path):
    """An index's scale names and headers' dtypes override the config and agree with the model loaded from them."""
    config = BASE | FEW | {"torch_dtype": "float32", "quantization_config": FP8 | {"ignored_layers": ["o_proj"]}}
    weights = to_fp8(net_oracle.tensors(BASE), lambda name: ".mlps." in name)
    folder = net_oracle.write(tmp_path / "headers", config, weights)
    headers = size_rank(folder)
    assert fp8_parts(headers) == {"dense FFN"} and doubts(headers) == []
    model = LongcatFlashForCausalLM.from_pretrained(folder, progress=False)
    splits = sum(3 * 2 * layer.mlp.router.numel() for layer in model.layers)  # on a GPU only
    assert headers.bytes == sum(b.nbytes for b in model.buffers()) + splits
    index = tmp_path / "index"
    for ending in ("_scale_inv", "_scale"):  # ours, and that of compressed-tensors
        index.mkdir(exist_ok=True)
        (index / "config.json").write_text(json.dumps(config))
        names = {n.replace("_scale_inv", ending): "a.safetensors" for n in weights}
        (index / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        assert size_rank(index).parts == headers.parts


def test_a_list_of_every_module_means_none_is_fp8(tmp_path):
    names = [n.removesuffix(".weight") for n in net_oracle.shapes(BASE | {"num_layers": 8, "n_routed_experts": 500})]
    sizing = size(tmp_path, FP8 | {"ignored_layers": names}, num_layers=8, n_routed_experts=500)
    assert fp8_parts(sizing) == set() and doubts(sizing) == []
    assert sizing.dtype == str(torch.bfloat16).removeprefix("torch.")

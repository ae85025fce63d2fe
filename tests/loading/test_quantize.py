"""`quantize` writes what a plain loop over blocks gives, in the published form, and takes it back to bf16."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from longcat_ops import LongcatFlashForCausalLM
from longcat_ops.cli import main
from longcat_ops.loading.quantize import quantize
from longcat_ops.loading.sizing import size_rank
from support import checkpoints, models
from support.quantizing import SHARD, memory, small_source

INDEX = "model.safetensors.index.json"
TINY = Path(__file__).resolve().parents[2] / "checkpoints" / "longcat-tiny"
E4M3 = torch.float8_e4m3fn


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return small_source(tmp_path_factory.mktemp("made") / "bf16")


def tensors_of(folder):
    return {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def is_projection(name):
    """A projection that can be FP8; kv_b is absorbed dense."""
    return "_proj" in name and "kv_b" not in name


def same(a, b):
    return a.dtype == b.dtype and torch.equal(*(t.view(torch.uint8) if t.dtype == E4M3 else t for t in (a, b)))


def test_values_names_and_the_rest(source, tmp_path):
    made = quantize(source, tmp_path / "fp8", shard_bytes=SHARD)
    old, new = tensors_of(source), tensors_of(tmp_path / "fp8")
    wanted = {}
    for name, t in old.items():
        if is_projection(name):
            wanted[name], wanted[name + "_scale_inv"] = checkpoints.quantise(t.float())
        else:
            wanted[name] = t
    assert new.keys() == wanted.keys()
    assert all(same(new[name], t) for name, t in wanted.items())
    assert new["model.layers.0.self_attn.0.kv_a_proj_with_mqa.weight_scale_inv"].shape == (5, 2)
    # The MTP head and one layer: 8 + 6 + 12, 4 + 3 + 1 projections; kv_b stays in each of three attentions.
    assert (made.quantised, made.fp8, made.dense, made.widened) == (34, 34, 3, 0)
    assert made.bytes_read == sum(t.nbytes for t in old.values())
    assert made.bytes_written == sum(t.nbytes for t in new.values())

    files = sorted(p.name for p in (tmp_path / "fp8").glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-00004.safetensors" for i in (1, 2, 3, 4)] and made.shards == 4
    assert all((tmp_path / "fp8" / file).stat().st_size < SHARD + 10_000 for file in files)  # with its header
    index = json.loads((tmp_path / "fp8" / INDEX).read_text())
    assert index["metadata"] == {"total_size": made.bytes_written}
    assert index["weight_map"] == {n: f for f in files for n in load_file(tmp_path / "fp8" / f)}
    assert all(index["weight_map"][n] == index["weight_map"][n + "_scale_inv"] for n in old if is_projection(n))
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "fp8" / name).read_bytes() == (source / name).read_bytes()


def test_every_tensor_begins_at_its_alignment(source, tmp_path):
    """Readers view the mapped file as numbers, so a tensor must not begin within one."""
    quantize(source, tmp_path / "fp8")
    (file,) = (tmp_path / "fp8").glob("*.safetensors")
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"} and length % 8 == 0
    sizes, end = {"F8_E4M3": 1, "BF16": 2, "F32": 4}, 0
    for entry in sorted(header.values(), key=lambda e: e["data_offsets"]):
        assert entry["data_offsets"][0] == end and end % sizes[entry["dtype"]] == 0
        end = entry["data_offsets"][1]
    assert 8 + length + end == len(data)
    with safe_open(file, "pt") as handle:
        assert set(handle.keys()) == header.keys()


def test_the_config_says_what_is_not_fp8(source, tmp_path):
    quantize(source, tmp_path / "fp8")
    before, after = config_of(source), config_of(tmp_path / "fp8")
    said = after.pop("quantization_config")
    assert after == {key: value for key, value in before.items() if key != "quantization_config"}
    dense = ["lm_head", "model.embed_tokens", "model.layers.0.mlp.router.classifier",
             "model.layers.0.self_attn.0.kv_b_proj", "model.layers.0.self_attn.1.kv_b_proj",
             "model.mtp.layers.0.self_attn.kv_b_proj"]  # fmt: skip
    assert said == {
        "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic",
        "ignored_layers": dense,
    }  # fmt: skip
    # `plan` reads the config alone as it reads the files.
    whole, alone = size_rank(tmp_path / "fp8"), size_rank(tmp_path / "fp8" / "config.json")
    for name, part in whole.parts.items():  # of the head alone it takes an embedding of its own for granted
        assert alone.parts[name].scale_bytes == part.scale_bytes > 0 or not part.scale_bytes
        assert alone.parts[name] == part or name == "MTP"
    assert not [note for note in alone.notes if "cannot tell" in note]


def test_our_loader_takes_it_and_has_the_values_of_the_policy_fp8(source, tmp_path):
    """Quantising a folder and quantising while loading give one network."""
    quantize(source, tmp_path / "fp8")
    stored = LongcatFlashForCausalLM.from_pretrained(tmp_path / "fp8")
    loaded = LongcatFlashForCausalLM.from_pretrained(source, precision="fp8")
    a, b = dict(stored.named_buffers()), dict(loaded.named_buffers())
    assert a.keys() == b.keys() and all(same(t, b[name]) for name, t in a.items())
    assert stored.layers[0].mlp.gate_up.dtype == E4M3 and stored.mtp.eh_proj.fp8
    ids = models.prompt(20).view(2, 10)
    assert torch.equal(stored(ids), loaded(ids))


def test_a_policy_file(source, tmp_path):
    """The first pattern that fits decides; what none fits stays as it is; a layer may mix dense and FP8 stacks."""
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"*.experts.*.down_proj": "bf16", "*.experts.*": "fp8", "*.q_b_proj": "fp8"}))
    made = quantize(source, tmp_path / "fp8", policy=policy)
    new = tensors_of(tmp_path / "fp8")
    fp8 = {n for n, t in new.items() if t.dtype == E4M3}
    assert fp8 == {n for n in new if n.endswith(("q_b_proj.weight", "gate_proj.weight", "up_proj.weight"))
                   and ("experts" in n or "q_b" in n)}  # fmt: skip
    assert made.quantised == len(fp8) == 8 + 3
    ignored = config_of(tmp_path / "fp8")["quantization_config"]["ignored_layers"]
    assert "model.layers.0.mlp.experts.3.down_proj" in ignored and "model.mtp.layers.0.eh_proj" in ignored
    assert not any(f"{name}.weight" in fp8 for name in ignored)
    model = LongcatFlashForCausalLM.from_pretrained(tmp_path / "fp8")
    assert model.layers[0].mlp.gate_up_scale is not None and model.layers[0].mlp.down_scale is None
    same_ = LongcatFlashForCausalLM.from_pretrained(source, precision=policy)
    assert torch.equal(model(models.prompt(9).view(1, 9)), same_(models.prompt(9).view(1, 9)))


def test_there_and_back(source, tmp_path):
    """bf16 of FP8 is each value times its block's scale, rounded once; a policy of nothing is the same."""
    quantize(source, tmp_path / "fp8", shard_bytes=SHARD)
    made = quantize(tmp_path / "fp8", tmp_path / "back", to="bf16")
    fp8, back, old = (tensors_of(f) for f in (tmp_path / "fp8", tmp_path / "back", source))
    assert (made.widened, made.fp8, made.quantised) == (34, 0, 0) and back.keys() == old.keys()
    for name, t in back.items():
        wide = checkpoints.dequantise(fp8[name], fp8[name + "_scale_inv"]) if is_projection(name) else old[name]
        assert same(t, wide.bfloat16() if is_projection(name) else wide), name
    assert "quantization_config" not in config_of(tmp_path / "back")
    quantize(tmp_path / "fp8", tmp_path / "none", policy="none")
    assert all(same(t, back[name]) for name, t in tensors_of(tmp_path / "none").items())


def test_fp8_stays_as_it_is(source, tmp_path):
    """What is FP8 already is copied, not quantised again."""
    quantize(source, tmp_path / "a")
    made = quantize(tmp_path / "a", tmp_path / "b")
    assert made.quantised == 0 and made.fp8 == 34
    a, b = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b")
    assert a.keys() == b.keys() and all(same(t, b[name]) for name, t in a.items())
    assert config_of(tmp_path / "a") == config_of(tmp_path / "b")


def test_scales_in_another_file_and_of_another_dtype(tmp_path):
    """A published file may keep scales elsewhere; they are read in the dtype in which they are stored."""
    config = models.config(num_layers=1)
    tensors = checkpoints.to_fp8(models.tensors(config))
    tensors = {n: t.double() if n.endswith("_scale_inv") else t for n, t in tensors.items()}
    checkpoints.write(tmp_path / "a", config, tensors, shards=7)
    quantize(tmp_path / "a", tmp_path / "b", to="bf16")
    back = tensors_of(tmp_path / "b")
    wide = checkpoints.widened({n: t.float() if t.dtype == torch.float64 else t for n, t in tensors.items()})
    for name, t in wide.items():
        assert torch.equal(back[name].float(), t.bfloat16().float() if name + "_scale_inv" in tensors else t), name


def test_the_shipped_checkpoint(tmp_path):
    stored = tensors_of(TINY)
    made = quantize(TINY, tmp_path / "bf16", to="bf16")
    out = tensors_of(tmp_path / "bf16")
    scaled = [n for n in stored if n.endswith("_scale_inv")]
    assert made.widened == len(scaled) == 233 and set(out) == set(stored) - set(scaled)
    name = "model.layers.0.self_attn.0.kv_a_proj_with_mqa.weight"  # 160 rows: a ragged last block
    assert torch.equal(out[name], checkpoints.dequantise(stored[name], stored[name + "_scale_inv"]).bfloat16())
    assert (tmp_path / "bf16" / "heldout.txt").read_bytes() == (TINY / "heldout.txt").read_bytes()


def test_progress_counts_the_bytes_of_source(source, tmp_path):
    seen = []
    made = quantize(source, tmp_path / "fp8", shard_bytes=SHARD, progress=lambda *each: seen.append(each))
    assert {(what, total) for what, _, total in seen} == {("quantizing", made.bytes_read)}
    done = [n for _, n, _ in seen]
    assert done == sorted(done) and done[-1] == made.bytes_read and len(done) > 30


def test_the_command(source, tmp_path, capsys):
    arguments = ["quantize", str(source), str(tmp_path / "fp8"), "--shard-mb", "1", "--json"]
    assert main(arguments) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["quantised"], made["already"]) == (34, False)
    assert main(arguments[:-1]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'fp8'}: all of it is there already\n"
    assert main(["quantize", str(tmp_path / "fp8"), str(tmp_path / "back"), "--to", "bf16"]) == 0
    assert "0 projections in FP8 and 37 dense (34 multiplied out, 0 quantised)" in capsys.readouterr().out


def test_memory_stays_bounded(tmp_path):
    """Anonymous memory grows by less than two of the largest tensors and 64 MB over a source of 300 MB, in a process of
    its own that has only imported the package. It loads no compiler either, as torch does when values are missing.
    """
    found = memory(tmp_path)
    assert found["source"] >= 300e6 and found["made"] < 0.55 * found["source"]
    assert 8e6 <= found["largest"] <= 20e6
    assert 0 < found["growth"] <= 2 * found["largest"] + 64e6
    assert not found["compiler"]

"""Checkpoints that do not load give one message that names the file and every tensor, before weights are read."""

from __future__ import annotations

import json
import struct
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from longcat_ops import LongcatCheckpointError, LongcatFlashForCausalLM, LongcatShapeError, LongcatUnsupportedError
from longcat_ops.loading.checkpoint import CheckpointSource, check_names, expected_tensors
from support import checkpoints, models

CONFIG = models.config(num_layers=1)
ROUTER = "model.layers.0.mlp.router.classifier.weight"
O_PROJ = "model.layers.0.self_attn.0.o_proj.weight"


@pytest.fixture
def tensors():
    return models.tensors(CONFIG)


@pytest.fixture(autouse=True)
def nothing_read(monkeypatch):
    """Fails if any test of this file reads a weight: the headers must reveal every error."""

    def fetch(self, name, shape):
        raise AssertionError(f"{name} was read before the check was done")

    monkeypatch.setattr(CheckpointSource, "fetch", fetch)


def refused(folder, **options):
    with pytest.raises(LongcatCheckpointError) as info:
        LongcatFlashForCausalLM.from_pretrained(folder, **options)
    return str(info.value)


def test_every_problem_at_once(tmp_path, tensors):
    tensors["model.layers.0.self_attn.0.o_proj.wieght"] = tensors.pop(O_PROJ)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:60]
    tensors["model.extra"] = torch.zeros(3)
    del tensors["model.norm.weight"]
    text = refused(checkpoints.write(tmp_path, CONFIG, tensors))
    for part in (
        f"{tmp_path} does not match its config.json: 5 problems.",
        f"missing {O_PROJ} [64, 64] (nearest known name: model.layers.0.self_attn.0.o_proj.wieght)",
        "missing model.norm.weight [64]",
        "model.safetensors: lm_head.weight has shape [60, 64], expected [61, 64]",
        f"unexpected model.layers.0.self_attn.0.o_proj.wieght [64, 64] (nearest known name: {O_PROJ})",
        "unexpected model.extra [3]",
    ):
        assert part in text


def test_a_long_list_is_cut_and_found_quickly(tmp_path):
    """Tens of thousands of wrong names, as in another model's checkpoint, are reported within a minute."""
    expected = expected_tensors(models.config(num_layers=8, n_routed_experts=400), mtp=False)

    other = SimpleNamespace(path=tmp_path, shape={f"transformer.{name}": e.shape for name, e in expected.items()})
    count, start = 2 * len(expected), time.perf_counter()
    with pytest.raises(LongcatCheckpointError, match=rf"{count} problems(.|\n)*and {count - 12} more"):
        check_names(other, expected, ())
    assert time.perf_counter() - start < 60


def test_scales(tmp_path, tensors):
    fp8 = checkpoints.to_fp8(tensors, lambda n: n == O_PROJ or "down_proj" in n)
    del fp8[f"{O_PROJ}_scale_inv"]
    name = "model.layers.0.mlps.0.down_proj.weight"
    fp8[f"{name}_scale_inv"] = torch.ones(2, 1)
    other = "model.layers.0.mlps.1.down_proj.weight"
    fp8[other] = tensors[other]
    fp8[ROUTER] = fp8[ROUTER].to(torch.float8_e4m3fn)
    text = refused(checkpoints.write(tmp_path, CONFIG, fp8))
    for part in (
        "4 problems",
        f"{O_PROJ} is float8_e4m3fn, but {O_PROJ}_scale_inv is missing",
        f"{name}_scale_inv has shape [2, 1], expected [1, 1] (128x128 blocks)",
        f"{other} has scales but is torch.float32, expected float8_e4m3fn",
        f"{ROUTER} is float8_e4m3fn, expected bf16, f16 or f32 (never quantised)",
    ):
        assert part in text


def test_mtp_that_the_config_promises(tmp_path):
    config = models.config(num_layers=1, num_nextn_predict_layers=1)
    text = refused(checkpoints.write(tmp_path, config, models.tensors(CONFIG, mtp=False)))
    promise = "the MTP head that num_nextn_predict_layers promises is absent, all 16 tensors of it"
    assert f"1 problems.\n  {promise}\n  fix: num_nextn_predict_layers: 0 in config.json goes without it" in text
    folder = checkpoints.write(tmp_path / "more", config, models.tensors(CONFIG, mtp=False) | {O_PROJ: torch.ones(3)})
    assert "2 problems" in refused(folder) and promise in refused(folder)


def test_mtp_in_part(tmp_path, tensors):
    del tensors["model.mtp.norm.weight"]
    assert "1 problems.\n  missing model.mtp.norm.weight [64]" in refused(checkpoints.write(tmp_path, CONFIG, tensors))


def test_experts_that_are_not_there(tmp_path, tensors):
    folder = checkpoints.write(tmp_path, CONFIG, tensors)
    with pytest.raises(LongcatCheckpointError, match=r"6 problems.\n  missing model.layers.0.mlp.experts.6.gate_proj"):
        CheckpointSource(folder, CONFIG, experts=range(4, 8))


def test_no_folder_no_config_no_weights(tmp_path):
    assert "config.json does not exist; a checkpoint is a folder" in refused(tmp_path / "absent")
    (tmp_path / "config.json").write_text("{nonsense")
    assert "config.json is not valid JSON: " in refused(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(models.BASE))
    assert refused(tmp_path) == f"{tmp_path} holds no *.safetensors file."
    (tmp_path / "config.json").write_text(json.dumps(models.BASE | {"rope_scaling": {"type": "yarn"}}))
    with pytest.raises(LongcatUnsupportedError, match=r"`rope_scaling` is .*yarn.*, expected none"):
        LongcatFlashForCausalLM.from_pretrained(tmp_path)


def damaged(folder, change):
    file = folder / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    text = refused(folder)
    assert f"{file} ({file.stat().st_size} bytes) is not a complete safetensors file: " in text
    assert "fix: copy or download the file again" in text


def rewrite_header(content, change):
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


DAMAGE = {
    "cut_in_the_data": lambda c: c[:-100],
    "cut_in_the_header": lambda c: c[:50],
    "empty": lambda c: b"",
    "length_beyond_the_file": lambda c: struct.pack("<Q", len(c) * 2) + c[8:],
    "length_beyond_memory": lambda c: struct.pack("<Q", 2**63) + c[8:],
    "not_json": lambda c: c[:8] + b"x" * 20 + c[28:],
    "shape_beyond_its_bytes": lambda c: rewrite_header(c, lambda h: h["lm_head.weight"].update(shape=[61, 65])),
    "offsets_beyond_the_file": lambda c: rewrite_header(
        c, lambda h: h["lm_head.weight"].update(data_offsets=[0, 10**9], shape=[250, 10**6])
    ),
    "trailing_bytes": lambda c: c + b"more",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_file(tmp_path, tensors, kind):
    damaged(checkpoints.write(tmp_path, CONFIG, tensors), DAMAGE[kind])


def test_wrong_dtype(tmp_path, tensors):
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int32)
    text = refused(checkpoints.write(tmp_path, CONFIG, tensors))
    assert "model.safetensors: tensor lm_head.weight has dtype I32, expected one of ['BF16', " in text


def test_index(tmp_path, tensors):
    folder = checkpoints.write(tmp_path, CONFIG, tensors, shards=3)
    index = folder / "model.safetensors.index.json"
    second = folder / "model-00002-of-00003.safetensors"
    content = second.read_bytes()
    second.unlink()
    assert f"{index} names 3 files, 1 of them are missing: {second.name}" in refused(folder)
    first = list(tensors)[1]
    save_file({first: tensors[first]}, second)
    lost = list(tensors)[4]
    assert f"the index places {lost} in {second.name}, which does not hold it (" in refused(folder)
    second.write_bytes(content[: len(content) // 2])
    assert f"{second} ({len(content) // 2} bytes) is not a complete safetensors file" in refused(folder)
    for text in ("{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
        index.write_text(text)
        assert f"{index} is not an index: expected JSON with `weight_map`" in refused(folder)


def test_one_tensor_in_two_files(tmp_path, tensors):
    folder = checkpoints.write(tmp_path, CONFIG, tensors)
    save_file({"lm_head.weight": tensors["lm_head.weight"]}, folder / "other.safetensors")
    assert refused(folder) == "tensor lm_head.weight is in model.safetensors and in other.safetensors."


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        (dict(dtype=torch.int8), LongcatShapeError, r"`dtype` is torch.int8, expected bfloat16, float32 or float64.$"),
        (
            dict(dtype=torch.float16),
            LongcatShapeError,
            r"`dtype` is torch.float16, expected bfloat16, float32 or float64.\n  fix: dtype=torch.bfloat16: dense",
        ),
        (
            dict(precision="int4"),
            LongcatShapeError,
            r"`precision` is 'int4', expected None, \"bf16\", \"fp8\" or the path",
        ),
        (dict(ep_group=1), LongcatShapeError, r"`ep_group` is 1, expected a process group of torch.distributed"),
        (dict(tp_group=1), LongcatShapeError, r"`tp_group` is 1, expected a process group of torch.distributed"),
        (dict(tp_form="ring"), LongcatShapeError, r"`tp_form` is 'ring', expected 'token' or 'all_reduce'"),
    ],
)
def test_bad_arguments(tmp_path, tensors, options, error, text):
    folder = checkpoints.write(tmp_path, CONFIG, tensors)
    with pytest.raises(error, match=f"from_pretrained: argument {text}"):
        LongcatFlashForCausalLM.from_pretrained(folder, **options)


@pytest.mark.parametrize(
    ("policy", "error", "text"),
    [
        ("{", LongcatCheckpointError, r"policy.json is not valid JSON"),
        ("[1]", LongcatCheckpointError, r"policy.json holds a list, expected an object"),
        ('{"*": "int4"}', LongcatShapeError, r"`precision` is 'int4' for \*, expected one of \('bf16', 'fp8'\)"),
    ],
)
def test_bad_policy(tmp_path, tensors, policy, error, text):
    folder = checkpoints.write(tmp_path, CONFIG, tensors)
    file = tmp_path / "policy.json"
    file.write_text(policy)
    with pytest.raises(error, match=text):
        LongcatFlashForCausalLM.from_pretrained(folder, precision=file)


def test_state_dicts(tensors):
    build = LongcatFlashForCausalLM.from_state_dict
    short = {n: t for n, t in tensors.items() if n != O_PROJ}
    with pytest.raises(LongcatCheckpointError, match=f"tensor {O_PROJ} is missing"):
        build(CONFIG, short)
    with pytest.raises(LongcatCheckpointError, match=rf"tensor {O_PROJ} has shape \[64, 63\], expected \[64, 64\]"):
        build(CONFIG, tensors | {O_PROJ: tensors[O_PROJ][:, :63]})
    fp8 = checkpoints.to_fp8(tensors, lambda n: n == O_PROJ)
    del fp8[f"{O_PROJ}_scale_inv"]
    with pytest.raises(LongcatCheckpointError, match=f"tensor {O_PROJ} is float8_e4m3fn but {O_PROJ}_scale_inv is mis"):
        build(CONFIG, fp8)
    part = checkpoints.to_fp8(tensors, lambda n: "experts.2.up_proj" in n)
    with pytest.raises(LongcatCheckpointError, match="the experts of one layer are partly FP8: all of them or none"):
        build(CONFIG, part)

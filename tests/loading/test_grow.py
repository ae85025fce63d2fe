"""`grow_depth`: every tensor and key by a plain loop, the network that they make, kills, refusals, the command."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longcat_ops import LongcatCheckpointError, LongcatError, LongcatFlashForCausalLM, LongcatShapeError
from longcat_ops.cli import main
from longcat_ops.loading.grow import grow_depth
from longcat_ops.loading.quantize import quantize
from support import checkpoints, models
from support.quantizing import content, events, killed

INDEX = "model.safetensors.index.json"
SHARD = 150_000  # cuts what grows out of the source below into several files


def published(fp8: bool, layers: int = 2) -> dict[str, torch.Tensor]:
    """bf16 or FP8 tensors with an MTP head, and the gate and up matrices that transformers adds for zero experts."""
    config = models.config(num_layers=layers)
    tensors = {n: t if ".router." in n else t.bfloat16() for n, t in models.tensors(config).items()}
    phantom = {f"model.layers.1.mlp.experts.{e}.{part}_proj.weight": torch.full((48, 64), e, dtype=torch.bfloat16)
               for e in (6, 8) for part in ("gate", "up")}  # fmt: skip
    return checkpoints.to_fp8(tensors, lambda name: "kv_b_proj" not in name) if fp8 else tensors | phantom


@pytest.fixture(scope="module", params=["bf16", "fp8"])
def source(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / request.param
    checkpoints.write(folder, models.config(), published(request.param == "fp8"), shards=2)
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text('{"model": "any"}')
    (folder / "c2t.json").write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def source_stays(source):
    before = content(source)
    yield
    assert content(source) == before


def stacked(tensors: dict[str, torch.Tensor], layers: int, r: int) -> dict[str, torch.Tensor]:
    """The oracle: for each layer of the new network, the old layer below it by the remainder."""
    found = {name: t for name, t in tensors.items() if not name.startswith("model.layers.")}
    for new in range(layers * r):
        old = f"model.layers.{new % layers}."
        found |= {f"model.layers.{new}." + n.removeprefix(old): t for n, t in tensors.items() if n.startswith(old)}
    return found


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def test_tensors_and_small_files(source, tmp_path):
    made = grow_depth(source, tmp_path / "deep", 3, shard_bytes=SHARD)
    want, got = stacked(stored(source), 2, 3), stored(tmp_path / "deep")
    assert got.keys() == want.keys() and all(same(got[name], want[name]) for name in want)
    index = json.loads((tmp_path / "deep" / INDEX).read_text())
    assert index["weight_map"].keys() == want.keys() and made.shards == len(set(index["weight_map"].values())) > 3
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in want.values()) == made.bytes_written
    scaled = [name for name in want if name.endswith("_scale_inv")]
    assert all(index["weight_map"][n] == index["weight_map"][n.removesuffix("_scale_inv")] for n in scaled)
    of_layers = {n for n in stored(source) if n.startswith("model.layers.") and not n.endswith("_scale_inv")}
    kept = {n for n in stored(source) if not n.startswith("model.layers.") and not n.endswith("_scale_inv")}
    assert (made.layers, made.stacked, made.kept) == (6, len(of_layers), len(kept))
    assert (tmp_path / "deep" / "tokenizer.json").exists() and not (tmp_path / "deep" / "c2t.json").exists()


def test_config(source, tmp_path):
    grow_depth(source, tmp_path / "deep", 2)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "deep"))
    said = after.pop("quantization_config", None)
    before.pop("quantization_config")
    assert after == before | {"num_layers": 4, "num_hidden_layers": 8, "layer_types": ["full_attention"] * 8}
    if source.name == "bf16":
        assert said is None
    else:
        dense = {n.removesuffix(".weight") for n, t in stacked(stored(source), 2, 2).items()
                 if t.dim() == 2 and not n.endswith("_scale_inv") and t.dtype != torch.float8_e4m3fn}  # fmt: skip
        assert set(said["ignored_layers"]) == dense and "model.layers.3.self_attn.1.kv_b_proj" in dense


def test_the_network_is_that_of_stacked_layers(source, tmp_path):
    grow_depth(source, tmp_path / "deep", 2)
    tensors = {n: t for n, t in stored(source).items() if not re.search(r"experts\.[678]\.", n)}
    by_hand = stacked(checkpoints.widened(tensors), 2, 2)
    wanted = LongcatFlashForCausalLM.from_state_dict(models.config(num_layers=4), by_hand, torch.float32)
    found = LongcatFlashForCausalLM.from_pretrained(
        tmp_path / "deep", dtype=torch.float32, precision="bf16", progress=False
    )
    ids = models.prompt(20)[None]
    assert torch.equal(found(ids), wanted(ids)) and found.mtp is not None


def whole(source: Path, folder: Path) -> dict[str, bytes]:
    grow_depth(source, folder, shard_bytes=SHARD)
    return content(folder)


def go_on(source: Path, dest: Path, want: dict[str, bytes]) -> None:
    """Nothing loads until the last weights are there; then the bytes are those of a run that nobody stopped."""
    if not (dest / INDEX).exists() and not (dest / "config.json").exists():
        with pytest.raises(LongcatCheckpointError):
            LongcatFlashForCausalLM.from_pretrained(dest, progress=False)
    grow_depth(source, dest, shard_bytes=SHARD)
    assert content(dest) == want


def test_killed_at_random_moments(source, tmp_path):
    want, draw = whole(source, tmp_path / "whole"), random.Random(2)
    count = events(source, tmp_path / "counted", grow_depth, shard_bytes=SHARD)
    for i in range(2):
        killed(source, tmp_path / f"{i}", draw.randrange(count), draw.random() < 0.5, grow_depth, shard_bytes=SHARD)
        go_on(source, tmp_path / f"{i}", want)


@pytest.mark.parametrize("r", [1, 0, True, 2.0, "2"])
def test_factors_that_are_refused(source, tmp_path, r):
    with pytest.raises(LongcatShapeError, match=r"grow: argument `factor` is .*, expected an int of 2 or more"):
        grow_depth(source, tmp_path / "deep", r)
    assert not (tmp_path / "deep").exists()


def test_refusals(source, tmp_path):
    def refused(kind, pattern, dest, r=2, **options):
        with pytest.raises(kind, match=pattern):
            grow_depth(source, dest, r, **options)

    refused(LongcatShapeError, "`factor` is 129, for 2 layers, expected 128 at most", tmp_path / "deep", 129)
    refused(LongcatShapeError, "`shard_bytes` is 0, expected a positive int", tmp_path / "deep", shard_bytes=0)
    refused(LongcatShapeError, "grow: argument `DEST` is .*, which lies in SOURCE", source / "deep")
    refused(LongcatError, "cannot be written", "/sys/longcat_ops")
    assert not (tmp_path / "deep").exists()
    grow_depth(source, tmp_path / "deep")
    before = content(tmp_path / "deep")
    assert grow_depth(source, tmp_path / "deep").already
    refused(LongcatShapeError, "`factor` is 3, expected 2, the one that .* was begun with", tmp_path / "deep", 3)
    quantize(source, tmp_path / "other")
    refused(LongcatShapeError, "`DEST` is .*, which holds c2t.json, expected a new", tmp_path / "other")
    assert content(tmp_path / "deep") == before


def test_a_network_without_layers(tmp_path):
    config = models.config(num_layers=0)
    checkpoints.write(tmp_path / "flat", config, models.tensors(config))
    with pytest.raises(LongcatShapeError, match="`SOURCE` is a network without layers"):
        grow_depth(tmp_path / "flat", tmp_path / "deep")


def test_command(source, tmp_path, capsys):
    arguments = ["grow", str(source), str(tmp_path / "deep"), "--factor", "3"]
    assert main(arguments) == 0
    line = capsys.readouterr().out
    assert "2 layers became 6; " in line and " MB in 1 files, " in line
    assert stored(tmp_path / "deep").keys() == stacked(stored(source), 2, 3).keys()
    assert main([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["already"] and facts["layers"] == 6 and facts["dest"] == str(tmp_path / "deep")
    assert main([*arguments[:-1], "2"]) == 2 and "was begun with" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*arguments[:-1], "1"])

"""`plan`'s sizes equal published totals, hand formulas and the bytes of a loaded model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from longcat_ops import (
    LongcatCheckpointError,
    LongcatFlashConfig,
    LongcatFlashForCausalLM,
    LongcatShapeError,
    per_block_quant_fp8,
)
from longcat_ops.cli import main
from longcat_ops.loading.checkpoint import expected_tensors
from longcat_ops.loading.sizing import COMPONENTS, component, size_rank
from support import models

# Sizes of one layer of the released model, from its config by hand.
H, HEADS, EXPERT = 6144, 64, 3 * 2048 * 6144
MLA = 1536 * H + HEADS * 192 * 1536 + 576 * H + HEADS * 256 * 512 + H * HEADS * 128
FFN = 3 * 12288 * H
EMBEDDING = 131072 * H


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """The released config, all defaults, as a JSON file without weights."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(asdict(LongcatFlashConfig())))
    return file


def test_parameters_are_those_of_the_published_model(released):
    plan = size_rank(released)
    assert round(plan.parameters_total / 1e9, 2) == 560.66
    assert {k: round(n / 1e9, 2) for k, n in plan.active_parameters.items()} == {0: 18.69, 8: 27.15, 12: 31.38}
    assert round(plan.parameters_mtp / 1e9, 3) == 1.198


def test_kv_bytes_are_those_of_the_published_model(released):
    plan = size_rank(released)
    assert plan.kv_bytes_per_token == 576 * 2 * 57 == 65_664
    assert plan.kv_bytes_per_token_without_mtp == 64_512
    assert size_rank(released, mtp=False).kv_bytes_per_token == 64_512


@pytest.mark.parametrize("ep,tp", [(1, 1), (8, 1), (32, 8), (3, 2)])
def test_parameters_of_a_rank_by_hand(released, ep, tp):
    plan = size_rank(released, ep=ep, tp=tp, tp_form="all_reduce")
    experts = -(-512 // ep)
    sharded = HEADS * 192 * 1536 + HEADS * 256 * 512 + H * HEADS * 128
    attention = 56 * (1536 * H + 576 * H + sharded // tp)
    got = {name: part.parameters for name, part in plan.parts.items()}
    assert got["embedding"] == got["lm_head"] == EMBEDDING // tp
    assert got["experts"] == 28 * experts * EXPERT
    assert got["attention"] == attention
    assert got["dense FFN"] == 56 * FFN // tp
    assert got["router"] == 28 * 768 * (H + 1)
    mtp_layer = 2 * H * H + 1536 * H + 576 * H + sharded // tp + FFN // tp
    assert got["MTP"] == EMBEDDING // tp + mtp_layer + 5 * H + 1536 + 512
    whole = size_rank(released, ep=ep, tp=tp).parts  # in token form attentions are whole, all else is the same
    assert whole["attention"].parameters == 56 * MLA
    assert {n: p.parameters for n, p in whole.items() if n not in ("attention", "MTP")} == {
        n: got[n] for n in got if n not in ("attention", "MTP")
    }


def test_bytes_of_a_rank_by_hand(released):
    plan = size_rank(released, ep=8, tp=1, precision="fp8")
    # Experts: e4m3 and one f32 per 128 x 128 block, every width a multiple of 128.
    experts = 28 * 64 * EXPERT
    assert plan.parts["experts"].scale_bytes == experts // 128**2 * 4
    assert plan.parts["experts"].bytes == experts + experts // 128**2 * 4
    # kv_a has 576 rows: the last block is half full.
    a_layer = 12 * 48 + 96 * 12 + 5 * 48 + 48 * 64
    assert plan.parts["attention"].scale_bytes == 56 * a_layer * 4
    kv_b = HEADS * 256 * 512
    assert plan.parts["attention"].bytes == 56 * (MLA - kv_b + a_layer * 4 + kv_b * 2 + HEADS * 128 * 512 * 2)
    assert plan.parts["router"].bytes == 28 * 768 * ((H + 1) * 4 + 3 * H * 2)
    assert plan.parts["lm_head"].bytes == EMBEDDING * 2
    assert plan.bytes == sum(part.bytes for part in plan.parts.values())


def test_the_published_deployments_fit(released):
    """The FP8 model fits on one node of eight 141 GB cards, the bf16 model on sixteen cards of 80 GB."""
    by_card = {fit.card: fit for fit in size_rank(released, ep=8, tp=8, precision="fp8").fits}
    assert by_card["141 GB"].fits
    sixteen = size_rank(released, ep=16, tp=16, tp_form="all_reduce", precision="bf16")
    eighty = sixteen.fits[0]
    assert eighty.fits and eighty.capacity == 80 * 2**30
    assert sixteen.symmetric_bytes == 0  # ranks of several nodes have no device rung
    # 512 rows of 8 ranks in fp32 twice, for a copy and for `empty`; lines and control; units of 2 MiB.
    eight = size_rank(released, ep=16, tp=8)
    assert eight.symmetric_bytes == 2 * 8 * 512 * H * 4 + 2 * 2**20
    # Of 16 ranks' 512 tokens all 12 choices may arrive, and of the own 512 tokens all come back; two buffers.
    assert sixteen.expert_bytes == 2 * 512 * 12 * (16 * (H + 4 * 48) + 2 * H)
    beside = sixteen.bytes + sixteen.expert_bytes
    assert eighty.kv_tokens == (72 * 2**30 - beside) // 65_664
    assert size_rank(released).expert_bytes == 0
    assert size_rank(released).symmetric_bytes == 0
    # 131072 positions in splits of 512 rows: 132 blocks of 65 partial sums, 64 heads x (512 + 2) in float32.
    assert size_rank(released).attention_bytes == sixteen.attention_bytes == 132 * 65 * 64 * 514 * 4
    assert not size_rank(released, ep=8, tp=8, precision="bf16").fits[0].fits
    assert size_rank(released, ep=8, tp=8, precision="bf16").fits[0].kv_tokens == 0


def write_checkpoint(folder: Path, *, fp8: bool, dtype=torch.bfloat16, **changes) -> Path:
    config = models.config(**changes)
    tensors = {}
    for name, t in models.tensors(config, mtp_embedding=fp8).items():
        if fp8 and expected_tensors(config, mtp=True, mtp_embedding=True)[name].quantisable:
            tensors[name], tensors[name + "_scale_inv"] = per_block_quant_fp8(t)
        else:
            tensors[name] = t if ".router." in name else t.to(dtype)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(models.BASE | changes))
    return folder


@pytest.mark.parametrize("precision", [None, "bf16", "fp8"])
@pytest.mark.parametrize("fp8", [False, True])
def test_bytes_are_those_of_the_loaded_model(tmp_path, fp8, precision):
    folder = write_checkpoint(tmp_path, fp8=fp8, n_routed_experts=4)
    model = LongcatFlashForCausalLM.from_pretrained(folder, precision=precision, progress=False)
    held = sum(b.nbytes for b in model.buffers())
    splits = sum(3 * 2 * layer.mlp.router.numel() for layer in model.layers)  # on a GPU only
    plan = size_rank(folder, precision=precision)
    assert plan.bytes == held + splits
    row = model.new_cache(1, 64).rows
    assert plan.kv_bytes_per_token == row[:, 0, 0].numel() * row.itemsize


def test_a_policy_file_decides_by_name(tmp_path):
    folder = write_checkpoint(tmp_path / "model", fp8=False)
    policy = tmp_path / "policy.json"
    policy.write_text('{"*.experts.*": "fp8"}')
    parts = size_rank(folder, precision=policy).parts
    assert parts["experts"].scale_bytes > 0
    assert all(part.scale_bytes == 0 for name, part in parts.items() if name != "experts")


def test_an_index_alone_is_enough(tmp_path):
    config = models.config()
    expected = expected_tensors(config, mtp=True)
    names = dict.fromkeys(expected, "a.safetensors")
    for name, want in expected.items():
        if ".experts." in name:
            names[name] = f"expert{name.split('.experts.')[1].split('.')[0]}.safetensors"
            assert want.quantisable
            names[name + "_scale_inv"] = names[name]
    (tmp_path / "config.json").write_text(json.dumps(models.BASE))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    plan = size_rank(tmp_path, ep=3)
    assert plan.parts["experts"].scale_bytes > 0 and plan.parts["dense FFN"].scale_bytes == 0
    assert (plan.files, plan.files_total) == (3, 7)  # the common file and two of six experts
    assert not any("not stored" in note for note in plan.notes)

    gone = "model.layers.1.mlp.experts.5.up_proj.weight"
    del names[gone]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert any("1 of the" in note and gone in note for note in size_rank(tmp_path).notes)

    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(LongcatCheckpointError, match="weight_map"):
        size_rank(tmp_path)


def test_without_an_mtp_head_nothing_is_counted_for_it(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(models.BASE | {"num_nextn_predict_layers": 0}))
    plan = size_rank(tmp_path)
    assert "MTP" not in plan.parts and plan.parameters_mtp == 0 and plan.kv_slots == 4


def test_the_declared_quantisation_is_believed_without_names(tmp_path):
    raw = models.BASE | {"quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert size_rank(tmp_path).parts["dense FFN"].scale_bytes > 0


@pytest.mark.parametrize(
    "changes,argument",
    [
        ({"ep": 0}, "ep"),
        ({"ep": 7}, "ep"),
        ({"tp": 2}, "tp"),
        ({"tp": 0}, "tp"),
        ({"tp": 3, "tp_form": "all_reduce"}, "tp"),
        ({"tp_form": "ring"}, "tp_form"),
    ],
)
def test_impossible_splits_are_refused(tmp_path, changes, argument):
    (tmp_path / "config.json").write_text(json.dumps(models.BASE))
    with pytest.raises(LongcatShapeError, match=f"`{argument}`"):
        size_rank(tmp_path, **changes)


def test_uneven_splits_show_the_largest_rank(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(models.BASE | {"ffn_hidden_size": 320}))
    plan = size_rank(tmp_path, ep=4, tp=2)
    assert plan.experts_here == 2
    assert any("6 experts over 4 ranks" in note for note in plan.notes)
    assert any("vocabulary 61 over 2 ranks" in note for note in plan.notes)
    assert any("dense FFN width 320 over 2 ranks" in note for note in plan.notes)
    assert plan.parts["embedding"].parameters == 32 * 64
    assert plan.parts["dense FFN"].parameters == 4 * 3 * 256 * 64


def test_every_name_has_one_component():
    config = models.config()
    assert {component(n) for n in expected_tensors(config, mtp=True)} == set(COMPONENTS)
    model = models.build()
    assert {component(n) for n, _ in model.named_buffers()} == set(COMPONENTS)


def test_the_command_prints_the_plan(released, capsys):
    assert main(["plan", str(released), "--ep", "8", "--tp", "2", "--precision", "fp8"]) == 0
    text = capsys.readouterr().out
    for part in (
        "560.66 B parameters",
        "31.38 B at 12",
        "65,664 B per token",
        "64 of 512 a layer",
        "width / 2",
        "TP 2 (token form)",
    ):
        assert part in text
    assert main(["plan", str(released), "--tp", "2", "--tp-form", "all_reduce"]) == 0
    assert "heads / 2 (q_b, kv_b, o_proj)" in capsys.readouterr().out
    assert main(["plan", str(released), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kv_bytes_per_token"] == 65_664 and facts["bytes"] == sum(p["bytes"] for p in facts["parts"].values())


def test_bad_requests_end_in_a_message(tmp_path, released, capsys):
    for arguments, text in (
        ([str(tmp_path / "none")], "does not exist"),
        ([str(released), "--precision", "int4"], "precision"),
        ([str(released), "--ep", "513"], "`ep` is 513"),
    ):
        assert main(["plan", *arguments]) == 2
        streams = capsys.readouterr()
        assert text in streams.err and "Traceback" not in streams.err and streams.out == ""

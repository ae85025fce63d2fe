"""Checkpoints that load: names, FP8 per tensor, one rank's experts, MTP, precision, and no unneeded byte is read."""

from __future__ import annotations

import json

import pytest
import torch

from longcat_ops import LongcatFlashForCausalLM
from longcat_ops.loading import checkpoint
from longcat_ops.loading.checkpoint import CheckpointSource, expected_tensors
from longcat_ops.model.source import released
from support import checkpoints, models

load = LongcatFlashForCausalLM.from_pretrained
IDS = models.prompt(20).view(2, 10)
# kv_a_proj_with_mqa has 576 rows, as released: 5 row blocks, the last half full. Gate and up have 136: 2 blocks each.
RAGGED = dict(hidden_size=192, kv_lora_rank=568, q_lora_rank=136, expert_ffn_hidden_size=136, ffn_hidden_size=200,
              num_layers=1, n_routed_experts=4, zero_expert_num=2)  # fmt: skip


def same_network(a, b):
    sa, sb = dict(a.named_buffers()), dict(b.named_buffers())
    assert sa.keys() == sb.keys()
    for name, t in sa.items():
        assert t.dtype == sb[name].dtype, name
        assert torch.equal(t.view(torch.uint8) if t.itemsize == 1 else t, sb[name].view(t.dtype) if t.itemsize > 1 else
                           sb[name].view(torch.uint8)), name  # fmt: skip
    return torch.equal(a(IDS), b(IDS))


def test_the_published_names():
    """The names are the published ones, spelled out so that a renamed block fails."""
    c = models.config(num_layers=1, n_routed_experts=2, zero_expert_num=1, moe_topk=1)
    h, heads = 64, 4
    attention = {
        "q_a_proj": (32, h), "q_a_layernorm": (32,), "q_b_proj": (heads * 24, 32), "kv_a_proj_with_mqa": (32, h),
        "kv_a_layernorm": (24,), "kv_b_proj": (heads * 32, 24), "o_proj": (h, heads * 16),
    }  # fmt: skip
    dense = {"gate_proj": (96, h), "up_proj": (96, h), "down_proj": (h, 96)}
    expert = {"gate_proj": (48, h), "up_proj": (48, h), "down_proj": (h, 48)}
    want = {"model.embed_tokens.weight": (61, h), "lm_head.weight": (61, h), "model.norm.weight": (h,)}
    layer = "model.layers.0"
    for i in (0, 1):
        want |= {f"{layer}.{n}.{i}.weight": (h,) for n in ("input_layernorm", "post_attention_layernorm")}
        want |= {f"{layer}.self_attn.{i}.{n}.weight": s for n, s in attention.items()}
        want |= {f"{layer}.mlps.{i}.{n}.weight": s for n, s in dense.items()}
        want |= {f"{layer}.mlp.experts.{i}.{n}.weight": s for n, s in expert.items()}
    want[f"{layer}.mlp.router.classifier.weight"] = (3, h)
    want[f"{layer}.mlp.router.e_score_correction_bias"] = (3,)
    assert {n: e.shape for n, e in expected_tensors(c, mtp=False).items()} == want
    mtp = "model.mtp.layers.0"
    want |= {"model.mtp.norm.weight": (h,), f"{mtp}.eh_proj.weight": (h, 2 * h)}
    norms = ("enorm.m", "hnorm.m", "input_layernorm", "post_attention_layernorm")
    want |= {f"{mtp}.{n}.weight": (h,) for n in norms}
    want |= {f"{mtp}.self_attn.{n}.weight": s for n, s in attention.items()}
    want |= {f"{mtp}.transformer_layer.mlp.{n}.weight": s for n, s in dense.items()}
    assert {n: e.shape for n, e in expected_tensors(c, mtp=True).items()} == want
    want["model.mtp.embed_tokens.weight"] = (61, h)
    assert {n: e.shape for n, e in expected_tensors(c, mtp=True, mtp_embedding=True).items()} == want
    assert sum(n.startswith("model.mtp") for n in want) == 17


def test_the_released_size():
    from longcat_ops import LongcatFlashConfig

    expected = expected_tensors(LongcatFlashConfig(), mtp=True, mtp_embedding=True)
    target = {n: torch.Size(e.shape).numel() for n, e in expected.items()}
    mtp = {n for n in target if n.startswith("model.mtp")}
    assert (len(target) - len(mtp), len(mtp)) == (43739, 17)
    assert sum(v for n, v in target.items() if n not in mtp) == pytest.approx(560.66e9, rel=1e-5)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_roundtrip(tmp_path, shards, dtype):
    c = models.config()
    tensors = {n: t.to(dtype) for n, t in models.tensors(c).items()}
    loaded = load(checkpoints.write(tmp_path, c, tensors, shards))
    assert loaded.dtype == dtype
    assert same_network(loaded, LongcatFlashForCausalLM.from_state_dict(c, tensors, dtype))


def test_dtype_widens_and_router_stays_fp32(tmp_path):
    c = models.config(num_layers=1)
    tensors = models.tensors(c)
    folder = checkpoints.write(tmp_path, c, tensors)
    narrow = load(folder, dtype=torch.bfloat16)
    assert narrow.embed_tokens.dtype == narrow.layers[0].mlp.gate_up.dtype == torch.bfloat16
    moe = narrow.layers[0].mlp
    assert torch.equal(moe.router, tensors["model.layers.0.mlp.router.classifier.weight"])
    assert torch.equal(moe.bias, tensors["model.layers.0.mlp.router.e_score_correction_bias"])
    wide = load(folder, dtype=torch.float64)
    assert wide.lm_head.dtype == wide.layers[0].mlp.router.dtype == torch.float64


def test_loading_twice_folds_once(tmp_path):
    """The two MLA gains are folded into copies of the norm weights, never into the checkpoint's tensors."""
    c = models.config()
    tensors = models.tensors(c)
    before = {n: t.clone() for n, t in tensors.items()}
    models_ = [LongcatFlashForCausalLM.from_state_dict(c, tensors) for _ in range(2)]
    assert same_network(*models_)
    assert all(torch.equal(t, before[n]) for n, t in tensors.items())
    norm = tensors["model.layers.0.self_attn.0.q_a_layernorm.weight"]
    assert torch.equal(models_[0].layers[0].self_attn[0].q_a_layernorm.weight, norm)  # as published; scaled at use
    folder = checkpoints.write(tmp_path, c, tensors)
    content = (folder / "model.safetensors").read_bytes()
    assert same_network(load(folder), load(folder))
    assert (folder / "model.safetensors").read_bytes() == content


@pytest.mark.parametrize("precision", [None, "bf16"])
def test_the_model_does_not_lean_on_the_file(tmp_path, precision):
    c = models.config(**RAGGED)
    folder = checkpoints.write(tmp_path, c, checkpoints.to_fp8(models.tensors(c)))
    model = load(folder, precision=precision)
    before = model(IDS)
    file = folder / "model.safetensors"
    with open(file, "r+b") as f:
        f.write(bytes(file.stat().st_size))
    model_again = model(IDS)
    assert torch.equal(model_again, before)


def test_fp8_is_decided_tensor_by_tensor(tmp_path):
    c = models.config(**RAGGED)
    tensors = checkpoints.to_fp8(models.tensors(c), lambda n: "experts" in n or "kv_" in n or "o_proj" in n)
    scale = tensors["model.layers.0.self_attn.0.kv_a_proj_with_mqa.weight_scale_inv"]
    assert scale.shape == (5, 2)
    kept = load(checkpoints.write(tmp_path, c, tensors))
    layer = kept.layers[0]
    assert layer.mlp.gate_up.dtype == layer.mlp.down.dtype == torch.float8_e4m3fn
    assert layer.mlp.gate_up_scale.shape == (4, 4, 2)
    assert layer.self_attn[0].kv_a_proj.fp8
    assert layer.self_attn[0].o_proj.fp8
    assert not layer.self_attn[0].q_a_proj.fp8
    assert not layer.mlps[0].gate_proj.fp8
    wide = checkpoints.widened(tensors)
    assert torch.equal(
        layer.self_attn[0].kv_b_proj, wide["model.layers.0.self_attn.0.kv_b_proj.weight"]
    )  # always dense
    for e in range(4):
        name = f"model.layers.0.mlp.experts.{e}"
        rows = layer.mlp.gate_up[e].view(torch.uint8).view(17, 2, 8, -1)  # 8 gate rows, 8 up rows, and so on
        gate_up = [
            checkpoints.dequantise(
                rows[:, half].reshape(136, -1).view(torch.float8_e4m3fn), layer.mlp.gate_up_scale[e, half::2]
            )
            for half in (0, 1)
        ]
        assert torch.equal(gate_up[0], wide[f"{name}.gate_proj.weight"])
        assert torch.equal(gate_up[1], wide[f"{name}.up_proj.weight"])
    error = (kept(IDS) - LongcatFlashForCausalLM.from_state_dict(c, wide)(IDS)).norm() / kept(IDS).norm()
    assert 1e-4 < error < 0.2  # activations are FP8 too


def test_precision_bf16_widens_exactly(tmp_path):
    c = models.config(**RAGGED)
    tensors = checkpoints.to_fp8(models.tensors(c))
    folder = checkpoints.write(tmp_path, c, tensors)
    wide = checkpoints.widened(tensors)
    assert same_network(load(folder, precision="bf16"), LongcatFlashForCausalLM.from_state_dict(c, wide))
    narrow = load(folder, precision="bf16", dtype=torch.bfloat16)
    assert same_network(narrow, LongcatFlashForCausalLM.from_state_dict(c, wide, torch.bfloat16))


def test_precision_fp8_quantises_every_projection(tmp_path):
    c = models.config(**RAGGED)
    tensors = models.tensors(c)
    stored = load(checkpoints.write(tmp_path / "fp8", c, checkpoints.to_fp8(tensors)))
    made = load(checkpoints.write(tmp_path / "dense", c, tensors), precision="fp8")
    for name, t in made.named_buffers():
        want = dict(stored.named_buffers())[name]
        assert t.dtype == want.dtype, name
        if ".kv_b_proj" not in name and ".w_k" not in name:  # keeps its stored form
            a, b = (x.view(torch.uint8) if x.itemsize == 1 else x for x in (t, want))
            assert torch.equal(a, b), name


def test_precision_policy(tmp_path):
    c = models.config(**RAGGED)
    folder = checkpoints.write(tmp_path / "model", c, checkpoints.to_fp8(models.tensors(c)))
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"model.layers.0.self_attn.1.*": "bf16", "*.down_proj": "bf16", "*.o_proj": "fp8"}))
    layer = load(folder, precision=policy).layers[0]
    assert [a.q_a_proj.fp8 for a in layer.self_attn] == [True, False]
    assert [a.o_proj.fp8 for a in layer.self_attn] == [True, False]  # the first match wins
    assert (layer.mlps[0].down_proj.fp8, layer.mlps[0].gate_proj.fp8) == (False, True)
    assert layer.mlp.down_scale is None
    assert layer.mlp.gate_up_scale is not None
    assert load(folder, precision=str(policy))(IDS).isfinite().all()


@pytest.mark.parametrize("nextn", [None, 0, 1])
@pytest.mark.parametrize("own", [False, True])
def test_mtp(tmp_path, nextn, own):
    c = models.config(num_layers=1, num_nextn_predict_layers=nextn)
    tensors = models.tensors(models.config(num_layers=1), mtp=True, mtp_embedding=own)
    model = load(checkpoints.write(tmp_path, c, tensors))
    if nextn == 0:
        assert model.mtp is None
        return
    if own:
        assert torch.equal(model.mtp.embedding, tensors["model.mtp.embed_tokens.weight"])
    else:
        assert model.mtp.embedding is None  # the target's is used


def test_without_mtp(tmp_path):
    c = models.config(num_layers=1)
    assert load(checkpoints.write(tmp_path, c, models.tensors(c, mtp=False))).mtp is None


def record(monkeypatch):
    """(names fetched, totals and updates of the progress bar)."""
    fetched, bars = [], []
    fetch = CheckpointSource.fetch
    monkeypatch.setattr(CheckpointSource, "fetch", lambda s, n, shape: (fetched.append(n), fetch(s, n, shape))[1])

    class Bar(checkpoint._NoBar):
        def __init__(self, total):
            self.total, self.read, self.closed = total, 0, False
            bars.append(self)

        def update(self, count):
            self.read += count

        def close(self):
            self.closed = True

    monkeypatch.setattr(checkpoint, "_progress_bar", lambda total, progress: Bar(total))
    return fetched, bars


@pytest.mark.parametrize("nextn", [None, 0])
def test_every_needed_byte_once_and_no_other(tmp_path, monkeypatch, nextn):
    c = models.config(num_nextn_predict_layers=nextn, num_layers=1, zero_expert_num=3)
    tensors = checkpoints.to_fp8(models.tensors(models.config(num_layers=1), mtp=True), lambda n: "down" in n)
    for e in range(6, 9):  # transformers writes gate and up rows for zero experts
        for part in ("gate_proj", "up_proj"):
            tensors[f"model.layers.0.mlp.experts.{e}.{part}.weight"] = torch.full((48, 64), torch.nan)
    fetched, bars = record(monkeypatch)
    model = load(checkpoints.write(tmp_path, c, tensors, shards=2))
    wanted = {n for n in tensors if not any(f"experts.{e}." in n for e in (6, 7, 8))}
    wanted = {n for n in wanted if nextn is None or not n.startswith("model.mtp")}
    assert sorted(fetched) == sorted(wanted)
    count = sum(tensors[n].numel() * tensors[n].itemsize for n in wanted)
    assert [(b.total, b.read, b.closed) for b in bars] == [(count, count, True)]
    assert model(IDS).isfinite().all()


def test_one_rank_reads_its_own_experts(tmp_path, monkeypatch):
    c = models.config(**RAGGED)
    tensors = checkpoints.to_fp8(models.tensors(c))
    folder = checkpoints.write(tmp_path, c, tensors)
    fetched, bars = record(monkeypatch)
    with released(CheckpointSource(folder, c, experts=range(1, 3))) as source:
        part = LongcatFlashForCausalLM(source, c)
    of_experts = {int(n.split(".experts.")[1].split(".")[0]) for n in fetched if ".experts." in n}
    assert of_experts == {1, 2}
    assert sum(".experts." in n for n in fetched) == 2 * 3 * 2
    assert bars[0].read == bars[0].total == sum(tensors[n].numel() * tensors[n].itemsize for n in fetched)
    whole = load(folder)
    a, b = part.layers[0].mlp, whole.layers[0].mlp
    assert torch.equal(a.gate_up.view(torch.uint8), b.gate_up[1:3].view(torch.uint8))
    assert torch.equal(a.down_scale, b.down_scale[1:3])


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
def test_every_way_to_a_model_takes_a_precision_by_name(precision):
    config = models.config(num_layers=1)
    tensors = models.tensors(config)
    for model in (
        LongcatFlashForCausalLM.from_state_dict(config, tensors, precision=precision),
        LongcatFlashForCausalLM.random(config, precision=precision),
    ):
        assert model.layers[0].mlps[0].gate_proj.fp8 == (precision == "fp8")


def test_weights_stored_in_float64_are_quantised_as_their_float32():
    config = models.config(num_layers=1)
    tensors = models.tensors(config)
    wide = {name: t.double() for name, t in tensors.items()}
    a, b = (LongcatFlashForCausalLM.from_state_dict(config, t, precision="fp8") for t in (tensors, wide))
    assert torch.equal(a(IDS), b(IDS))

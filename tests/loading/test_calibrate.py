"""`calibrate` measures inputs as an fp64 network has them and errors as plain loops do; what both flag stays bf16."""

from __future__ import annotations

import json
import weakref
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from longcat_ops import LongcatFlashConfig, LongcatFlashForCausalLM, LongcatShapeError
from longcat_ops.loading import calibration_report
from longcat_ops.loading import quantize as quantizing
from longcat_ops.loading.block_errors import block_errors
from longcat_ops.loading.calibrate import calibrate
from longcat_ops.loading.calibration import Thresholds
from longcat_ops.loading.checkpoint import CheckpointSource
from longcat_ops.loading.layerwise import Layerwise
from longcat_ops.loading.quantize import quantize
from longcat_ops.model.source import released
from support import checkpoints, models, net_oracle

F32 = torch.float32
SIZES = dict(hidden_size=128, ffn_hidden_size=256, expert_ffn_hidden_size=136, q_lora_rank=64, kv_lora_rank=64,
             n_routed_experts=4, zero_expert_num=2, moe_topk=3)  # fmt: skip


def windows(*lengths, vocab=61, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocab, (n,), generator=g) for n in lengths]


def written(folder, weights, dtype=F32, **changes):
    config = models.config(**SIZES | changes)
    tensors = {n: t if "router" in n else t.to(dtype) for n, t in weights.items()}
    return checkpoints.write(folder, config, tensors)


def units_of(found):
    return {(unit.layer, unit.kind): unit for unit in found.units}


def by_loops(weight):
    """(relative, absolute) error of each block, an element at a time in float64, of codes that plain loops made."""
    back = checkpoints.dequantise(*checkpoints.quantise(weight.float())).double()
    wide, rows, cols = weight.double(), *weight.shape
    relative, absolute = (np.zeros((-(-rows // 128), -(-cols // 128))) for _ in range(2))
    for i, j in np.ndindex(relative.shape):
        block = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
        pairs = list(zip(wide[block].flatten().tolist(), back[block].flatten().tolist(), strict=True))
        ratios = [abs(w - b) / abs(w) for w, b in pairs if w]
        relative[i, j] = sum(ratios) / len(ratios) if ratios else 0
        absolute[i, j] = (sum((w - b) ** 2 for w, b in pairs) / len(pairs)) ** 0.5
    return relative, absolute


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16, torch.float64], ids=str)
def test_errors_of_blocks(dtype):
    """Ragged blocks, one of zeros but for a value, one whose largest value pushes the rest below the normal range."""
    weight = torch.randn(300, 264, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight[128:256, :128] = 0
    weight[130, 5] = 3
    weight[0, 200] = 1e6
    for got, want in zip(block_errors(weight), by_loops(weight), strict=True):
        assert got.shape == (3, 3) and np.allclose(got.numpy(), want, rtol=1e-4, atol=1e-9)
    relative, absolute = block_errors(weight)
    healthy = torch.ones(3, 3, dtype=torch.bool)
    healthy[0, 1] = healthy[1, 0] = False
    # Of a mantissa m in [1, 2), rounding to eighths costs 1/32 / m on the average: 0.0225 if log m is even. One block
    # has 352 values only.
    assert ((relative[healthy] - 0.0225).abs() < 0.004).all() and relative[0, 1] > 0.99 and relative[1, 0] <= 2**-4
    assert absolute[0, 1] > 0.9  # of the others, of rms 1, only those above 2.18 are left


def test_errors_of_the_strips_of_a_long_weight(monkeypatch):
    weight = torch.randn(700, 64, generator=torch.Generator().manual_seed(2))
    whole = block_errors(weight)
    monkeypatch.setattr("longcat_ops.loading.block_errors._ELEMENTS", 128 * 64)
    assert all(torch.equal(a, b) for a, b in zip(whole, block_errors(weight), strict=True))


class Watching(net_oracle.Network):
    """Keeps the largest input of each projection."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.largest = {}

    def linear(self, x, name):
        self.largest[name] = max(self.largest.get(name, 0.0), float(np.abs(x).max()))
        return super().linear(x, name)


def test_inputs_are_those_of_the_network_in_fp64(tmp_path):
    c = net_oracle.BASE
    weights = net_oracle.tensors(c)
    folder, texts = net_oracle.write(tmp_path, c, weights), windows(70, 33, 2, vocab=97)
    net = Watching(c, weights, c["moe_topk"], c["rope_theta"])
    for ids in texts:
        x = net.w["model.embed_tokens.weight"][ids.numpy()]
        for i in range(c["num_layers"]):
            x = net.layer(x, f"model.layers.{i}")
    found = calibrate(folder, texts)
    assert found.tokens == 105 and len(found.units) == 2 * (4 + 4 + 3 + 3 + 2)
    for unit in found.units:
        if unit.kind.startswith("experts."):
            part = "gate_proj" if unit.kind == "experts.gate_up" else "down_proj"
            want = max(v for n, v in net.largest.items() if f"layers.{unit.layer}.mlp.experts" in n and part in n)
            never = [e for e in range(16) if f"model.layers.{unit.layer}.mlp.experts.{e}.gate_proj" not in net.largest]
            assert unit.unused == len(never)
        else:
            (name,) = unit.patterns
            gain = (64 / 32) ** 0.5 if "q_b_proj" in name else 1  # the network scales the latent, the oracle queries
            want = gain * net.largest[name]
        assert unit.max_input == pytest.approx(want, rel=1e-5), unit


def test_errors_are_those_of_the_worst_block(tmp_path):
    weights = models.tensors(models.config(**SIZES))
    weights["model.layers.1.mlps.0.gate_proj.weight"][200, 3] = 500  # block at 128, 0
    weights["model.layers.0.mlp.experts.2.up_proj.weight"][130, 3] = 900
    found = units_of(calibrate(written(tmp_path, weights), windows(40), Thresholds(absolute=0.0)))
    for (layer, kind), unit in found.items():
        names = [unit.worst] if kind.startswith("experts") else list(unit.patterns)
        relative, absolute = by_loops(weights[f"{names[0]}.weight"])
        i, j = np.unravel_index(relative.argmax(), relative.shape)
        assert unit.block == (128 * i, 128 * j) and unit.relative == pytest.approx(relative[i, j], rel=1e-4), (
            layer,
            kind,
        )
        assert unit.absolute == pytest.approx(absolute[i, j], rel=1e-4)
    assert found["1", "mlps.0.gate_proj"].block == (128, 0)
    assert found["0", "experts.gate_up"].worst == "model.layers.0.mlp.experts.2.up_proj"
    assert found["0", "experts.gate_up"].block == (128, 0)


def planted():
    """Weights in which `up` is large where inputs of down shall be, and one value of a block is where errors shall be:
    it pushes the others below what e4m3 can hold.
    """
    weights = models.tensors(models.config(**SIZES))

    def inputs(name):
        weights[f"model.layers.{name}.up_proj.weight"] *= 1e6

    def error(name):
        weights[f"model.layers.{name}.weight"][5, 7] = 1e5

    inputs("0.mlps.1")  # A alone
    error("0.self_attn.0.o_proj")  # B alone
    inputs("1.mlps.0")  # both
    error("1.mlps.0.down_proj")
    inputs("0.mlp.experts.0")  # A in one expert, B in another
    error("0.mlp.experts.1.down_proj")
    inputs("1.mlp.experts.2")  # both in one
    error("1.mlp.experts.2.down_proj")
    error("1.mlp.experts.3.gate_proj")
    return weights


PLANTED_INPUTS = {("0", "mlps.1.down_proj"), ("1", "mlps.0.down_proj"), ("0", "experts.down"), ("1", "experts.down")}
PLANTED_ERRORS = {("0", "self_attn.0.o_proj"), ("1", "mlps.0.down_proj"), ("0", "experts.down"), ("1", "experts.down"),
                  ("1", "experts.gate_up")}  # fmt: skip
STAYS = {"model.layers.1.mlps.0.down_proj": "bf16", "model.layers.1.mlp.experts.*.down_proj": "bf16", "*": "fp8"}


def test_only_what_both_schemes_flag_stays_bf16(tmp_path):
    source, text = written(tmp_path / "bf16", planted(), torch.bfloat16), windows(80, 40)
    found = calibrate(source, text)
    units = units_of(found)
    assert {key for key, unit in units.items() if unit.by_input} == PLANTED_INPUTS
    assert {key for key, unit in units.items() if unit.by_error} == PLANTED_ERRORS
    assert found.policy == STAYS
    assert units["1", "experts.down"].experts == [2] and not units["0", "experts.down"].experts
    assert units["0", "mlps.1.down_proj"].reason == "FP8: only inputs are large"
    assert units["0", "self_attn.0.o_proj"].reason == "FP8: only errors are"
    assert units["0", "experts.down"].reason == "FP8: no expert has both large inputs and large errors"
    assert units["1", "experts.down"].reason == "bf16: large inputs and large errors, in experts 2"

    made = quantize(source, tmp_path / "fp8", policy="auto", text=text)
    stored = load_file(next((tmp_path / "fp8").glob("*.safetensors")))
    dense = {n for n, t in stored.items() if "_proj" in n and "kv_b" not in n and "scale" not in n and t.itemsize == 2}
    down = {f"model.layers.1.mlp.experts.{e}.down_proj.weight" for e in range(4)}
    assert dense == {"model.layers.1.mlps.0.down_proj.weight"} | down and made.dense == 5 + 5
    model = LongcatFlashForCausalLM.from_pretrained(tmp_path / "fp8", progress=False)
    scales = [(layer.mlp.gate_up_scale is not None, layer.mlp.down_scale is not None) for layer in model.layers]
    assert scales == [(True, True), (True, False)]  # the second layer runs on the mixed chain
    assert model(text[0][None])[0].isfinite().all()
    policy = tmp_path / "fp8" / calibration_report.POLICY
    same = LongcatFlashForCausalLM.from_pretrained(source, precision=policy, progress=False)
    assert torch.equal(model(text[0][None]), same(text[0][None]))


def test_thresholds_are_arguments(tmp_path):
    source, text = written(tmp_path / "bf16", planted(), torch.bfloat16), windows(40)
    for limits, stays in (
        (Thresholds(max_input=1e12), 0), (Thresholds(relative=1.0), 0), (Thresholds(absolute=1e12), 0),
        (Thresholds(max_input=0.0), len(PLANTED_ERRORS)), (Thresholds(0.0, 0.0, 0.0), 2 * 16 + 8),
    ):  # fmt: skip
        found = calibrate(source, text, limits)
        assert sum(unit.stays_dense for unit in found.units) == stays, limits
    config = LongcatFlashConfig.from_pretrained(source)
    assert Thresholds().filled(config) == Thresholds(28672.0, 2**-5, 2**-4 / 128**0.5)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(LongcatShapeError, match=r"calibrate: argument `relative` is .*, expected a finite number"):
            calibrate(source, text, Thresholds(relative=bad))


def test_the_network_layer_by_layer_has_the_bits_of_the_model(tmp_path):
    """With whole layers; windows of more than one chunk of a prompt, too."""
    source = written(tmp_path, models.tensors(models.config(**SIZES)), torch.bfloat16)
    text, config = windows(600, 3), LongcatFlashConfig.from_pretrained(source)
    model = LongcatFlashForCausalLM.from_pretrained(source, progress=False)
    with torch.inference_mode(), released(CheckpointSource(source, config, progress=False)) as opened:
        layerwise = Layerwise(opened, config, text)
        for i in range(config.num_layers):
            layerwise.run(layerwise.layer(i))
        normed = layerwise.norm()
        drafts = layerwise.draft(layerwise.mtp(), normed)
        cache = model.new_cache(2, 600)
        steps = [model.prefill(cache, i, ids) for i, ids in enumerate(text)]
        assert torch.equal(normed, torch.cat([step.hidden for step in steps]))
        mine = [
            model.draft_prefill(cache, i, t[1:], s.hidden[:-1])
            for i, (t, s) in enumerate(zip(text, steps, strict=True))
        ]
        assert torch.equal(drafts, torch.cat(mine))


def test_one_layer_and_one_expert_in_memory(tmp_path, monkeypatch):
    """No more weights are alive than those of a layer without experts, and of one expert."""
    config = models.config(**SIZES | dict(num_layers=5, n_routed_experts=24, moe_topk=3))
    source = written(tmp_path, models.tensors(config), num_layers=5, n_routed_experts=24)
    most, alive = 0, {}
    real = CheckpointSource.linear

    def linear(self, name, *arguments, **options):
        nonlocal most
        made = real(self, name, *arguments, **options)
        alive[name] = weakref.ref(made)
        most = max(most, sum(ref() is not None for ref in alive.values()))
        return made

    monkeypatch.setattr(CheckpointSource, "linear", linear)
    calibrate(source, windows(60))
    assert len(alive) == 5 * (10 + 6 + 3 * 24) + 5 + 4
    assert most <= 10 + 6 + 2 * 3  # the next expert is read while the last one is held


def test_the_report(tmp_path):
    source, text = written(tmp_path / "bf16", planted(), torch.bfloat16), windows(80, 40)
    quantize(source, tmp_path / "fp8", policy="auto", text=text)
    folder = tmp_path / "fp8"
    policy = json.loads((folder / "precision_policy.json").read_text())
    facts = json.loads((folder / "calibration.json").read_text())
    assert policy == facts["policy"] == STAYS
    assert facts["tokens"] == 120 and facts["thresholds"]["max_input"] == 28672
    assert len(facts["units"]) == 2 * 16 + 8
    rows = [line for line in (folder / "calibration.md").read_text().splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 40 and sum("| bf16: " in row for row in rows) == 2
    for row, unit in zip(rows, facts["units"], strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[:2] == [unit["layer"], unit["kind"]] and cells[-1] == unit["reason"]
        assert float(cells[2]) == pytest.approx(unit["max_input"], rel=1e-3)
        assert (cells[3] == "yes", cells[7] == "yes") == (unit["by_input"], unit["by_error"])
    # Two maps of all units; a frame around what stays bf16; the darkest cells are at or above the threshold.
    picture = ElementTree.parse(folder / "calibration.svg").getroot()
    cells = [rect for rect in picture.findall(".//{*}rect") if rect.find("{*}title") is not None]
    assert len(cells) == 2 * 40 and sum("stroke" in cell.attrib for cell in cells) == 2 * 2
    dark = [c for c in cells[:40] if c.get("fill") == "#b31529"]
    assert len(dark) == len(PLANTED_INPUTS)
    assert len({(c.get("x"), c.get("y")) for c in cells[:40]}) == 40
    heads = [t.text for t in picture.findall(".//{*}text")]
    assert {"0", "1", "MTP", "experts.gate_up", "mlps.1.down_proj", "eh_proj"} <= set(heads)


def test_a_calibration_is_not_made_twice(tmp_path, monkeypatch):
    """A run that goes on takes the policy of the one that was interrupted; other thresholds or another text are
    refused before anything is written.
    """
    source, text = written(tmp_path / "bf16", planted(), torch.bfloat16), windows(80, 40)

    def stop(what, done, total):
        if what == "quantizing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(source, tmp_path / "fp8", policy="auto", text=text, progress=stop)
    before = {p.name: p.read_bytes() for p in (tmp_path / "fp8").iterdir()}
    for options in ({"text": windows(80, 41)}, {"text": text, "thresholds": Thresholds(max_input=5.0)}):
        with pytest.raises(LongcatShapeError, match=r"`calibration` is .* the one that .* was begun with"):
            quantize(source, tmp_path / "fp8", policy="auto", **options)
    with pytest.raises(LongcatShapeError, match="argument `policy` is"):
        quantize(source, tmp_path / "fp8")
    assert {p.name: p.read_bytes() for p in (tmp_path / "fp8").iterdir()} == before
    monkeypatch.setattr(quantizing, "calibrate", None)
    quantize(source, tmp_path / "fp8", policy="auto", text=text)
    monkeypatch.undo()
    quantize(source, tmp_path / "other", policy="auto", text=text)
    assert all((tmp_path / "other" / p.name).read_bytes() == p.read_bytes() for p in (tmp_path / "fp8").iterdir())


def test_bad_texts(tmp_path):
    source = written(tmp_path / "bf16", models.tensors(models.config(**SIZES)))
    for text, pattern in (
        ([], "a text with policy 'auto'"),
        ([torch.tensor([1])], "of 2 .. 4096 ids"),
        ([torch.tensor([1, 61])], r"ids in 1 .. 61, expected 0 .. 60"),
        ([torch.tensor([1, -1])], r"ids in -1 .. 1, expected"),
        ([torch.tensor([1.0, 2.0])], "a window of torch.float32"),
        (windows(4097), "of 2 .. 4096 ids"),
    ):
        with pytest.raises(LongcatShapeError, match=pattern):
            quantize(source, tmp_path / "fp8", policy="auto", text=text)
    with pytest.raises(LongcatShapeError, match="1 texts with policy 'all', expected a text with policy 'auto'"):
        quantize(source, tmp_path / "fp8", text=windows(9))
    assert not (tmp_path / "fp8").exists()

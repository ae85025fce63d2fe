"""Published checkpoints through transformers: its logits with our MoE equal those of its own modules, filled by hand,
and those of this library's network.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, LongcatFlashForCausalLM

import longcat_ops
from longcat_ops.integrations.transformers import enabled, fit
from support import hf_checkpoint
from support.hf_published import BF16, EXPERTS_IN_FP8, F32, SHAPES, count_greedy, row_errors, write

FIT = fit()
pytestmark = [
    pytest.mark.skipif(not FIT.fits, reason=f"transformers {FIT.version}: {FIT.reason}"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of transformers, and of products that are not row-invariant
]
ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "checkpoints" / "longcat-tiny"
F8 = torch.float8_e4m3fn


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def load(folder, **options):
    with enabled():
        return AutoModelForCausalLM.from_pretrained(folder, experts_implementation="longcat_ops", **options)


def ours(folder, dtype, policy=None):
    if policy is not None:
        (folder / "policy.json").write_text(json.dumps(policy))
    precision = None if policy is None else folder / "policy.json"
    return longcat_ops.LongcatFlashForCausalLM.from_pretrained(folder, dtype=dtype, precision=precision, progress=False)


def prompts(vocab, *shape):
    return torch.randint(3, vocab, shape, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def logits(model, ids, **options):
    return model(ids, use_cache=False, **options).logits.float()


def expert_bytes(model):
    return sum(p.nbytes for name, p in model.named_parameters() if ".mlp.experts." in name)


def test_stock_transformers_cannot_load_it(tmp_path):
    """It fails for four reasons, each shown with the previous ones repaired, and for a fifth in FP8."""

    def published(name, **options):
        return write(tmp_path / name, "blocks", placeholders=False, **options)

    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForCausalLM.from_pretrained(published("a"), trust_remote_code=False)
    with pytest.raises(ValueError, match="Should have a `model_type` key"):
        AutoModelForCausalLM.from_pretrained(published("b", auto_map=None))
    with pytest.raises(Exception, match=r"'routed_scaling_factor' expected float, got int \(value: 6\)"):
        AutoModelForCausalLM.from_pretrained(published("c", model_type="longcat_flash"))
    repaired = dict(model_type="longcat_flash", routed_scaling_factor=6.0)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):  # its gate_up_proj has rows for zero experts
        AutoModelForCausalLM.from_pretrained(published("d", **repaired))
    # FP8 needs accelerate, then a GPU; without a GPU transformers widens all weights and fails as above.
    with pytest.raises((ImportError, RuntimeError), match=r"accelerate|ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(published("e", fp8=True, **repaired))
    for name in "abcde":
        assert load(tmp_path / name).config.zero_expert_num == 3


@pytest.mark.parametrize("name", SHAPES)
def test_fp32_logits(name, tmp_path):
    folder = write(tmp_path, name)
    model, info = load(folder, output_loading_info=True)
    assert not any(info.values())  # nothing missing, unexpected or mismatched: MTP head and zero experts are known
    assert type(model) is LongcatFlashForCausalLM and not model.training
    assert model.config.routed_scaling_factor == 6.0 and model.config.head_dim == model.config.qk_rope_head_dim
    ids = prompts(model.config.vocab_size, 3, 33)
    got, stock, network = logits(model, ids), logits(hf_checkpoint.from_checkpoint(folder), ids), ours(folder, F32)(ids)
    assert stock.std() > 0.3  # an absolute limit means nothing on flat logits
    assert (got - stock).abs().max() <= 2e-5
    assert (got - network).abs().max() <= 2e-5


def test_a_part_of_the_model_and_other_outputs(tmp_path):
    folder = write(tmp_path)
    stock, ids = hf_checkpoint.from_checkpoint(folder), prompts(61, 2, 9)
    with enabled():
        whole = LongcatFlashForCausalLM.from_pretrained(folder, experts_implementation="longcat_ops")
    for model in (whole, stock):
        model.out = model(ids, output_router_logits=True, output_hidden_states=True)
    assert len(whole.out.router_logits) == 2 and whole.out.router_logits[1].shape == (18, 16)
    for key in ("router_logits", "hidden_states"):
        for got, want in zip(whole.out[key], stock.out[key], strict=True):
            assert (got - want).abs().max() <= 2e-4, key  # router logits reach 20


@pytest.mark.parametrize(("dtype", "wide"), [(torch.float16, F32), (torch.float64, torch.float64)], ids=str)
def test_other_dtypes_and_the_base_model(dtype, wide, tmp_path):
    folder = write(tmp_path, "blocks", fp8=dtype == torch.float16, torch_dtype=None)
    model, ids = load(folder, dtype=dtype), prompts(53, 2, 9)
    assert model.dtype == dtype and model.model.layers[0].mlp.router.classifier.weight.dtype == wide
    with enabled():
        base = AutoModel.from_pretrained(folder, experts_implementation="longcat_ops", dtype=dtype)
    out = model(ids, output_hidden_states=True)
    assert torch.equal(base(ids).last_hidden_state, out.hidden_states[-1]) and out.logits.dtype == dtype
    errors = row_errors(out.logits, logits(hf_checkpoint.from_checkpoint(folder), ids))
    assert errors.median() <= (2**-4 if dtype == torch.float16 else 1e-5)


def test_bf16_keeps_the_router_as_stored(tmp_path):
    folder = write(tmp_path, "odd", BF16)
    model, stock = load(folder), hf_checkpoint.from_checkpoint(folder, BF16)
    assert model.dtype == BF16 and {p.dtype for p in model.model.layers[1].mlp.experts.parameters()} == {BF16}
    for file in folder.glob("*.safetensors"):
        for name, stored in load_file(file).items():
            if "router" in name:
                assert stored.dtype == F32 and torch.equal(model.state_dict()[name], stored), name
    ids = prompts(61, 2, 64)
    truth = logits(hf_checkpoint.from_checkpoint(folder), ids)
    got, theirs = row_errors(logits(model, ids), truth).median(), row_errors(logits(stock, ids), truth).median()
    # Each of about 25 roundings on the way is at most 2^-9 of a value.
    assert got <= 25 * 2**-9 and got <= 2 * theirs


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_fp8_experts_stay_fp8(dtype, tmp_path):
    folder = write(tmp_path, "blocks", dtype, fp8=True)
    model = load(folder)
    stored = load_file(folder / "model.safetensors")
    for i, layer in enumerate(model.model.layers):
        at, experts = f"model.layers.{i}.mlp.experts", layer.mlp.experts
        assert layer.mlp.router.classifier.weight.dtype == F32 and layer.mlps[1].down_proj.weight.dtype == dtype
        for suffix, want in (("", F8), ("_scale_inv", F32)):
            down = torch.stack([stored[f"{at}.{e}.down_proj.weight{suffix}"] for e in range(5)])
            held = getattr(experts, f"down_proj{suffix}")
            assert held.dtype == want and torch.equal(held.view(torch.uint8), down.view(torch.uint8))
        # Row 16 j of gate_up is gate row 8 j, row 16 j + 8 is up row 8 j.
        for part, first in (("gate", 0), ("up", 8)):
            codes = stored[f"{at}.4.{part}_proj.weight"].view(torch.uint8)
            assert torch.equal(experts.gate_up_proj[4].view(torch.uint8)[first::16], codes[::8])
    stock, network = hf_checkpoint.from_checkpoint(folder), ours(folder, dtype, EXPERTS_IN_FP8)
    ids = prompts(53, 2, 40)
    got, truth, same = logits(model, ids), logits(stock, ids), network(ids).float()
    # This library, with the same weights in FP8, differs by fp32 rounding; where that changes an activation's code,
    # the row changes. transformers quantises no activation: the difference is two roundings to 2^-4 an expert.
    near = row_errors(got, same)
    assert near.median() <= (1e-5 if dtype == F32 else 25 * 2**-9 + 2**-4)
    assert row_errors(got, truth).median() <= 2**-4 + (0 if dtype == F32 else 25 * 2**-9)
    assert row_errors(got, truth).median() >= 1e-3 or dtype == BF16  # the experts did run in FP8


def test_memory_of_the_experts(tmp_path):
    """The experts take the memory that docs/integrations.md states."""
    tiny, wide = load(TINY), hf_checkpoint.from_checkpoint(TINY, BF16)
    scales = sum(p.nbytes for n, p in tiny.named_parameters() if n.endswith("_scale_inv"))
    assert expert_bytes(tiny) == 2 * 32 * 3 * 256 * 128 + scales and scales == 2 * 32 * 3 * 2 * 4
    assert expert_bytes(wide) == 2 * (48 * 2 + 32) * 256 * 128 * 2
    page = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
    row = next(line.split("|") for line in page.splitlines() if line.startswith("| longcat-tiny"))
    for cell, model in zip(row[2:4], (wide, tiny), strict=True):
        assert f"{expert_bytes(model) / 1e6:.1f} MB" in cell
    assert row[4].strip() == f"{expert_bytes(tiny) / expert_bytes(wide):.2f}"


def test_greedy_decoding_of_a_padded_batch(tmp_path):
    """With left padding, a cache and several sequences, every token is each network's best, except near ties."""
    folder = write(tmp_path)
    model, stock, network = load(folder), hf_checkpoint.from_checkpoint(folder), ours(folder, F32)
    lengths, width, new = (5, 9, 2), 9, 12
    ids = prompts(61, 3, width)
    mask = torch.stack([torch.arange(width) >= width - n for n in lengths]).long()
    out = model.generate(ids * mask, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)
    assert out.shape == (3, width + new) and torch.equal(out[:, :width], ids * mask)
    other = stock.generate(ids * mask, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)
    differing = 0
    for row, theirs, n in zip(out, other, lengths, strict=True):
        alone, chosen = row[width - n :][None], row[width:]
        for truth in (logits(stock, alone), network(alone)):
            wrong, beyond_ties = count_greedy(chosen, truth[0, n - 1 : -1])
            assert beyond_ties == 0
            differing += wrong
        assert wrong or torch.equal(row, theirs)
    assert differing <= 2  # near ties, of 72 choices


def test_sampled_decoding(tmp_path):
    folder = write(tmp_path)
    model, stock, ids = load(folder), hf_checkpoint.from_checkpoint(folder), prompts(61, 2, 6)

    def draw(seed):
        torch.manual_seed(seed)
        return model.generate(ids, max_new_tokens=20, do_sample=True, top_k=3, temperature=2.0, pad_token_id=0)

    first, again, another = draw(1), draw(1), draw(2)
    assert torch.equal(first, again) and not torch.equal(first, another)
    for row in (*first, *another):
        before = logits(stock, row[None, :-1])[0, 5:]
        third = before.topk(3).values[:, 2]
        assert (before.gather(1, row[6:, None])[:, 0] >= third - 1e-4).all()  # one of the best three


def test_the_trained_checkpoint(tmp_path):
    """On Bible text in FP8, this library's network with FP8 experts gives the same text and the same logits."""
    model = load(TINY, dtype=F32)
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).symlink_to(TINY / file)
    network, stock = ours(tmp_path, F32, EXPERTS_IN_FP8), hf_checkpoint.from_checkpoint(TINY)
    ids = torch.tensor([[1, 35, 263, 391, 394]])
    out = model.generate(ids, max_new_tokens=60, do_sample=False)
    wrong, beyond_ties = count_greedy(out[0, 5:], network(out)[0, 4:-1])
    assert beyond_ties == 0 and wrong <= 1
    got, same, wide = logits(model, out), network(out), logits(stock, out)
    assert row_errors(got, same).median() <= 1e-5
    assert row_errors(got, wide).median() <= 2**-4

    def nats(rows):
        return torch.nn.functional.cross_entropy(rows[0, :-1], out[0, 1:]).item()

    assert abs(nats(got) - nats(same)) <= 1e-3 and abs(nats(got) - nats(wide)) <= 0.05


def test_saving_writes_the_published_layout(tmp_path):
    folder = write(tmp_path / "a")
    model = load(folder)
    model.save_pretrained(tmp_path / "b")
    with safe_open(tmp_path / "b" / "model.safetensors", framework="pt") as handle:
        saved = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - no mapping
    stored = {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}
    kept = {n: t for n, t in stored.items() if "mtp" not in n and not (t == 1e3).all()}
    assert saved.keys() == kept.keys() and all(torch.equal(saved[n], t) for n, t in kept.items())
    ids = prompts(61, 1, 9)
    assert torch.equal(logits(load(tmp_path / "b"), ids), logits(model, ids))
    with pytest.raises(longcat_ops.LongcatUnsupportedError, match=r"save_pretrained: .* is FP8 experts"):
        load(TINY).save_pretrained(tmp_path / "c")


def test_the_lines_of_the_page_run(monkeypatch, capsys):
    section = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8").split("## transformers\n")[1]
    snippets = re.findall(r"^```python\n(.*?)^```", section.split("\n## ")[0], flags=re.M | re.S)
    assert len(snippets) == 2 and len(snippets[0].splitlines()) <= 12
    monkeypatch.chdir(ROOT)
    for snippet in snippets:
        exec(snippet, {})
    text = capsys.readouterr().out
    assert text.startswith("And God said")
    for printed, cell in re.findall(r"(?:eager|longcat_ops) ([\d.]+) (GiB) in bf16", text):
        assert f"{float(printed):.1f} {cell}" in next(x for x in section.splitlines() if "one layer, bf16" in x)

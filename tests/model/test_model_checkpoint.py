"""The trained small checkpoint on held-out text: speculative and plain ids are equal, and transformers agrees."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longcat_ops import LongcatFlashForCausalLM, generate

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "checkpoints" / "longcat-tiny"
TEXT = FOLDER / "heldout.txt"
NEW, BATCH = 24, 24  # a batch decodes in groups of 8 rows: 24 fill whole groups
KINDS = {
    "fp32": dict(dtype=torch.float32, precision="bf16"),
    "bf16": dict(dtype=torch.bfloat16, precision="bf16"),
    "fp8": dict(precision=None),
}


@pytest.fixture(scope="module")
def prompts():
    """200 pieces of held-out text, 4 to 43 tokens, spread over the whole file; lengths mixed within every batch."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    ids = tokenizer.encode(TEXT.read_text(encoding="utf-8"), add_special_tokens=False).ids
    step = (len(ids) - 64) // 200
    return [torch.tensor(ids[i * step :][: 4 + 7 * i % 40]) for i in range(200)]


@pytest.mark.parametrize("count", [2 * BATCH, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_speculative_ids_are_plain_ids(prompts, kind, count):
    model = LongcatFlashForCausalLM.from_pretrained(FOLDER, progress=False, **KINDS[kind])
    assert model.layers[0].mlp.gate_up.dtype == (torch.float8_e4m3fn if kind == "fp8" else model.dtype)
    accepted = drafted = 0
    chosen = prompts[:: len(prompts) // count]
    for start in range(0, count, BATCH):
        batch = chosen[start : min(start + BATCH, count)]
        plain = generate(model, batch, NEW, speculative=False, eos_token_id=-1)
        fast = generate(model, batch, NEW, eos_token_id=-1)
        for got, want in zip(fast.sequences, plain.sequences, strict=True):
            assert torch.equal(got, want)
        assert all(torch.equal(a, b) for a, b in zip(fast.num_real, plain.num_real, strict=True))
        accepted, drafted = accepted + sum(fast.accepted), drafted + sum(fast.drafted)
    assert accepted > 0.3 * drafted  # a head that drafts nothing right would prove little


def test_transformers_writes_the_same(prompts):
    """Greedy in fp32 from the same dequantised weights, transformers picks the same tokens, except near ties."""
    from support.hf_checkpoint import from_checkpoint

    reference = from_checkpoint(FOLDER)
    model = LongcatFlashForCausalLM.from_pretrained(FOLDER, progress=False, **KINDS["fp32"])
    for prompt in prompts[5:200:25]:
        ours = generate(model, [prompt], NEW, eos_token_id=-1).sequences[0]
        with torch.inference_mode():
            logits = reference(ours[None], use_cache=False).logits[0]
        new = logits[len(prompt) - 1 : -1].sort(dim=-1, descending=True, stable=True)
        clear = new.values[:, 0] - new.values[:, 1] > 1e-4
        assert clear.float().mean() > 0.9
        assert torch.equal(new.indices[clear, 0], ours[len(prompt) :][clear])
        assert (model(ours[None])[0] - logits).abs().max() <= 2e-4

"""The trained small checkpoint on held-out text: speculative and plain ids are equal, and transformers agrees."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from longcat_ops import LongcatFlashForCausalLM, _environment, generate
from support import covering

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "checkpoints" / "longcat-tiny"
TEXT = FOLDER / "heldout.txt"
NEW = 24
KINDS = {
    "fp32": dict(dtype=torch.float32, precision="bf16"),
    "bf16": dict(dtype=torch.bfloat16, precision="bf16"),
    "fp8": dict(precision=None),
}


RULES = {
    "greedy": {},
    "sampled": dict(temperature=0.9),
    "cut": dict(temperature=1.1, top_k=40, top_p=0.95),
}
DESIGN = covering.design(
    dict(kind=list(KINDS), rule=list(RULES), batch=[1, 2, 5, 8], threads=[1, 2], graph=[False, True]), lambda row: True
)


@pytest.fixture(scope="module")
def prompts():
    """500 pieces of held-out text, 4 to 43 tokens, spread over the whole file; lengths mixed within every batch."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    ids = tokenizer.encode(TEXT.read_text(encoding="utf-8"), add_special_tokens=False).ids
    step = (len(ids) - 64) // 500
    return [torch.tensor(ids[i * step :][: 4 + 7 * i % 40]) for i in range(500)]


@pytest.fixture(scope="module")
def networks():
    return {kind: LongcatFlashForCausalLM.from_pretrained(FOLDER, progress=False, **KINDS[kind]) for kind in KINDS}


@pytest.mark.parametrize("count", [48, pytest.param(500, marks=pytest.mark.slow)])
def test_speculative_text_is_plain_text(prompts, networks, count, monkeypatch):
    """Bit for bit, greedy and sampled with argmax drafts: alone, plain and eager on one thread, and as each row of the
    design decodes it.
    """
    # The random numbers of a sequence depend on its prompt here, not on its place in the batch.
    monkeypatch.setattr("longcat_ops.engine.generate.seed_of", lambda seed, b: 977 * seed + 977 * b)
    replayable = _environment.backend() == "cpu"
    accepted = drafted = start = 0
    for row in itertools.cycle(DESIGN):
        if start >= count:
            break
        part = range(start, min(start + row["batch"], count))
        start, batch, model = part.stop, [prompts[i] for i in part], networks[row["kind"]]
        options = dict(eos_token_id=-1, **RULES[row["rule"]])
        plain = [generate(model, [prompts[i]], NEW, speculative=False, graph=False, seed=i, **options) for i in part]
        with threads(row["threads"]):
            runs = [
                generate(model, batch, NEW, speculative=on, graph=row["graph"] and replayable, seed=part[0], **options)
                for on in (False, True)
            ]
        for b, want in enumerate(plain):
            for run in runs:
                assert torch.equal(run.sequences[b], want.sequences[0]), (row, part[b])
                assert torch.equal(run.num_real[b], want.num_real[0]), (row, part[b])
        accepted, drafted = accepted + sum(runs[1].accepted), drafted + sum(runs[1].drafted)
    assert accepted > 0.3 * drafted  # a head that drafts nothing right would prove little


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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

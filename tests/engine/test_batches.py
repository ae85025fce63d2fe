"""A sequence's tokens, drafts, acceptance and experts do not depend on the other sequences of its batch."""

from __future__ import annotations

import pytest
import torch

from longcat_ops import generate
from support import models
from support.decoding import on_drafts

pytestmark = pytest.mark.long

# A small vocabulary, so that drafts of a random head are often right; lengths on both sides of a page.
VOCAB = 7
SHAPE = dict(vocab_size=VOCAB, hidden_size=160, q_lora_rank=96, kv_lora_rank=80, ffn_hidden_size=200,
             expert_ffn_hidden_size=72)  # fmt: skip
KINDS = {
    "fp32": dict(dtype=torch.float32),
    "fp64": dict(dtype=torch.float64),
    "bf16": dict(dtype=torch.bfloat16),
    "fp8": dict(dtype=torch.bfloat16, precision="fp8"),
}
LENGTHS = (5, 1, 61, 9, 3, 64, 2, 17)
PROMPTS = [models.prompt(n, seed=n, vocab=VOCAB) for n in LENGTHS]
NEW = 12


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return models.build(**KINDS[request.param], **SHAPE)


@pytest.fixture(scope="module")
def wide():
    """An fp64 model: passes of a batch of one and of many differ in size, and in fp64 they agree to the last token."""
    return models.build(torch.float64, **SHAPE)


@pytest.fixture
def drafts(monkeypatch):
    """All drafts of the last run: {sequence: [token or None, ...]}."""
    seen: dict[int, list] = {}
    on_drafts(monkeypatch, lambda s, draft: seen.setdefault(s.index, []).append(draft))
    return seen


def outcome(result, drafts, b):
    """Every result of sequence b."""
    out = result.sequences[b].tolist(), result.steps[b], result.drafted[b], result.accepted[b], drafts.get(b)
    return *out, result.num_real[b].tolist()


def run(model, prompts, drafts, **options):
    drafts.clear()
    result = generate(model, prompts, NEW, eos_token_id=-1, **options)
    return result, dict(drafts)


@pytest.mark.parametrize("batch", [1, 4, 8])
def test_speculative_is_plain(model, batch):
    for start in {1: (0, 2), 4: (0, 4), 8: (0,)}[batch]:
        prompts = PROMPTS[start : start + batch]
        plain, speculative = (generate(model, prompts, NEW, speculative=on, eos_token_id=-1) for on in (False, True))
        for a, b in zip(plain.sequences, speculative.sequences, strict=True):
            assert torch.equal(a, b)
        for a, b in zip(plain.num_real, speculative.num_real, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("options", [{}, dict(temperature=1.0, draft="argmax"), dict(temperature=1.0, draft="sampled")],
                         ids=["greedy", "argmax", "sampled"])  # fmt: skip
@pytest.mark.parametrize("batch", [4, 8])
def test_other_neighbours_change_nothing(model, batch, options, drafts):
    """Other neighbours change no bit in any dtype, because the passes have the same size."""
    prompts = PROMPTS[:batch]
    result, drawn = run(model, prompts, drafts, seed=5, **options)
    assert 0 < sum(result.accepted) < sum(result.drafted)
    for kept in (range(0, batch, 2), range(1, batch, 2)):
        others = [models.prompt(n, seed=50 + n, vocab=VOCAB) for n in reversed(LENGTHS[:batch])]
        for b in kept:
            others[b] = prompts[b]
        again = run(model, others, drafts, seed=5, **options)
        assert all(outcome(*again, b) == outcome(result, drawn, b) for b in kept)


@pytest.mark.parametrize("draft", ["greedy", "argmax", "sampled"])
def test_alone_is_in_a_batch(wide, draft, drafts, monkeypatch):
    """Acceptance agrees too: drafts from another sequence's rows keep the tokens right but are rejected more often."""

    # A sequence's random numbers depend on its place in the batch. Here it keeps them when it is alone.
    place = 0
    monkeypatch.setattr("longcat_ops.engine.generate.seed_of", lambda seed, b: 7 + place + b)
    options = {} if draft == "greedy" else dict(temperature=1.0, draft=draft)
    result, drawn = run(wide, PROMPTS, drafts, **options)
    assert len(PROMPTS) < sum(result.accepted) < sum(result.drafted)
    for place, prompt in enumerate(PROMPTS):
        assert outcome(*run(wide, [prompt], drafts, **options), 0) == outcome(result, drawn, place)


def test_sequences_that_end_leave_the_others_alone(wide, drafts):
    """As sequences end one by one, the remaining ones keep drafting from their own rows."""
    whole, drawn = run(wide, PROMPTS, drafts)
    new = [s[len(p) :].tolist() for s, p in zip(whole.sequences, PROMPTS, strict=True)]
    for eos in range(0, VOCAB, 2):
        drafts.clear()
        out = generate(wide, PROMPTS, NEW, eos_token_id=eos)
        ends = [tokens.index(eos) + 1 if eos in tokens else NEW for tokens in new]
        assert len(set(ends)) > 2
        for b, end in enumerate(ends):
            assert out.sequences[b].tolist() == PROMPTS[b].tolist() + new[b][:end]
            if b in drafts:
                assert drafts[b] == drawn[b][: len(drafts[b])]


def test_prompts_are_read_alone(model):
    """A prompt's logits have the same bits in a batch."""
    width = max(LENGTHS)
    ids = torch.stack([torch.cat([p, torch.zeros(width - len(p), dtype=p.dtype)]) for p in PROMPTS])
    together = model(ids, lengths=LENGTHS)
    for b, prompt in enumerate(PROMPTS):
        assert torch.equal(model(prompt[None])[0], together[b, : len(prompt)])

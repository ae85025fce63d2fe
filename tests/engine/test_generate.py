"""generate: speculation is lossless for any draft, stops where it must, and counts its steps and drafts."""

from __future__ import annotations

import pytest
import torch

from longcat_ops import LongcatError, LongcatShapeError, generate
from longcat_ops.model.scmoe import MoE
from support import models
from support.decoding import on_drafts

PROMPTS = [models.prompt(n, seed=n) for n in (5, 1, 61)]


@pytest.fixture(scope="module", params=["fp32", "bf16", "fp8"])
def model(request):
    dtype = torch.float32 if request.param == "fp32" else torch.bfloat16
    return models.build(dtype, precision="fp8" if request.param == "fp8" else None)


@pytest.fixture(scope="module")
def small():
    return models.build(num_layers=1)


def draft_with(monkeypatch, continuation):
    """Replace the MTP head's drafts: continuation(sequence) -> the token to draft, or None for the head's own."""
    on_drafts(monkeypatch, lambda s, _: continuation(s))


def right_and_wrong(plain, vocab):
    """Drafts from the known plain output: always the true next token, or always another."""
    ids = [s.tolist() for s in plain.sequences]

    def right(s):
        return ids[s.index][len(s.ids)] if len(s.ids) < len(ids[s.index]) else 0

    return {"real": lambda s: None, "right": right, "wrong": lambda s: (right(s) + 1) % vocab}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.sequences, b.sequences, strict=True))


def check_counts(out, prompts, model):
    """Checks the counts of a run that no EOS cut short."""
    for s, p, steps, accepted, drafted, real in zip(
        out.sequences, prompts, out.steps, out.accepted, out.drafted, out.num_real, strict=True
    ):
        new = len(s) - len(p)
        assert torch.equal(s[: len(p)], p)
        assert new == 1 + steps + accepted
        assert 0 <= accepted <= drafted <= steps
        assert real.shape == (new, model.config.num_layers)
        assert real.dtype == torch.uint8
        assert real.max() <= model.config.moe_topk


@pytest.mark.parametrize("kind", ["real", "right", "wrong"])
@pytest.mark.parametrize("count", [15, 16])
@pytest.mark.parametrize("batch", [1, 3])
def test_greedy_is_lossless(model, batch, count, kind, monkeypatch):
    prompts = PROMPTS[-batch:]
    plain = generate(model, prompts, count, speculative=False, eos_token_id=-1)
    assert plain.drafted == plain.accepted == [0] * batch
    assert plain.steps == [count - 1] * batch
    check_counts(plain, prompts, model)
    draft_with(monkeypatch, right_and_wrong(plain, model.config.vocab_size)[kind])
    out = generate(model, prompts, count, eos_token_id=-1)
    assert same(out, plain)
    check_counts(out, prompts, model)
    assert all(torch.equal(a, b) for a, b in zip(out.num_real, plain.num_real, strict=True))
    if kind == "wrong":
        assert out.accepted == [0] * batch
        assert out.drafted == [count - 2] * batch  # the last token of a run is not drafted
    elif kind == "right":
        assert out.accepted == out.drafted == [(count - 1) // 2] * batch
        assert out.steps == [count // 2] * batch


def test_plain_greedy_is_argmax_of_the_whole_sequence():
    """Each sequence of a ragged batch is the argmax of its own whole-sequence pass (fp64: no rounding differences)."""
    model = models.build(torch.float64)
    for speculative in (False, True):
        out = generate(model, PROMPTS, 12, speculative=speculative, eos_token_id=-1)
        for sequence, prompt in zip(out.sequences, PROMPTS, strict=True):
            ids = prompt
            for _ in range(12):
                ids = torch.cat([ids, model(ids[None])[0, -1:].argmax(-1)])
            assert torch.equal(sequence, ids)
            alone = generate(model, prompt[None], 12, speculative=speculative, eos_token_id=-1)
            assert torch.equal(alone.sequences[0], sequence)


@pytest.mark.parametrize("kind", ["real", "right", "wrong"])
@pytest.mark.parametrize("at", range(7))
def test_eos_anywhere(small, at, kind, monkeypatch):
    """EOS stops decoding as the first token, as a draft, as the bonus token after a draft and as a plain token."""
    plain = generate(small, PROMPTS[:1], 12, speculative=False, eos_token_id=-1)
    new = plain.sequences[0][len(PROMPTS[0]) :].tolist()
    eos = new[at]
    first = new.index(eos)
    draft_with(monkeypatch, right_and_wrong(plain, 61)[kind])
    seen = []
    out = generate(small, PROMPTS[:1], 12, eos_token_id=eos, on_token=lambda *event: seen.append(event))
    assert out.sequences[0].tolist() == PROMPTS[0].tolist() + new[: first + 1]
    assert [token for _, token, _ in seen] == new[: first + 1]
    assert len(out.num_real[0]) == first + 1
    # An EOS taken from a draft ends the step before its second token.
    assert first + 1 == 1 + out.steps[0] + out.accepted[0] - seen[-1][2]
    if kind == "right" and first:
        assert seen[-1][2] == (first % 2 == 1)  # odd places come from drafts, even ones follow them


def test_eos_of_the_config_and_of_one_sequence_only(small):
    plain = generate(small, PROMPTS, 20, speculative=False, eos_token_id=-1)
    eos = plain.sequences[1][len(PROMPTS[1]) + 3].item()
    stopping = models.build(num_layers=1, eos_token_id=eos)
    out = generate(stopping, PROMPTS, 20)
    for got, whole, prompt in zip(out.sequences, plain.sequences, PROMPTS, strict=True):
        new = whole[len(prompt) :].tolist()
        end = new.index(eos) + 1 if eos in new else 20
        assert got[len(prompt) :].tolist() == new[:end]
    assert len({len(n) for n in out.num_real}) > 1
    assert same(generate(stopping, PROMPTS, 20, eos_token_id=-1), plain)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("speculative", [False, True])
def test_short_runs(small, count, speculative):
    whole = generate(small, PROMPTS, 8, speculative=False, eos_token_id=-1)
    out = generate(small, PROMPTS, count, speculative=speculative, eos_token_id=-1)
    for got, want, prompt in zip(out.sequences, whole.sequences, PROMPTS, strict=True):
        assert got.dtype == torch.int64
        assert got.tolist() == want[: len(prompt) + count].tolist()
    assert [n.shape for n in out.num_real] == [(count, 1)] * 3
    if count < 3:
        assert out.drafted == [0] * 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_on_token_tells_the_output_in_order(small, temperature):
    seen = {0: [], 1: [], 2: []}
    drafts = [0, 0, 0]

    def on_token(sequence, token, from_draft):
        seen[sequence].append(token)
        drafts[sequence] += from_draft

    out = generate(small, PROMPTS, 9, temperature=temperature, seed=3, eos_token_id=-1, on_token=on_token)
    for b, (s, p) in enumerate(zip(out.sequences, PROMPTS, strict=True)):
        assert seen[b] == s[len(p) :].tolist()
    assert drafts == out.accepted


def test_num_real_is_of_the_pass_behind_each_token(small, monkeypatch):
    seen, route = [], MoE.route

    def watched(self, x, rows):
        routing = route(self, x, rows)
        seen.append(routing.num_real.clone())
        return routing

    monkeypatch.setattr(MoE, "route", watched)
    out = generate(small, PROMPTS[:1], 6, speculative=False, eos_token_id=-1, graph=False)
    assert out.num_real[0][:, 0].tolist() == [seen[0][-1].item(), *(s[0].item() for s in seen[1:])]


@pytest.mark.parametrize("draft", ["argmax", "sampled"])
def test_seeds(small, draft):
    def run(prompts, seed):
        return generate(small, prompts, 10, temperature=1.0, seed=seed, draft=draft, eos_token_id=-1)

    a, b, c = run(PROMPTS, 7), run(PROMPTS, 7), run(PROMPTS, 8)
    assert same(a, b)
    assert not same(a, c)
    others = run([PROMPTS[0], models.prompt(4, seed=99), models.prompt(30, seed=98)], 7)
    assert torch.equal(others.sequences[0], a.sequences[0])  # its neighbours do not change its random stream
    assert not torch.equal(run([PROMPTS[0]] * 3, 7).sequences[1], a.sequences[0])  # each has its own
    check_counts(a, PROMPTS, small)
    state = torch.random.get_rng_state()
    run(PROMPTS, None)
    assert torch.equal(torch.random.get_rng_state(), state)  # the global stream is untouched
    assert not same(run(PROMPTS, None), run(PROMPTS, None))


def test_sampling_near_zero_temperature_is_greedy(small):
    greedy = generate(small, PROMPTS, 12, speculative=False, eos_token_id=-1)
    for options in (dict(temperature=1e-6), dict(temperature=1.0, top_k=1), dict(temperature=1.0, top_p=1e-9)):
        for draft in ("argmax", "sampled"):
            assert same(generate(small, PROMPTS, 12, eos_token_id=-1, seed=1, draft=draft, **options), greedy)


def test_settings_beyond_float32_and_int32(small):
    """A huge temperature draws any token as likely, a tiny one is greedy, a huge top_k cuts nothing."""

    def run(**options):
        return generate(small, PROMPTS, 12, eos_token_id=-1, seed=1, **options)

    greedy = run()
    assert same(run(temperature=1e-300), greedy)
    hot, uniform = run(temperature=1e300), run(temperature=1e30)
    assert same(hot, uniform) and len(set(torch.cat(hot.sequences).tolist())) > 20 and not same(hot, greedy)
    assert same(run(temperature=1.0, top_k=2**40), run(temperature=1.0))


def test_a_model_without_mtp_decodes_plainly():
    model = models.build(mtp=False)
    assert model.mtp is None
    out = generate(model, PROMPTS, 9, eos_token_id=-1)
    assert out.drafted == [0, 0, 0]
    assert same(out, generate(model, PROMPTS, 9, speculative=False, eos_token_id=-1))


def test_input_forms(small):
    row = PROMPTS[0]
    want = generate(small, [row], 4, eos_token_id=-1)
    forms = (row[None], [row.tolist()], [row.int()], row[None].expand(1, -1), row[None].numpy(), [row.numpy()])
    for form in (*forms, (row,), [tuple(row.tolist())], row.repeat_interleave(2)[None, ::2]):
        assert same(generate(small, form, 4, eos_token_id=-1), want)
    before = row.clone()
    assert torch.equal(row, before)


def test_a_prompt_may_fill_the_context_exactly():
    model = models.build(num_layers=1, max_position_embeddings=20)
    out = generate(model, [models.prompt(12)], 8, eos_token_id=-1)
    assert len(out.sequences[0]) == 20
    text = r"`input_ids\[0\]` is 12 tokens \+ max_new_tokens 9, expected at most max_position_embeddings = 20"
    with pytest.raises(LongcatShapeError, match=text + r"(.|\n)*fix: max_new_tokens <= 8"):
        generate(model, [models.prompt(12)], 9)
    with pytest.raises(LongcatShapeError, match=r"fix: shorten the prompt"):
        generate(model, [models.prompt(21)], 1)


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite(value, temperature):
    model = models.build(num_layers=1)
    model.lm_head[:, 5] = float(value)
    with pytest.raises(LongcatError, match=r"logits of sequence 0 at token 5 are not finite \(max (nan|-?inf)\)"):
        generate(model, PROMPTS[:1], 3, temperature=temperature)

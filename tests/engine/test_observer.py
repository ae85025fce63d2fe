"""The observer of a decode encloses each pass and each sampling of a token, and changes nothing."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from longcat_ops import LongcatError, _environment, generate
from longcat_ops.engine import measure
from longcat_ops.engine.observer import Work
from longcat_ops.model.rows import Rows
from support import models

# A small vocabulary, so that drafts of a random head are often right; the last prompt takes several chunks.
VOCAB, NEW = 7, 12
PROMPTS = [models.prompt(n, seed=n, vocab=VOCAB) for n in (5, 1, 40)]
OPTIONS = {
    "greedy": {},
    "plain": dict(speculative=False),
    "sampled": dict(temperature=1.0, seed=5, draft="sampled"),
    "cut": dict(temperature=1.0, seed=5, top_k=3, top_p=0.9),
}
TARGET, HEAD = (Work.PROMPT, Work.TARGET), (Work.DRAFT_PROMPT, Work.DRAFT)


@pytest.fixture(scope="module")
def model():
    return models.build(num_layers=1, vocab_size=VOCAB)


class Recorder:
    """Records all work in order as (work, rows), and the work in progress."""

    def __init__(self) -> None:
        self.seen: list[tuple[Work, int]] = []
        self.now: Work | None = None

    @contextmanager
    def around(self, work, rows):
        assert self.now is None, "one inside another"
        self.now = work
        self.seen.append((work, rows))
        try:
            yield
        finally:
            self.now = None

    def rows(self, work):
        return [rows for kind, rows in self.seen if kind is work]


@contextmanager
def counted_passes(model, recorder):
    """{index in recorder.seen: rows that the model's modules processed during that work}."""
    found: dict[int, int] = {}

    def note(rows, kinds):
        decodes = isinstance(rows, Rows)
        assert recorder.now is kinds[decodes]
        at = len(recorder.seen) - 1
        found[at] = found.get(at, 0) + (int(rows.count) if decodes else rows.end - rows.start)

    hooks = [m.register_forward_pre_hook(lambda _, args: note(args[1], TARGET)) for m in model.layers]
    hooks.append(model.mtp.register_forward_pre_hook(lambda _, args: note(args[2], HEAD)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_each_pass_is_seen_with_its_rows(model, options, monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr("longcat_ops.model.passes.CHUNK", 16)
    with counted_passes(model, recorder) as passes:
        out = generate(model, PROMPTS, NEW, eos_token_id=-1, observer=recorder, **options)
    assert passes == {i: rows for i, (work, rows) in enumerate(recorder.seen) if work is not Work.SAMPLING}
    lengths, speculative = [len(p) for p in PROMPTS], options.get("speculative", True)
    assert recorder.rows(Work.PROMPT) == lengths
    assert recorder.rows(Work.DRAFT_PROMPT) == lengths * speculative
    assert len(recorder.rows(Work.TARGET)) == max(out.steps)
    assert sum(recorder.rows(Work.TARGET)) == sum(out.steps) + sum(out.drafted)
    assert recorder.rows(Work.DRAFT) == recorder.rows(Work.TARGET) * speculative
    prompts, chosen = len(PROMPTS) * (1 + speculative), recorder.rows(Work.SAMPLING)
    assert chosen[:prompts] == [1] * prompts
    assert chosen[prompts :: 1 + speculative] == recorder.rows(Work.TARGET)
    live = [sum(steps > i for steps in out.steps) for i in range(max(out.steps))]
    assert not speculative or chosen[prompts + 1 :: 2] == live


@pytest.mark.parametrize(("length", "taken"), [(2, True), (5, False)])
def test_the_order_of_a_step(model, length, taken):
    recorder = Recorder()
    out = generate(model, [models.prompt(length, seed=length, vocab=VOCAB)], 3, eos_token_id=-1, observer=recorder)
    assert out.accepted == [taken]
    sampled = (Work.SAMPLING, 1)

    def step(rows):
        return [(Work.TARGET, rows), (Work.SAMPLING, rows), (Work.DRAFT, rows), sampled]

    first = [(Work.PROMPT, length), sampled, (Work.DRAFT_PROMPT, length), sampled]
    assert recorder.seen == first + step(2) + ([] if taken else step(1))  # the last token has no draft


@pytest.mark.skipif(_environment.backend() != "cpu", reason="only the CPU backend records kernels")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_replayed_step_is_seen_as_a_whole(options):
    model = models.build(num_layers=1, vocab_size=2 * VOCAB)  # with fewer than 8 ids a head has no kernel
    recorders = [Recorder(), Recorder()]
    for recorder, graph in zip(recorders, (False, True), strict=True):
        generate(model, PROMPTS, NEW, eos_token_id=-1, observer=recorder, graph=graph, **options)
    eager, replayed = recorders
    assert replayed.rows(Work.STEP) == eager.rows(Work.TARGET)
    assert not {Work.TARGET, Work.DRAFT} & {work for work, _ in replayed.seen}
    assert replayed.rows(Work.PROMPT) == eager.rows(Work.PROMPT)


def test_a_model_without_a_head_has_passes_of_the_target_alone():
    recorder = Recorder()
    generate(models.build(num_layers=1, mtp=False), [models.prompt(4)], 3, eos_token_id=-1, observer=recorder)
    sampled = (Work.SAMPLING, 1)
    assert recorder.seen == [(Work.PROMPT, 4), sampled, (Work.TARGET, 1), sampled, (Work.TARGET, 1), sampled]


def test_work_that_fails_is_left():
    model, recorder = models.build(num_layers=1), Recorder()
    model.lm_head[:, 5] = float("nan")
    with pytest.raises(LongcatError, match="not finite"):
        generate(model, [models.prompt(4)], 3, observer=recorder)
    assert recorder.seen == [(Work.PROMPT, 4), (Work.SAMPLING, 1)] and recorder.now is None


def test_without_an_observer_nothing_is_called(model):
    """A run without an observer calls none, and an earlier observer leaves nothing behind in the model."""
    recorder, before = Recorder(), dict(vars(model))
    generate(model, PROMPTS[:1], NEW, observer=recorder)
    seen = list(recorder.seen)
    generate(model, PROMPTS[:1], NEW)
    generate(model, PROMPTS[:1], NEW, observer=None)
    assert seen and recorder.seen == seen
    assert vars(model) == before


@pytest.mark.parametrize("measured", [measure.timed_generate, measure.time_by_part])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_is_measured_decodes_the_same(model, monkeypatch, options, measured):
    results = []
    monkeypatch.setattr(measure, "generate", lambda *a, **k: results.append(generate(*a, **k)) or results[-1])
    before = dict(vars(model))
    _, timing = measured(model, PROMPTS[0], NEW, eos_token_id=-1, **options)
    want = generate(model, PROMPTS[:1], NEW, eos_token_id=-1, **options)
    (got,) = results
    assert torch.equal(got.sequences[0], want.sequences[0]) and torch.equal(got.num_real[0], want.num_real[0])
    assert (got.steps, got.drafted, got.accepted) == (want.steps, want.drafted, want.accepted)
    assert timing.tokens == NEW - 1 and timing.prompt_seconds > 0 and timing.decode_seconds > 0
    assert vars(model) == before

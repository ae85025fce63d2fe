"""C2T: what it knows of a draft, how it learns, its file; a decode with it has the same tokens in fewer rows."""

from __future__ import annotations

import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longcat_ops import (
    DraftFilter,
    Engine,
    LongcatCheckpointError,
    LongcatShapeError,
    LongcatUnsupportedError,
    generate,
)
from longcat_ops.engine.c2t_training import Judgement, Traces, judge, known_of, platt, trace, train
from support import models
from support.cli_checkpoint import one_thread  # noqa: F401

KEEPS_ALL, KEEPS_NONE = 0.0, 1.5


@pytest.fixture(scope="module")
def model():
    """In fp32: a score by other passes than a decode's is the same but for a few ulp."""
    return models.build(torch.float32, max_position_embeddings=400)


def by_hand(row: torch.Tensor, top: int) -> tuple[float, float]:
    """(largest probability, entropy of the `top` largest) of a row of logits, in Python floats."""
    values = sorted(row.double().tolist(), reverse=True)
    weights = [math.exp(v - values[0]) for v in values]
    total = math.fsum(weights)
    return 1 / total, math.fsum(-w / total * math.log(w / total) for w in weights[:top] if w > 0)


def score_by_hand(f: DraftFilter, joint: float, entropy: float, depth: int = 1) -> float:
    units = [max(0.0, u[0] * joint + u[1] * entropy + u[2] * depth + u[3]) for u in f.hidden]
    return 1 / (1 + math.exp(-math.fsum([*(o * u for o, u in zip(f.output, units, strict=False)), f.output[-1]])))


def of_probability(beta: float) -> DraftFilter:
    """A score that grows with the probability alone: about beta where that is 0.1."""
    return DraftFilter([[8.0, 0.0, 0.0, 0.0]], [1.0, -0.8], beta)


def test_traces_are_the_drafts_of_a_decode() -> None:
    """Each draft of a step, by its passes: what the head says behind each token, and what the target says next."""
    model, prompt = models.build(torch.float64), models.prompt(7)
    new = generate(model, [prompt], 12, eos_token_id=-1, speculative=False).sequences[0][7:].tolist()
    found = trace(model, prompt.tolist(), new, top=20)
    assert found.features.shape == (12, 3) and found.features[:, 2].tolist() == [1.0] * 12
    for i in range(12):
        ids = torch.tensor([*prompt.tolist(), *new[: i + 1]])
        cache = model.new_cache(1, 60)
        target = model.prefill(cache, 0, ids)
        hidden = model.draft_prefill(cache, 0, ids[1:], target.hidden[:-1])
        row = model.head(hidden[-1:])[0]
        assert found.features[i, :2].tolist() == pytest.approx(by_hand(row, 20), rel=1e-6)
        assert bool(found.accepted[i]) == (int(row.argmax()) == int(target.logits[-1].argmax()))
    assert len(trace(model, prompt.tolist(), []).accepted) == 0


def test_traces_need_a_head() -> None:
    with pytest.raises(LongcatUnsupportedError, match="a model without MTP head"):
        trace(models.build(torch.bfloat16, mtp=False), [1, 2], [3])


@pytest.mark.parametrize("top", [1, 3, 61, 1000])
def test_what_is_known_of_a_row(top: int) -> None:
    rows = torch.randn((5, 61), generator=torch.Generator().manual_seed(top)) * 3
    rows[1, :60] = -torch.inf
    probability, entropy = known_of(rows, top)
    for i, row in enumerate(rows):
        assert (float(probability[i]), float(entropy[i])) == pytest.approx(by_hand(row, top), rel=1e-6, abs=1e-7)


def drawn(count: int, seed: int) -> tuple[Traces, torch.Tensor]:
    """Drafts, and the chance by which each was accepted."""
    draw = torch.Generator().manual_seed(seed)
    joint, entropy, chance = torch.rand((3, count), generator=draw, dtype=torch.float64)
    features = torch.stack([joint, 4 * entropy, torch.ones_like(joint)], 1)
    truth = (4 * joint - 4 * entropy).sigmoid()
    return Traces(features, chance < truth), truth


def test_a_trained_score_is_the_chance_of_acceptance() -> None:
    """On drafts that it has not seen: within 0.03 of the truth on average, and hardly worse judged than the truth."""
    (traces, _), (calibration, _), (fresh, truth) = (
        drawn(count, seed) for seed, count in enumerate((8000, 2000, 4000))
    )
    found = train(traces, calibration, steps=1000)
    scores = found.scores(fresh.features)
    assert float((scores - truth).abs().mean()) < 0.03
    judged = judge(found, fresh)
    best = float(torch.nn.functional.binary_cross_entropy(truth, fresh.accepted.double()))
    assert best - 0.01 < judged.log_loss < best + 0.01 < judged.base_log_loss - 0.1
    assert judged.calibration_error < 0.04 and judged.auc > 0.75
    again = train(traces, calibration, steps=50)
    assert again == train(traces, calibration, steps=50) != train(traces, calibration, steps=50, seed=1)


def test_training_needs_both_kinds() -> None:
    traces, _ = drawn(50, 0)
    for taken in (torch.zeros(50), torch.ones(50)):
        one_kind = Traces(traces.features, taken.bool())
        text = f"50 drafts, {int(taken.sum())} of them accepted, expected drafts of both kinds"
        for given in ((one_kind, traces), (traces, one_kind)):
            with pytest.raises(LongcatShapeError, match=text):
                train(*given, steps=1)


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (0.3, -1.0), (4.0, 2.0), (-1.0, 0.5)])
def test_platt_finds_what_samples_were_drawn_with(a: float, b: float) -> None:
    draw = torch.Generator().manual_seed(1)
    sums = torch.randn(40_000, generator=draw, dtype=torch.float64)
    accepted = torch.rand(40_000, generator=draw) < (a * sums + b).sigmoid()
    assert platt(sums, accepted) == pytest.approx((a, b), abs=0.1)


def test_platt_where_all_can_be_told_apart() -> None:
    """The added samples keep the slope finite."""
    a, b = platt(torch.tensor([-2.0, -1.0, 1.0, 2.0]), torch.tensor([False, False, True, True]))
    assert 0 < a < 20 and abs(b) < 1e-6


def test_judgement_by_hand() -> None:
    draw = random.Random(3)
    f = DraftFilter([[2.0, -0.5, 0.0, 0.1], [-1.0, 0.5, 0.25, 0.0]], [1.5, -1.0, 0.2])
    rows = [(draw.choice([0.1, 0.4, 0.9]), draw.choice([0.5, 3.0]), 1) for _ in range(60)]
    accepted = [draw.random() < 0.6 for _ in rows]
    found = judge(f, Traces(torch.tensor(rows, dtype=torch.float64), torch.tensor(accepted)))
    scores = [score_by_hand(f, *row) for row in rows]
    share = sum(accepted) / 60
    losses = [-math.log(s if taken else 1 - s) for s, taken in zip(scores, accepted, strict=True)]
    pairs = [(s > t) + 0.5 * (s == t) for s, x in zip(scores, accepted, strict=True) if x
             for t, y in zip(scores, accepted, strict=True) if not y]  # fmt: skip
    base = -share * math.log(share) - (1 - share) * math.log(1 - share)
    want = Judgement(60, share, sum(losses) / 60, base, found.calibration_error, sum(pairs) / len(pairs))
    assert [getattr(found, name) for name in want.__dict__] == pytest.approx(list(want.__dict__.values()), abs=1e-7)
    calibrated = Traces(torch.tensor([[0.0, 0.0, 1.0]] * 40, dtype=torch.float64), torch.arange(40) % 4 == 0)
    off = judge(DraftFilter([[0.0] * 4], [0.0, 0.0]), calibrated)  # a score of 0.5 for a share of 0.25
    assert off.calibration_error == pytest.approx(0.25, abs=0.06) and off.auc == 0.5


def test_the_file(tmp_path: Path) -> None:
    f = DraftFilter([[0.1, -2.5, 0.0, 3e-8], [1.0, 2.0, 3.0, 4.0]], [0.3, -0.7, 1e-3], 0.625, 500, {"texts": [8, 1, 1]})
    f.save(tmp_path / "c2t.json")
    found = DraftFilter.load(tmp_path)
    assert found == f and found.about == f.about and DraftFilter.load(tmp_path / "c2t.json", 0.2) == f.with_beta(0.2)
    hidden, output = found.tensors()
    assert hidden.shape == (2, 4) and output.tolist() == torch.tensor(f.output).tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["c2t.json"]
    whole = json.loads((tmp_path / "c2t.json").read_text())
    for changes, text in (
        ({"format": "other"}, "has format 'other'"), ({"hidden": [[1, 2, 3]]}, "units of [3] numbers, expected 4"),
        ({"output": [1.0]}, "1 numbers, expected 3"), ({"output": [1.0, 2.0, "3"]}, "not finite in float32"),
        ({"hidden": []}, "0 units, expected 1 .. 256"), ({"beta": None}, "`beta` is None"), ({"top": 0}, "`top` is 0"),
        ({"top": ...}, "lacks 'top'"), ({"hidden": 5}, "holds no classifier"),
        ({"output": [1.0, 2.0, 1e39]}, "not finite in float32"),
    ):  # fmt: skip
        changed = {name: value for name, value in (whole | changes).items() if value is not ...}
        (tmp_path / "bad.json").write_text(json.dumps(changed))
        with pytest.raises(LongcatCheckpointError, match=re.escape(text)) as caught:
            DraftFilter.load(tmp_path / "bad.json")
        assert "bad.json" in str(caught.value)
    with pytest.raises(LongcatCheckpointError, match=r"python -m longcat_ops c2t .* --prompts FILE"):
        DraftFilter.load(tmp_path / "none")


def kept(model, prompt: torch.Tensor, f: DraftFilter, new: list[int]) -> list[bool]:
    """Whether the draft behind each new token passes, by passes over its text and a score by hand."""
    features = trace(model, prompt.tolist(), new, f.top).features.tolist()
    return [score_by_hand(f, joint, entropy) >= f.beta for joint, entropy, _ in features]


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_decode_verifies_what_passes(model, graph: bool, temperature: float) -> None:
    """The same tokens as plainly, and the steps and drafts that follow from which drafts pass and which are right."""
    prompts = [models.prompt(length, seed=length) for length in (3, 9, 30)]
    options = dict(temperature=temperature, seed=4, eos_token_id=-1)
    plain = generate(model, prompts, 40, speculative=False, **options)
    probabilities = trace(model, prompts[0].tolist(), plain.sequences[0][3:].tolist()).features[:, 0].sort().values
    middle = float(probabilities[19:21].mean())  # no draft is at the threshold
    median = of_probability(score_by_hand(of_probability(0), middle, 0.0))
    verified = []
    for f in (None, median.with_beta(KEEPS_ALL), median, median.with_beta(KEEPS_NONE)):
        found = generate(model, prompts, 40, draft_filter=f, graph=graph, **options)
        assert all(map(torch.equal, found.sequences, plain.sequences))
        verified.append(sum(found.drafted))
        for b, prompt in enumerate(prompts):
            new = found.sequences[b][len(prompt) :].tolist()
            passes = [True] * 40 if f is None else kept(model, prompt, f, new)
            right = drafts_of(model, prompt, new)
            at = steps = drafted = accepted = 0
            while at < 39:
                has = passes[at] and at < 38  # a token follows the last draft
                hit = has and right[at]
                steps, drafted, accepted, at = steps + 1, drafted + has, accepted + hit, at + 1 + hit
            assert (found.steps[b], found.drafted[b], found.accepted[b]) == (steps, drafted, accepted)
    assert verified[0] == verified[1] > verified[2] > verified[3] == 0


def drafts_of(model, prompt: torch.Tensor, new: list[int]) -> list[bool]:
    """Whether the draft behind each new token is the text's next one."""
    ids = torch.tensor([*prompt.tolist(), *new])
    cache = model.new_cache(1, len(ids))
    target = model.prefill(cache, 0, ids)
    drafts = model.head(model.draft_prefill(cache, 0, ids[1:], target.hidden[:-1])).argmax(-1)
    return [*(drafts[len(prompt) - 1 : -1] == ids[len(prompt) + 1 :]).tolist(), False]


def test_drawn_drafts_do_not_decide_whether_they_are_verified(model) -> None:
    """Else the rejection rule would be biased. Which are verified follows from the head's rows alone, whatever was
    drawn of them."""
    prompt, f = models.prompt(6, seed=2), of_probability(0)
    f = f.with_beta(score_by_hand(f, 0.085, 0.0))
    some = 0
    for seed in range(6):
        flags: list[bool] = []
        found = generate(
            model, [prompt], 40, temperature=0.8, draft="sampled", seed=seed, eos_token_id=-1, draft_filter=f,
            on_token=lambda _, __, drafted, flags=flags: flags.append(drafted),
        )  # fmt: skip
        passes = kept(model, prompt, f, found.sequences[0][6:].tolist())
        at = steps = drafted = 0
        while at < 39:
            has, hit = passes[at] and at < 38, flags[at + 1]
            assert has or not hit
            steps, drafted, at = steps + 1, drafted + has, at + 1 + hit
        assert (found.steps[0], found.drafted[0]) == (steps, drafted)
        some += drafted
    assert 0 < some < 6 * 30


def test_an_engine_with_a_filter(model) -> None:
    """As `generate`, and its statistics say what it saves."""
    prompts = [models.prompt(5, seed=i) for i in range(6)]
    rows = []
    for beta in (KEEPS_ALL, 0.55, KEEPS_NONE):
        f = of_probability(beta)
        with Engine(model, max_batch=4, max_tokens=512, eos_token_id=-1, draft_filter=f) as engine:
            requests = [engine.submit(prompt, 30) for prompt in prompts]
            engine.run()
        for prompt, request in zip(prompts, requests, strict=True):
            alone = generate(model, [prompt], 30, eos_token_id=-1, draft_filter=f)
            assert request.tokens == alone.sequences[0][5:].tolist()
            assert (request.drafted, request.accepted) == (alone.drafted[0], alone.accepted[0])
        rows.append(engine.statistics.summary().rows_per_token)
    assert rows[0] > rows[1] > rows[2] == 1.0


def test_other_arguments_are_refused(model) -> None:
    for call in (lambda f: generate(model, [models.prompt(3)], 2, draft_filter=f),
                 lambda f: Engine(model, max_batch=1, max_tokens=64, draft_filter=f)):  # fmt: skip
        with pytest.raises(LongcatShapeError, match=r"`draft_filter` is 0.5, expected a longcat_ops.DraftFilter"):
            call(0.5)
    with pytest.raises(LongcatShapeError, match="`beta` is nan"):
        replace(of_probability(0.5), beta=math.nan)

"""An engine gives each request the tokens that `generate` gives it alone, whatever else runs and whoever leaves."""

from __future__ import annotations

import asyncio
import random
from functools import lru_cache

import pytest
import torch

import longcat_ops
from longcat_ops import DraftFilter, LongcatError, LongcatFlashForCausalLM, LongcatShapeError, LongcatUnsupportedError
from longcat_ops.engine.engine import Engine
from longcat_ops.engine.request import FinishReason, Request
from support import engine_runs, models
from support.cli_checkpoint import one_thread  # noqa: F401
from support.covering import design
from support.engine_runs import TINY, Alone

ROWS = design(
    {"n": [1, 2, 4, 8], "batch": [1, 4, 16], "drafts": ["none", "all", "c2t"], "sampled": [False, True]},
    lambda row: True,
)


@pytest.fixture(scope="module")
def alone() -> Alone:
    return Alone(LongcatFlashForCausalLM.from_pretrained(TINY))


@lru_cache
def expected(alone: Alone, count: int, sampled: bool, seed: int) -> list[list[int]]:
    return [alone.tokens(case) for case in engine_runs.cases(count, sampled, seed)]


def check(alone: Alone, row: dict[str, int], count: int, seed: int) -> None:
    chosen, want = engine_runs.cases(count, row["sampled"], seed), expected(alone, count, row["sampled"], seed)
    with Engine(alone.model, max_batch=row["batch"], max_tokens=1200, steps_per_schedule=row["n"],
                speculative=row["drafts"] != "none", tokenizer=alone.tokenizer,
                draft_filter=DraftFilter.load(TINY, 0.7) if row["drafts"] == "c2t" else None) as engine:  # fmt: skip
        requests = engine_runs.run(engine, chosen, random.Random(seed))
    runner, pool = engine._runner, engine._scheduler.pool  # whose thread has ended
    assert pool.free == pool.total and int(runner.whole.num_drafts.max()) < 0 and not runner.cache.rows.any()
    assert len(requests) == count and all(request.done for request in requests)
    problems = [engine_runs.wrong(alone, *each) for each in zip(chosen, requests, want, strict=True)]
    assert not any(problems), [(i, text) for i, text in enumerate(problems) if text][:3]
    rows = engine.statistics.summary().rows_per_token
    assert rows == 1 if row["drafts"] == "none" else 1 < rows < 2


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_request_has_its_own_tokens(alone: Alone, row: dict[str, int]) -> None:
    check(alone, row, 60, 0)


@pytest.mark.slow
@pytest.mark.parametrize("row", [ROWS[5], ROWS[-2]], ids=str)
def test_many_requests(alone: Alone, row: dict[str, int]) -> None:
    check(alone, row, 400, 1)


@pytest.fixture(scope="module")
def small() -> LongcatFlashForCausalLM:
    return models.build(torch.bfloat16, max_position_embeddings=400)


def test_back_pressure(small: LongcatFlashForCausalLM) -> None:
    """A cache of four pages serves requests that could fill it three times over; one that never fits is refused."""
    prompts = [models.prompt(length, seed=length) for length in (100, 60, 3, 120, 30, 7, 64)]
    with Engine(small, max_batch=4, max_tokens=256, steps_per_schedule=2, eos_token_id=-1) as engine:
        with pytest.raises(
            LongcatShapeError, match="200 tokens and 100 new ones, 5 pages of 64, expected at most the 4"
        ):
            engine.submit(models.prompt(200), 100)
        requests = [engine.submit(prompt, 90) for prompt in prompts]
        most, live = 0, set()
        while engine.step():
            most = max(most, engine._scheduler.pool.total - engine._scheduler.pool.free)
            live.add(len(engine._scheduler.live))
    assert most == 4 and max(live) > 1, (most, live)
    for prompt, request in zip(prompts, requests, strict=True):
        alone = longcat_ops.generate(small, [prompt], 90, eos_token_id=-1)
        assert request.tokens == alone.sequences[0][len(prompt) :].tolist()


def test_streams_of_several_requests(small: LongcatFlashForCausalLM) -> None:
    async def collect(engine: Engine, request: Request) -> list[int]:
        return [token async for token in engine.stream(request)]

    async def both() -> list[list[int]]:
        with Engine(small, max_batch=2, max_tokens=512, eos_token_id=-1) as engine:
            return await asyncio.gather(
                *(collect(engine, engine.submit(models.prompt(5, seed=i), 11)) for i in range(3))
            )

    for i, tokens in enumerate(asyncio.run(both())):
        alone = longcat_ops.generate(small, [models.prompt(5, seed=i)], 11, eos_token_id=-1)
        assert tokens == alone.sequences[0][5:].tolist()


class Broken(Exception):
    pass


def poisoned(monkeypatch: pytest.MonkeyPatch, engine: Engine, name: str, error: Exception, calls: set[int]) -> None:
    """The calls of a method of the engine's model with these numbers raise."""
    own, count = getattr(engine.model, name), [0]

    def call(*arguments: object, **options: object) -> object:
        count[0] += 1
        if count[0] in calls:
            raise error
        return own(*arguments, **options)

    monkeypatch.setattr(engine.model, name, call)


def test_a_prompt_that_fails(small: LongcatFlashForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """That request alone has the error; the others have their tokens, and so do later ones."""
    with Engine(small, max_batch=4, max_tokens=512, eos_token_id=-1) as engine:
        poisoned(monkeypatch, engine, "prefill", torch.OutOfMemoryError("no memory"), {2})
        requests = [engine.submit(models.prompt(4, seed=i), 6) for i in range(4)]
        engine.run()
    assert [request.finish_reason for request in requests] == [
        FinishReason.LENGTH, FinishReason.ERROR, FinishReason.LENGTH, FinishReason.LENGTH]  # fmt: skip
    assert "the prompt of request 1 failed: OutOfMemoryError: no memory" in str(requests[1].error)
    check_tokens(small, [r for r in requests if r.error is None])


def test_a_step_that_fails(small: LongcatFlashForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that were in it have the error; requests behind them have their tokens."""
    with Engine(small, max_batch=2, max_tokens=512, eos_token_id=-1, graph=False) as engine:
        poisoned(monkeypatch, engine, "decode_rows", Broken("a kernel"), {3})
        requests = [engine.submit(models.prompt(4, seed=i), 9) for i in range(4)]
        engine.run()
        assert engine._scheduler.pool.free == engine._scheduler.pool.total
    failed = [request for request in requests if request.error is not None]
    assert failed and all("a step failed: Broken: a kernel" in str(request.error) for request in failed)
    assert len(failed) < 4
    check_tokens(small, [r for r in requests if r.error is None])


def check_tokens(model: LongcatFlashForCausalLM, requests: list[Request]) -> None:
    for request in requests:
        alone = longcat_ops.generate(model, [torch.tensor(request.prompt)], request.max_new_tokens, eos_token_id=-1)
        assert request.tokens == alone.sequences[0][len(request.prompt) :].tolist()


def test_logits_that_are_not_finite() -> None:
    """The request whose embedding is infinite fails; its neighbours, and the next owner of its pages, do not."""
    model = models.build(torch.bfloat16)
    model.embed_tokens[7] = float("nan")
    with Engine(model, max_batch=2, max_tokens=128, eos_token_id=-1) as engine:
        requests = [
            engine.submit([5, 7, 9], 5),
            *(engine.submit(models.prompt(3, seed=i, vocab=7), 5) for i in range(4)),
        ]
        engine.run()
    bad, *good = requests
    assert bad.finish_reason is FinishReason.ERROR
    assert "the logits of request 0 at token 3 are not finite" in str(bad.error)
    check_tokens(model, [request for request in good if 7 not in request.tokens])
    assert all(request.error is None or 7 in request.tokens for request in good)


def test_callbacks(small: LongcatFlashForCausalLM) -> None:
    """They see each token once, may abort and submit, and end their request if they raise."""
    seen: list[tuple[int, int]] = []
    with Engine(small, max_batch=4, max_tokens=512, eos_token_id=-1) as engine:
        later: list[Request] = []

        def on_token(request: Request, token: int) -> None:
            seen.append((request.number, token))
            if request.number == 0 and len(request.tokens) == 3:
                engine.abort(request)
                later.append(engine.submit([4, 5], 2))
            if request.number == 1 and len(request.tokens) == 2:
                raise Broken("in a callback")

        requests = [engine.submit([3, 4, 5 + i], 8, on_token=on_token) for i in range(3)]
        engine.run()
    assert [len(request.tokens) for request in requests] == [3, 2, 8] and len(later[0].tokens) == 2
    assert [(r.number, t) for r in requests for t in r.tokens] == sorted(seen, key=lambda one: one[0])
    assert requests[0].aborted and "on_token of request 1 raised Broken('in a callback')" in str(requests[1].error)


def test_arguments(small: LongcatFlashForCausalLM) -> None:
    for options, text in (
        (dict(max_batch=0), "`max_batch` is 0, expected an integer in 1 .. 4096"),
        (dict(max_tokens=0), "`max_tokens` is 0"),
        (dict(steps_per_schedule=65), "`steps_per_schedule` is 65, expected an integer in 1 .. 64"),
        (dict(prefill_tokens=1.5), "`prefill_tokens` is 1.5"),
    ):
        with pytest.raises(LongcatShapeError, match=text):
            Engine(small, **{"max_batch": 2, "max_tokens": 64} | options)
    with pytest.raises(LongcatUnsupportedError, match="`graph` is True"):
        Engine(models.build(torch.float64), max_batch=1, max_tokens=64, graph=True)
    engine = Engine(small, max_batch=2, max_tokens=512, eos_token_id=-1)
    for arguments, options, text in (
        (([], 3), {}, "an empty prompt"), (([5], -1), {}, "`max_new_tokens` is -1"), (([61], 3), {}, "ids 61 .. 61"),
        (([5], 3), {"stop": "word"}, "the engine has no tokenizer"), (([5], 3), {"stop": [1.5]}, "`stop` is 1.5"),
        (([5], 3), {"temperature": -1}, "temperature"), (([5], 3), {"top_p": 0}, "top_p"),
    ):  # fmt: skip
        with pytest.raises(LongcatShapeError, match=text):
            engine.submit(*arguments, **options)
    nothing = engine.submit([5], 0)
    waiting = engine.submit([5], 4)
    assert nothing.done and nothing.tokens == [] and nothing.finish_reason is FinishReason.LENGTH
    engine.close()
    engine.close()
    assert waiting.aborted
    with pytest.raises(LongcatError, match="it is closed"):
        engine.submit([5], 1)


def test_stop_ids(small: LongcatFlashForCausalLM) -> None:
    """The engine's end a text on the device, a request's own on the host, and a text goes on behind one that does not
    count."""
    prompt = models.prompt(5)
    text = longcat_ops.generate(small, [prompt], 40, eos_token_id=-1).sequences[0][5:].tolist()
    own, eos = text[20], text[6]
    with Engine(small, max_batch=4, max_tokens=512, eos_token_id=[eos], steps_per_schedule=3) as engine:
        options = {}, {"ignore_eos": True}, {"ignore_eos": True, "stop": [own]}, {"ignore_eos": True, "stop": own}
        requests = [engine.submit(prompt, 40, **given) for given in options]
        engine.run()
    ends = [text.index(eos) + 1, 40, text.index(own) + 1, text.index(own) + 1]
    assert [request.tokens for request in requests] == [text[:end] for end in ends]
    assert [request.finish_reason for request in requests] == [
        FinishReason.EOS, FinishReason.LENGTH, FinishReason.STOP, FinishReason.STOP]  # fmt: skip


def test_an_order_that_fails(small: LongcatFlashForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pages that cannot be written: the requests of that iteration have the error, later ones their tokens."""
    with Engine(small, max_batch=2, max_tokens=512, eos_token_id=-1) as engine:
        own, calls = engine._runner.cache.add_pages, []

        def add_pages(*arguments: object) -> None:
            calls.append(arguments)
            if len(calls) == 1:
                raise Broken("a table")
            own(*arguments)

        monkeypatch.setattr(engine._runner.cache, "add_pages", add_pages)
        requests = [engine.submit(models.prompt(4, seed=i), 5) for i in range(4)]
        engine.run()
    assert "an order to the device failed: Broken: a table" in str(requests[0].error)
    check_tokens(small, [r for r in requests if r.error is None])
    assert sum(request.error is None for request in requests) >= 2

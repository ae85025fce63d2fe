"""An engine gives each request the tokens that `generate` gives it alone, whatever else runs and whoever leaves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from functools import lru_cache

import pytest
import torch

import longcat_ops
from longcat_ops import LongcatError, LongcatFlashForCausalLM, LongcatShapeError, LongcatUnsupportedError
from longcat_ops.engine.engine import Engine
from longcat_ops.engine.request import FinishReason, Request
from support import engine_runs, models
from support.covering import design
from support.engine_runs import TINY, Alone

ROWS = design(
    {"n": [1, 2, 4, 8], "batch": [1, 4, 16], "speculative": [True, False], "sampled": [False, True]}, lambda row: True
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
                speculative=row["speculative"], tokenizer=alone.tokenizer) as engine:  # fmt: skip
        requests = engine_runs.run(engine, chosen, random.Random(seed))
    runner, pool = engine._runner, engine._scheduler.pool  # whose thread has ended
    assert pool.free == pool.total and int(runner.whole.num_drafts.max()) < 0 and not runner.cache.rows.any()
    assert len(requests) == count and all(request.done for request in requests)
    problems = [engine_runs.wrong(alone, *each) for each in zip(chosen, requests, want, strict=True)]
    assert not any(problems), [(i, text) for i, text in enumerate(problems) if text][:3]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_request_has_its_own_tokens(alone: Alone, row: dict[str, int]) -> None:
    check(alone, row, 60, 0)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS[:4], ids=str)
def test_many_requests(alone: Alone, row: dict[str, int]) -> None:
    check(alone, row, 400, 1)

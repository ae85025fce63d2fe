"""Nothing of a request stays in an engine once it is done: no object, no page, no slot."""

from __future__ import annotations

import gc
import sys
import weakref

import pytest
import torch

from longcat_ops import LongcatFlashForCausalLM
from longcat_ops.engine.engine import Engine
from longcat_ops.engine.request import Request
from longcat_ops.model.passes import Step
from support import models
from support.cli_checkpoint import one_thread  # noqa: F401


@pytest.fixture(scope="module")
def small() -> LongcatFlashForCausalLM:
    return models.build(torch.bfloat16, max_position_embeddings=400)


def left_of(engine: Engine, count: int, every: int) -> tuple[int, int]:
    """(objects that Python holds more after `count` requests than after a fifth, without the times that percentiles
    are taken of; how many were aborted). No request, no page and no slot is left; the statistics have them all."""
    alive, aborted, held = weakref.WeakSet[Request](), 0, 0
    for i in range(count):
        request = engine.submit(models.prompt(1 + i % 9, seed=i % 50), 1 + i % 5)
        alive.add(request)
        if i % 17 == 3:
            engine.abort(request)
            aborted += 1
        if i % every == 0:
            engine.step()
        if i in (count // 5, count - 1):
            engine.run()
            gc.collect()
            numbers = sum(len(getattr(engine.statistics, name)) for name in ("host_ms", "first_ms", "between_ms"))
            held = sys.getallocatedblocks() - numbers - held
    del request
    for _ in range(2):  # the thread has done what it was given, and let go of it
        engine._runner._thread.submit(int).result()
    gc.collect()
    runner, pool = engine._runner, engine._scheduler.pool
    assert not alive and not runner._requests and pool.free == pool.total
    assert int(runner.whole.num_drafts.max()) < 0 and not engine.busy
    summary = engine.statistics.summary()
    assert summary.requests == count and summary.finished == {"length": count - aborted, "aborted": aborted}
    assert summary.first_token_ms is not None and summary.host_ms is not None and 0 < summary.occupancy <= 1
    assert summary.tokens > 2 * count and summary.most_pages <= 8
    return held, aborted


def test_nothing_is_left_of_300_requests(small: LongcatFlashForCausalLM) -> None:
    with Engine(small, max_batch=8, max_tokens=512, eos_token_id=-1) as engine:
        _, aborted = left_of(engine, 300, 4)
    assert aborted == 18


def test_nothing_leaks_over_10000_requests(small: LongcatFlashForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of the network are faked, all else is real."""
    c = small.config
    logits, hidden = torch.zeros(16, c.vocab_size), torch.zeros(16, c.hidden_size).bfloat16()
    layers = [torch.zeros(16, dtype=torch.uint8)] * c.num_layers

    def made(count: int) -> Step:
        return Step(logits[:count], hidden[:count], [layer[:count] for layer in layers])

    fakes = {
        "prefill": lambda *_, **__: made(1), "decode_rows": lambda ids, rows: made(len(ids)),
        "draft_prefill": lambda cache, sequence, ids, *_, **__: hidden[: len(ids)],
        "draft_rows": lambda ids, *_: hidden[: len(ids)], "head": lambda rows, *_, **__: logits[: len(rows)],
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(small, name, fake)
    with Engine(small, max_batch=8, max_tokens=512, eos_token_id=-1, graph=False) as engine:
        held, _ = left_of(engine, 10_000, 6)
    assert held < 2000  # a small object a request would be 8,000

"""Does an engine give each request the tokens that it has alone? Its steps are CUDA graphs, several to an iteration,
and the host reads them by pinned copies and events, one iteration behind. A rehearsal runs the steps one op after
another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from device_check.machine import Machine
from longcat_ops import DraftFilter, Engine, generate
from longcat_ops.engine.rank_alone import random_rank
from longcat_ops.engine.request import Request
from longcat_ops.model import LongcatFlashForCausalLM

# A score that grows with the draft's probability, which is low in a random network; about half of the drafts pass.
FILTER = DraftFilter([[8.0, 0.0, 0.0, 0.0]], [1.0, 0.0])


def texts(machine: Machine, layers: int, prompts: Sequence[int], new: int, batch: int, steps: Sequence[int],
          sizes: dict[str, int]) -> dict[str, Any]:  # fmt: skip
    """Greedy and sampled requests together, without drafts, with all of them, and with those that C2T lets pass, in
    each number of steps an iteration; then as many again, which find the captured steps."""
    model = random_rank(machine.device, layers, num_nextn_predict_layers=1, **sizes)
    ids = [torch.randint(3, model.config.vocab_size, (length,), generator=_seeded(length)) for length in prompts]
    options = [{"temperature": 0.8 * (i % 2), "seed": i} for i in range(len(ids))]
    want = [_alone(model, prompt, new, one) for prompt, one in zip(ids, options, strict=True)]
    median = _median_score(model, ids[0], new)
    ways = {"no drafts": (False, None), "all drafts": (True, None), "C2T": (True, FILTER.with_beta(median))}
    rows: dict[str, float | None] = {}
    for (name, (speculative, draft_filter)), n in itertools.product(ways.items(), steps):
        with Engine(model, max_batch=batch, max_tokens=sum(prompts) + new * len(prompts), steps_per_schedule=n,
                    speculative=speculative, draft_filter=draft_filter, eos_token_id=-1) as engine:  # fmt: skip
            for turn in range(2):
                requests = [engine.submit(prompt, new, **one) for prompt, one in zip(ids, options, strict=True)]
                engine.run()
                for request, tokens in zip(requests, want, strict=True):
                    _compare(f"{name}, n = {n}, turn {turn}", request, tokens)
            rows[f"{name}, n = {n}"] = engine.statistics.summary().rows_per_token
    return {"requests": 2 * len(ids) * len(rows), "rows_per_token": rows} | (
        {} if machine.real else {"rehearsed": "no graphs"}
    )


def _alone(model: LongcatFlashForCausalLM, prompt: torch.Tensor, new: int, options: dict[str, Any]) -> list[int]:
    made = generate(model, [prompt], new, speculative=False, graph=False, eos_token_id=-1, **options)
    return made.sequences[0][len(prompt) :].tolist()


def _median_score(model: LongcatFlashForCausalLM, prompt: torch.Tensor, new: int) -> float:
    """Of the drafts of one text."""
    from longcat_ops.engine.c2t_training import trace

    found = trace(model, prompt.tolist(), _alone(model, prompt, new, {}))
    return float(FILTER.scores(found.features).median())


def _compare(name: str, request: Request, tokens: list[int]) -> None:
    assert request.error is None, f"{name}: {request.error}"
    got = request.tokens
    differs = next((i for i, pair in enumerate(zip(got, tokens, strict=False)) if pair[0] != pair[1]), len(got))
    assert got == tokens, f"{name}, request {request.number}: token {differs} of {len(tokens)} differs"


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)

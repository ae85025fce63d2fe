"""Requests with random arrivals, aborts and stop strings, and what each must have: the tokens of `generate` alone."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch

from longcat_ops import LongcatFlashForCausalLM, generate
from longcat_ops.engine.checks import check_stop_ids
from longcat_ops.engine.engine import Engine
from longcat_ops.engine.request import FinishReason, Request
from longcat_ops.engine.text import load_tokenizer

TINY = Path(__file__).parents[2] / "checkpoints" / "longcat-tiny"
LENGTHS = [1, 1, 2, 2, 3, 4, 5, 6, 8, 13, 21, 63]
LONG = 514  # more than one chunk
STOPS = (" the", "ord", ", and", "eth")


@dataclass(frozen=True)
class Case:
    """One request: what is submitted, and when it is aborted, in tokens that it has; None: never."""

    prompt: torch.Tensor
    new: int
    temperature: float
    seed: int
    stop: tuple[str, ...]
    ignore_eos: bool
    abort_at: int | None


def cases(count: int, sampled: bool, seed: int = 0) -> list[Case]:
    draw, found = random.Random(seed), []
    for i in range(count):
        length = LONG if i % 60 == 7 else draw.choice(LENGTHS)
        prompt = torch.randint(3, 1024, (length,), generator=torch.Generator().manual_seed(1000 * seed + i))
        temperature = draw.choice([0.5, 0.9, 1.3]) if sampled and i % 4 else 0.0
        stop = (draw.choice(STOPS),) if draw.random() < 0.4 else ()
        abort_at = draw.randrange(12) if draw.random() < 0.15 else None
        new = draw.choice([1, 2, 3, 7, 12, 24, 40])
        found.append(Case(prompt, new, temperature, i, stop, draw.random() < 0.3, abort_at))
    return found


class Alone:
    """What each case makes alone: ids of `generate`, and text by the tokenizer."""

    def __init__(self, model: LongcatFlashForCausalLM) -> None:
        self.model, self.tokenizer = model, load_tokenizer(TINY)
        self.eos = check_stop_ids(model.config, None)

    def tokens(self, case: Case) -> list[int]:
        eos = -1 if case.ignore_eos else None
        made = generate(self.model, [case.prompt], case.new, temperature=case.temperature, seed=case.seed,
                        eos_token_id=eos)  # fmt: skip
        return made.sequences[0][len(case.prompt) :].tolist()

    def stopped(self, case: Case, tokens: list[int]) -> tuple[list[int], str, bool]:
        """(tokens up to the one that completes a stop string, the text ahead of it, whether there is one)."""
        for count in range(1, len(tokens) + 1):
            text = self.tokenizer.decode(tokens[:count])
            found = [at for stop in case.stop if (at := text.find(stop)) >= 0]
            if found:
                return tokens[:count], text[: min(found)], True
        return tokens, self.tokenizer.decode(tokens), False


def run(engine: Engine, chosen: list[Case], arrivals: random.Random) -> list[Request]:
    """Submits the cases while the engine runs, and aborts those that are to be aborted."""
    left, requests = list(chosen), []
    while left or engine.busy:
        for _ in range(min(len(left), arrivals.choice([0, 0, 1, 2, 9]) if engine.busy else 3)):
            case = left.pop(0)
            requests.append(engine.submit(
                case.prompt, case.new, temperature=case.temperature, seed=case.seed, stop=case.stop,
                ignore_eos=case.ignore_eos,
            ))  # fmt: skip
        engine.step()
        for case, request in zip(chosen, requests, strict=False):
            if case.abort_at is not None and len(request.tokens) >= case.abort_at:
                engine.abort(request)
    return requests


def wrong(alone: Alone, case: Case, request: Request, want: list[int]) -> str:
    """What a request has that it must not have; "" if nothing."""
    tokens, text, stopped = alone.stopped(case, want)
    if request.aborted:
        same = request.tokens == tokens[: len(request.tokens)]
        return "" if same and case.abort_at is not None else f"aborted with {request.tokens}, alone {tokens}"
    if request.tokens != tokens or request.text.strip() != text.strip():
        return f"{request.tokens} {request.text!r}, alone {tokens} {text!r}"
    if stopped:
        right = FinishReason.STOP
    else:
        ended = not case.ignore_eos and tokens[-1] in alone.eos
        right = FinishReason.EOS if ended else FinishReason.LENGTH
    return "" if request.finish_reason is right else f"{request.finish_reason}, expected {right}"

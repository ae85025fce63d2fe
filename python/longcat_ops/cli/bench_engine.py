"""`python -m longcat_ops bench-engine`: the engine beside `generate` for one prompt after the other, in the same run.

Greedy, by exactly --max-new-tokens, without stops. All ways take turns in rounds behind a warm-up, in which their
tokens are compared: exit code 1 if any differ. --json prints one object:

    checkpoint, identical      its folder; whether all ways made the same tokens
    run                        device, threads, dtype, requests, prompt_tokens, max_new_tokens, rounds, seed (null with
                               --prompts)
    ways                       of each: way (engine or one by one), batch, steps_per_schedule (null for one by one),
                               drafts (whether the MTP head drafts), tokens_per_second (p10, median, p90 over rounds, of
                               new tokens, prompts included), ratio (of its median to that of one by one, drafts alike),
                               between_tokens_ms (p50, p99 of one request; tokens that the host learns together are 0
                               apart), host_ms (median of an iteration: the host's time without its wait for the
                               device; null for one by one), acceptance (null without drafts)
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ..engine.engine import Engine
from ..engine.generate import generate
from ..engine.text import load_tokenizer
from ..errors import LongcatShapeError, message
from ..model import LongcatFlashConfig, LongcatFlashForCausalLM
from ..model.cache import PAGE_SIZE
from . import terminal
from .batch_prompts import read_prompts
from .generate import device_of, folder_of
from .main import DIFFERENT

LENGTHS = (1, 7, 20, 64, 150, 300)  # of random prompts, as far as the context has room


@dataclass
class _Way:
    """One way of decoding all prompts, and what its timed rounds gave. run: returns the tokens of each."""

    name: str
    batch: int
    steps: int | None
    drafts: bool
    run: Callable[[], list[list[int]]]
    rates: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)  # ms
    host: list[float] = field(default_factory=list)  # ms
    drafted: int = 0
    accepted: int = 0

    def forget(self) -> None:
        """What the warm-up gave."""
        self.between.clear()
        self.host.clear()
        self.drafted = self.accepted = 0


def run(args: argparse.Namespace) -> int:
    folder = folder_of(args)
    config, _ = LongcatFlashConfig.read_files(folder)
    device_of(args.device)
    prompts = _prompts(args, folder, config)
    if args.threads:
        torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype) if args.dtype else None
    model = LongcatFlashForCausalLM.from_pretrained(folder, device=args.device, dtype=dtype, precision=args.precision)
    ways, engines = [], []
    try:
        for drafts in (False, True) if model.mtp is not None else (False,):
            ways.append(_one_by_one(model, prompts, args.max_new_tokens, drafts))
            for batch in dict.fromkeys(args.batch):
                for steps in dict.fromkeys(args.steps_per_schedule):
                    engines.append(_engine(model, prompts, args.max_new_tokens, batch, steps, drafts))
                    ways.append(_together(engines[-1], prompts, args.max_new_tokens, batch, steps, drafts))
        identical = _time(ways, args.rounds, len(prompts) * args.max_new_tokens)
    finally:
        for engine in engines:
            engine.close()
    facts: dict[str, Any] = {
        "checkpoint": str(folder), "identical": identical, "run": _run_facts(args, model, prompts),
        "ways": [_facts(way, ways) for way in ways],
    }  # fmt: skip
    print(json.dumps(facts, indent=2) if args.json else "\n".join(_table(facts)))
    return 0 if identical else DIFFERENT


def _prompts(args: argparse.Namespace, folder: Any, config: LongcatFlashConfig) -> list[Tensor]:
    """Those of --prompts, or random ones of mixed lengths."""
    if args.prompts is not None:
        alike = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "stop": None}
        shared = argparse.Namespace(prompts=args.prompts, max_new_tokens=args.max_new_tokens, **alike)
        found = read_prompts(shared, config, load_tokenizer(folder))
        return [torch.tensor(one.ids[: _room(args, config)]) for one in found.asked]
    draw = random.Random(args.seed)
    lengths = [n for n in LENGTHS if n <= _room(args, config)]
    count = args.requests or max(args.batch)
    return [
        torch.tensor([draw.randrange(config.vocab_size) for _ in range(lengths[i % len(lengths)])])
        for i in range(count)
    ]


def _room(args: argparse.Namespace, config: LongcatFlashConfig) -> int:
    room = config.max_position_embeddings - args.max_new_tokens
    if room < 1:
        expected = f"at most max_position_embeddings - 1 = {config.max_position_embeddings - 1}"
        raise LongcatShapeError(message("bench-engine", "--max-new-tokens", args.max_new_tokens, expected))
    return room


def _one_by_one(model: LongcatFlashForCausalLM, prompts: list[Tensor], new: int, drafts: bool) -> _Way:
    def run() -> list[list[int]]:
        made = []
        for prompt in prompts:
            times: list[float] = []
            one = generate(model, [prompt], new, eos_token_id=-1, speculative=drafts,
                           on_token=lambda *_, times=times: times.append(perf_counter()))  # fmt: skip
            way.between += _gaps(times)
            way.drafted += one.drafted[0]
            way.accepted += one.accepted[0]
            made.append(one.sequences[0][len(prompt) :].tolist())
        return made

    way = _Way("one by one", 1, None, drafts, run)
    return way


def _engine(
    model: LongcatFlashForCausalLM, prompts: list[Tensor], new: int, batch: int, steps: int, drafts: bool
) -> Engine:
    pages = sorted((-(-(len(prompt) + new - 1) // PAGE_SIZE) for prompt in prompts), reverse=True)
    return Engine(model, max_batch=batch, max_tokens=sum(pages[:batch]) * PAGE_SIZE, steps_per_schedule=steps,
                  speculative=drafts, eos_token_id=-1)  # fmt: skip


def _together(engine: Engine, prompts: list[Tensor], new: int, batch: int, steps: int, drafts: bool) -> _Way:
    def run() -> list[list[int]]:
        requests = [engine.submit(prompt, new) for prompt in prompts]
        engine.statistics.host_ms.clear()
        engine.run()
        way.host += engine.statistics.host_ms
        for request in requests:
            if request.error is not None:
                raise request.error
            way.between += _gaps(request.token_times)
            way.drafted += request.drafted
            way.accepted += request.accepted
        return [request.tokens for request in requests]

    way = _Way("engine", batch, steps, drafts, run)
    return way


def _gaps(times: list[float]) -> list[float]:
    return [1e3 * (b - a) for a, b in pairwise(times)]


def _time(ways: list[_Way], rounds: int, tokens: int) -> bool:
    """Runs all ways in turns; whether all made the same tokens."""
    bar = terminal.bar("rounds", len(ways) * (rounds + 1), unit="run")
    first, identical = None, True
    for number in range(rounds + 1):
        for way in ways:
            start = perf_counter()
            made = way.run()
            seconds = perf_counter() - start
            first = made if first is None else first
            identical = identical and made == first
            if number == 0:
                way.forget()
            else:
                way.rates.append(tokens / seconds)
            bar.update(1)
    bar.close()
    return identical


def _facts(way: _Way, ways: list[_Way]) -> dict[str, Any]:
    alone = next(other for other in ways if other.steps is None and other.drafts == way.drafts)
    return {
        "way": way.name, "batch": way.batch, "steps_per_schedule": way.steps, "drafts": way.drafts,
        "tokens_per_second": cuts(way.rates, 10, 50, 90),
        "ratio": statistics.median(way.rates) / statistics.median(alone.rates),
        "between_tokens_ms": cuts(way.between, 50, 99),
        "host_ms": statistics.median(way.host) if way.host else None,
        "acceptance": way.accepted / way.drafted if way.drafted else None,
    }  # fmt: skip


def cuts(values: list[float], *percents: int) -> list[float]:
    """Percentiles of values."""
    if len(values) == 1:
        return values * len(percents)
    hundredths = statistics.quantiles(values, n=100, method="inclusive")
    return [hundredths[percent - 1] for percent in percents]


def _run_facts(args: argparse.Namespace, model: LongcatFlashForCausalLM, prompts: list[Tensor]) -> dict[str, Any]:
    return {
        "device": str(model.device), "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."), "requests": len(prompts),
        "prompt_tokens": sum(map(len, prompts)), "max_new_tokens": args.max_new_tokens, "rounds": args.rounds,
        "seed": args.seed if args.prompts is None else None,
    }  # fmt: skip


def _table(facts: dict[str, Any]) -> list[str]:
    r = facts["run"]
    of = f"{r['requests']} prompts of {r['prompt_tokens']} tokens together, {r['max_new_tokens']} new ones each"
    where = f"{r['device']}, {r['threads']} threads, {r['dtype']}, {r['rounds']} rounds in turns"
    head = f"{'':12}{'batch':>6}{'steps':>6}{'drafts':>8}{'tokens/s (p10 .. p90)':>29}{'ratio':>7}"
    found = [
        f"{facts['checkpoint']}: {of}; {where}", "",
        f"{head}{'between p50':>13}{'p99 ms':>9}{'host ms':>9}{'accepted':>10}",
    ]  # fmt: skip
    for way in facts["ways"]:
        low, median, high = way["tokens_per_second"]
        steps = "-" if way["steps_per_schedule"] is None else way["steps_per_schedule"]
        host = "-" if way["host_ms"] is None else f"{way['host_ms']:.2f}"
        accepted = "-" if way["acceptance"] is None else f"{way['acceptance']:.1%}"
        rate = f"{median:.1f} ({low:.1f} .. {high:.1f})"
        found.append(
            f"{way['way']:12}{way['batch']:>6}{steps:>6}{'yes' if way['drafts'] else 'no':>8}{rate:>29}"
            f"{way['ratio']:>7.2f}{way['between_tokens_ms'][0]:>13.2f}{way['between_tokens_ms'][1]:>9.2f}{host:>9}"
            f"{accepted:>10}"
        )
    same = "the same" if facts["identical"] else "DIFFERENT"
    return [*found, "", f"all ways made {same} tokens; ratio: to one by one, drafts alike"]

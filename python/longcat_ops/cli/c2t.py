"""`python -m longcat_ops c2t CHECKPOINT --prompts FILE`: train the classifier that says which drafts to verify.

The prompts are continued greedily. Eight tenths of the texts train it, one tenth calibrates it, and the last judges it
and is decoded once more for each of --betas, in turns: plainly, with all drafts, and with those that reach beta. The
classifier goes to c2t.json in the checkpoint's folder, which `generate --beta` reads. Exit code 1: a text changed.
--json prints one object:

    output, classifier     the file; units, top, beta
    traces                 texts, drafts: [trained on, calibrated on, judged by]
    judgement              samples, acceptance, log_loss, base_log_loss, calibration_error, auc (engine/c2t_training.py)
    costs                  draft, verify: over a target pass of a row a sequence, as this machine has them now
    best                   beta (null: no draft is worth its row), speed_up: by these costs, on the judging drafts
    run                    checkpoint, device, threads, dtype, prompts, max_new_tokens, batch, rounds, seed
    ways                   of each: way (plain, all drafts, beta), beta, verified (share of a step's drafts), accepted
                           (of those), rows_per_token, tokens_per_step, rows_saved (of those that verify all drafts),
                           tokens_lost (a step, likewise), tokens_per_second (p10, median, p90), speed_up (over plain),
                           predicted (the speed-up by costs and formula), identical
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from ..engine.c2t import FILE_NAME, DraftFilter
from ..engine.c2t_training import Judgement, Traces, judge, trace, train
from ..engine.engine import Engine
from ..engine.measure import draft_costs
from ..engine.text import load_tokenizer
from ..errors import LongcatShapeError, LongcatUnsupportedError, message
from ..model import LongcatFlashConfig, LongcatFlashForCausalLM
from ..model.cache import PAGE_SIZE
from ..perf.speculation import best_threshold, speed_up
from . import terminal
from .batch_prompts import Asked, read_prompts
from .bench_engine import cuts
from .generate import device_of, folder_of
from .main import DIFFERENT

FEWEST, COST_TOKENS = 10, 24  # prompts; new tokens of the batch that costs are taken of


@dataclass
class _Way:
    """One way of decoding the texts that judge, and what its rounds gave."""

    name: str
    beta: float | None
    engine: Engine
    seconds: list[float] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    steps: int = 0  # of the last round, as the next three
    stepped: int = 0  # tokens
    drafted: int = 0
    accepted: int = 0

    def run(self, asked: Sequence[Asked]) -> None:
        start = perf_counter()
        requests = [self.engine.submit(one.ids, one.max_new_tokens) for one in asked]
        self.engine.run()
        self.seconds.append(perf_counter() - start)
        for request in requests:
            if request.error is not None:
                raise request.error
        self.tokens = [request.tokens for request in requests]
        self.steps, self.drafted, self.accepted = (
            sum(getattr(request, name) for request in requests) for name in ("steps", "drafted", "accepted")
        )
        self.stepped = sum(len(tokens) - 1 for tokens in self.tokens)


def run(args: argparse.Namespace) -> int:
    folder = folder_of(args)
    config, _ = LongcatFlashConfig.read_files(folder)
    device_of(args.device)
    shared = argparse.Namespace(
        prompts=args.prompts, max_new_tokens=args.max_new_tokens, temperature=0.0, top_k=0, top_p=1.0, stop=None
    )
    asked = read_prompts(shared, config, load_tokenizer(folder)).asked
    if len(asked) < FEWEST:
        raise LongcatShapeError(message("c2t", "--prompts", f"{len(asked)} prompts", f"at least {FEWEST}"))
    if args.threads:
        torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype) if args.dtype else None
    model = LongcatFlashForCausalLM.from_pretrained(folder, device=args.device, dtype=dtype, precision=args.precision)
    if model.mtp is None:
        raise LongcatUnsupportedError(message("c2t", "CHECKPOINT", f"{folder}, without MTP head", "one that drafts"))
    parts, texts = _traces(model, asked, args.batch)
    joined = [Traces.join(part) for part in parts]
    if not len(joined[2].accepted):
        got = "a last tenth whose texts all end at once"
        raise LongcatShapeError(message("c2t", "--prompts", got, "texts to judge by", fix="give it more prompts"))
    classifier = train(*joined[:2], units=args.units, steps=args.steps, seed=args.seed)
    verdict = judge(classifier, joined[2])
    counts = {"texts": [len(part) for part in parts], "drafts": [len(one.accepted) for one in joined]}
    about = {"checkpoint": folder.resolve().name, **counts, "judgement": asdict(verdict)}
    held_out = asked[len(asked) - len(parts[2]) :]
    costs = draft_costs(model, [torch.tensor(one.ids) for one in held_out[: args.batch]],
                        min(COST_TOKENS, args.max_new_tokens))  # fmt: skip
    best, gain = best_threshold(classifier.scores(joined[2].features).tolist(), *costs)
    beta = min(1.0, round(best, 3)) if args.beta is None else args.beta
    classifier = DraftFilter(classifier.hidden, classifier.output, beta, classifier.top, about)
    output = Path(args.output) if args.output else folder / FILE_NAME
    classifier.save(output)
    ways = _decode(model, classifier, held_out, args)
    facts: dict[str, Any] = {
        "output": str(output),
        "classifier": {"units": len(classifier.hidden), "top": classifier.top, "beta": classifier.beta},
        "traces": counts, "judgement": asdict(verdict), "costs": dict(zip(("draft", "verify"), costs, strict=True)),
        "best": {"beta": best if best <= 1 else None, "speed_up": gain},
        "run": {"checkpoint": str(folder), "device": str(model.device), "threads": torch.get_num_threads(),
                "dtype": str(model.dtype).removeprefix("torch."), "prompts": len(held_out),
                "max_new_tokens": args.max_new_tokens, "batch": args.batch, "rounds": args.rounds, "seed": args.seed},
        "ways": [_facts(way, ways, costs) for way in ways],
    }  # fmt: skip
    same = all(way.tokens == texts[len(asked) - len(held_out) :] for way in ways)
    print(json.dumps(facts, indent=2) if args.json else "\n".join(_table(facts, verdict)))
    return 0 if same else DIFFERENT


def _traces(
    model: LongcatFlashForCausalLM, asked: Sequence[Asked], batch: int
) -> tuple[list[list[Traces]], list[list[int]]]:
    """(traces of the texts that train, that calibrate, that judge; new tokens of every text)."""
    bar = terminal.bar("texts", len(asked), unit="text")
    with _engine(model, asked, batch, None, True) as engine:
        requests = [engine.submit(one.ids, one.max_new_tokens) for one in asked]
        done = 0
        while engine.step():
            now = sum(request.done for request in requests)
            bar.update(now - done)
            done = now
        bar.update(len(asked) - done)
        stops = engine.eos
    bar.close()
    found, bar = [], terminal.bar("traces", len(asked), unit="text")
    for request in requests:
        if request.error is not None:
            raise request.error
        ended = bool(request.tokens) and request.tokens[-1] in stops
        found.append(trace(model, request.prompt, request.tokens[: len(request.tokens) - ended]))
        bar.update(1)
    bar.close()
    tenth = max(1, len(asked) // 10)
    cuts_at = len(asked) - 2 * tenth, len(asked) - tenth
    return [found[: cuts_at[0]], found[cuts_at[0] : cuts_at[1]], found[cuts_at[1] :]], [r.tokens for r in requests]


def _engine(model: LongcatFlashForCausalLM, asked: Sequence[Asked], batch: int, draft_filter: DraftFilter | None,
            speculative: bool) -> Engine:  # fmt: skip
    pages = sorted((one.pages for one in asked), reverse=True)
    return Engine(model, max_batch=min(batch, len(asked)), max_tokens=sum(pages[:batch]) * PAGE_SIZE,
                  speculative=speculative, draft_filter=draft_filter)  # fmt: skip


def _decode(
    model: LongcatFlashForCausalLM, classifier: DraftFilter, asked: Sequence[Asked], args: argparse.Namespace
) -> list[_Way]:
    """All ways in turns, behind a warm-up."""
    ways: list[_Way] = []
    try:
        for name, beta in (("plain", None), ("all drafts", None), *(("beta", beta) for beta in args.betas)):
            chosen = None if beta is None else classifier.with_beta(beta)
            ways.append(_Way(name, beta, _engine(model, asked, args.batch, chosen, name != "plain")))
        bar = terminal.bar("rounds", len(ways) * (args.rounds + 1), unit="run")
        for number in range(args.rounds + 1):
            for way in ways:
                way.run(asked)
                if number == 0:
                    way.seconds.clear()
                bar.update(1)
        bar.close()
    finally:
        for way in ways:
            way.engine.close()
    return ways


def _facts(way: _Way, ways: list[_Way], costs: tuple[float, float]) -> dict[str, Any]:
    plain, every, *_ = ways
    length = way.stepped / way.steps
    rates = [sum(map(len, way.tokens)) / seconds for seconds in way.seconds]
    draft_cost, verify_cost = costs
    drafts = int(way is not plain)
    of_step = 1 + way.drafted / way.steps * (verify_cost - 1)  # of a step that verifies some of its drafts
    return {
        "way": way.name, "beta": way.beta, "verified": way.drafted / way.steps if drafts else None,
        "accepted": way.accepted / way.drafted if way.drafted else None,
        "rows_per_token": (way.steps + way.drafted) / way.stepped,
        "tokens_per_step": length,
        "rows_saved": 1 - way.drafted / every.drafted if drafts else None,
        "tokens_lost": 1 - length * every.steps / every.stepped if drafts else None,
        "tokens_per_second": cuts(rates, 10, 50, 90),
        "speed_up": statistics.median(plain.seconds) / statistics.median(way.seconds),
        "predicted": speed_up(length, drafts, draft_cost, of_step), "identical": way.tokens == plain.tokens,
    }  # fmt: skip


def _table(facts: dict[str, Any], verdict: Judgement) -> list[str]:
    r, traces, costs = facts["run"], facts["traces"], facts["costs"]
    auc = "-" if verdict.auc is None else f"{verdict.auc:.3f}"
    out = [
        f"{facts['output']}: {facts['classifier']['units']} units, beta {facts['classifier']['beta']:g}; trained on "
        f"{traces['drafts'][0]} drafts of {traces['texts'][0]} texts, calibrated on {traces['drafts'][1]}",
        f"judged by {verdict.samples} drafts of {traces['texts'][2]} other texts: {verdict.acceptance:.1%} accepted, "
        f"log loss {verdict.log_loss:.3f} (always the mean: {verdict.base_log_loss:.3f}), calibration error "
        f"{verdict.calibration_error:.3f}, AUC {auc}",
        f"{r['checkpoint']}: {r['prompts']} prompts, batch {r['batch']}, {r['max_new_tokens']} new tokens; "
        f"{r['device']}, {r['threads']} threads, {r['dtype']}, {r['rounds']} rounds in turns",
        f"a draft costs {costs['draft']:.2f}, its verification {costs['verify'] - 1:.2f} of a target pass: by the "
        f"formula beta is best at {'none' if facts['best']['beta'] is None else format(facts['best']['beta'], '.3f')}, "
        f"{facts['best']['speed_up']:.2f} times as fast as plain",
        "",
        f"{'':12}{'beta':>6}{'verified':>10}{'accepted':>10}{'rows/token':>12}{'saved':>8}{'tokens/step':>13}"
        f"{'lost':>7}{'tokens/s':>10}{'speed-up':>10}{'formula':>9}",
    ]  # fmt: skip
    for way in facts["ways"]:
        beta = "-" if way["beta"] is None else f"{way['beta']:g}"
        verified, accepted, saved, lost = (
            "-" if way[name] is None else f"{way[name]:.1%}"
            for name in ("verified", "accepted", "rows_saved", "tokens_lost")
        )
        out.append(
            f"{way['way']:12}{beta:>6}{verified:>10}{accepted:>10}{way['rows_per_token']:>12.3f}{saved:>8}"
            f"{way['tokens_per_step']:>13.3f}{lost:>7}{way['tokens_per_second'][1]:>10.1f}{way['speed_up']:>10.2f}"
            f"{way['predicted']:>9.2f}"
        )
    same = "the same" if all(way["identical"] for way in facts["ways"]) else "DIFFERENT"
    return [*out, "", f"all ways made {same} tokens"]

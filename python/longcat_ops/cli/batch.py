"""`python -m longcat_ops generate --prompts FILE --output FILE`: many prompts at once, each with the text it has alone.

The output's first line says which run it belongs to: `run`, `version`, `prompts` (sha256 and number of the file's
lines), `checkpoint` (sha256 of its small files and of names and sizes of its weights) and `options`. A line for each
request follows, in the order in which they finish:

    index, id                  of the line in FILE, from 0, and its "id", if it has one
    prompt, text, tokens       the prompt, what follows it, and that as token ids
    finish_reason              eos, stop or length
    accepted, drafted          drafts of the MTP head; --steps-per-schedule and --beta may change how many there are
    seed                       of a sampled text: `generate --prompt ... --seed` gives it again
    seconds                    from the time at which it had a place in the batch

A run that was interrupted goes on when the same command is given again. Options that change no text may change:
--batch, --beta, --max-tokens-in-cache, --steps-per-schedule. Requests that failed have no line; they are named on
stderr, and tried again then.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import sys
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__
from ..engine.c2t import DraftFilter
from ..engine.checks import check_sampling
from ..engine.engine import Engine
from ..engine.request import FinishReason, Request
from ..engine.statistics import Summary
from ..engine.text import load_tokenizer
from ..errors import LongcatShapeError, message
from ..model import LongcatFlashConfig, LongcatFlashForCausalLM, files
from ..model.cache import PAGE_SIZE
from . import terminal
from .batch_output import Output
from .batch_prompts import Asked, Prompts, read_prompts
from .generate import device_of, folder_of
from .main import DIFFERENT, INTERRUPTED

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT_BATCH, DEFAULT_STEPS = 16, 4


def run(args: argparse.Namespace) -> int:
    folder = folder_of(args)
    config, _ = LongcatFlashConfig.read_files(folder)
    tokenizer = load_tokenizer(folder)
    check_sampling(args.temperature, args.top_k, args.top_p, args.draft, args.seed)
    device_of(args.device)
    prompts = read_prompts(args, config, tokenizer)
    batch = min(args.batch or DEFAULT_BATCH, len(prompts.asked))
    tokens = tokens_in_cache(prompts, batch, args.max_tokens_in_cache)
    output = Output(args.output)
    try:
        header = _header(args, folder, prompts, output.header)
        output.require_same(header, len(prompts.asked))
        left = [one for one in prompts.asked if one.index not in output.done]
        if not left:
            print(f"all {len(prompts.asked)} requests are in {output.path} already", file=sys.stderr)
            return 0
        return _Run(args, folder, tokenizer, prompts, output, header).all_of(left, batch, tokens)
    finally:
        output.close()


def tokens_in_cache(prompts: Prompts, batch: int, given: int | None) -> int:
    """Tokens that the cache holds: as given, if every request fits alone, else what the `batch` longest ones need."""
    pages = sorted((one.pages for one in prompts.asked), reverse=True)
    if given is None:
        return max(1, sum(pages[:batch])) * PAGE_SIZE
    longest = max(prompts.asked, key=lambda one: one.pages)
    if longest.pages > -(-given // PAGE_SIZE):
        expected = f"at least {longest.pages * PAGE_SIZE}, for {prompts.line(longest.index)}"
        raise LongcatShapeError(message("generate", "--max-tokens-in-cache", given, expected))
    return given


def _header(args: argparse.Namespace, folder: Path, prompts: Prompts, old: dict[str, Any] | None) -> dict[str, Any]:
    """What all lines of an output have in common. A run that goes on without --seed has the seed of the first one."""
    before = (old or {}).get("options")
    seed = before.get("seed") if isinstance(before, dict) else None
    if args.seed is not None or not isinstance(seed, int):
        seed = secrets.randbits(31) if args.seed is None else args.seed
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "speculative", "dtype", "precision")
    options = {name: getattr(args, name) for name in names} | {"stop": args.stop or [], "seed": seed}
    return {
        "version": __version__, "prompts": {"sha256": prompts.sha256, "requests": len(prompts.asked)},
        "checkpoint": _fingerprint(folder), "options": options | {"device": torch.device(args.device).type},
    }  # fmt: skip


def _fingerprint(folder: Path) -> str:
    """Of a checkpoint: its small files, and names and sizes of its weights, which are too large to be read for it."""
    found = hashlib.sha256()
    for name in ("config.json", "generation_config.json", "tokenizer.json", "precision.json"):
        if files.exists(folder / name):
            found.update(f"{name}\n{files.read_text(folder / name, files.MAX_INDEX)}".encode("utf-8", "replace"))
    for file in files.weight_files(folder):
        found.update(f"{file.name} {files.require_regular(file).st_size}\n".encode())
    return found.hexdigest()


class _Run:
    """The requests of one command, through an engine and into the output."""

    def __init__(self, args: argparse.Namespace, folder: Path, tokenizer: Tokenizer, prompts: Prompts, output: Output,
                 header: dict[str, Any]) -> None:  # fmt: skip
        self.args, self.folder, self.tokenizer, self.prompts, self.output = args, folder, tokenizer, prompts, output
        self.draft_filter = None if args.beta is None else DraftFilter.load(folder, args.beta)
        self.header, self.seed, self.failed = header, header["options"]["seed"], 0

    def all_of(self, left: list[Asked], batch: int, tokens: int) -> int:
        """Decodes what is left; the exit code."""
        args, total = self.args, len(self.prompts.asked)
        if args.threads:
            torch.set_num_threads(args.threads)
        model = LongcatFlashForCausalLM.from_pretrained(
            self.folder, device=args.device, precision=args.precision,
            dtype=getattr(torch, args.dtype) if args.dtype else None,
        )  # fmt: skip
        engine = Engine(
            model, max_batch=min(batch, len(left)), max_tokens=tokens, speculative=args.speculative,
            steps_per_schedule=args.steps_per_schedule or DEFAULT_STEPS, tokenizer=self.tokenizer,
            draft_filter=self.draft_filter,
        )  # fmt: skip
        self.output.begin(self.header)
        bar = terminal.bar("decoding", total, len(self.output.done))
        try:
            with engine:
                self._decode(engine, left, min(batch, len(left)), bar)
        except KeyboardInterrupt:
            bar.close()
            done = len(self.output.done)
            text = f"\ninterrupted: {done} of {total} requests are in {self.output.path}, {total - done} are left."
            print(f"{text}\n  to go on: the same command again", file=sys.stderr)
            return INTERRUPTED
        bar.close()
        self._report(engine.statistics.summary())
        return DIFFERENT if self.failed else 0

    def _decode(self, engine: Engine, left: list[Asked], batch: int, bar: Any) -> None:
        """A request is submitted when there is a place for it, so that its times are its own."""
        waiting, live, made, start = iter(left), [], 0, perf_counter()
        while True:
            live += [(one, self._submit(engine, one)) for one in islice(waiting, batch - len(live))]
            if not live:
                return
            if not any(request.done for _, request in live):
                engine.step()
            for one, request in live:
                if request.done:
                    self._finished(one, request)
                    made += len(request.tokens)
                    bar.update(1)
                    bar.set_postfix_str(f"{made / (perf_counter() - start):.0f} tokens/s")
            live = [(one, request) for one, request in live if not request.done]

    def _submit(self, engine: Engine, one: Asked) -> Request:
        return engine.submit(one.ids, one.max_new_tokens, **one.options | {"seed": one.seed(self.seed)})

    def _finished(self, one: Asked, request: Request) -> None:
        if request.finish_reason is FinishReason.ERROR:
            self.failed += 1
            print(f"longcat_ops: {self.prompts.line(one.index)}: {request.error}", file=sys.stderr)
            return
        name = {} if one.name is None else {"id": one.name}
        seed = {"seed": one.seed(self.seed)} if one.options["temperature"] > 0 else {}
        last = request.token_times[-1] if request.token_times else request.submitted
        self.output.add({
            "index": one.index, **name, "prompt": one.prompt, "text": request.text, "tokens": request.tokens,
            "finish_reason": request.finish_reason.value, "accepted": request.accepted, "drafted": request.drafted,
            **seed, "seconds": round(last - request.submitted, 6),
        })  # fmt: skip

    def _report(self, summary: Summary) -> None:
        if self.args.json:
            print(json.dumps({"output": self.output.path, "failed": self.failed, **asdict(summary)}, indent=2))
        elif self.args.report:
            print("\n".join(lines(summary)), file=sys.stderr)
        if self.failed:
            text = f"{self.failed} requests failed and are not in {self.output.path}"
            print(f"longcat_ops: {text}; the same command again tries them once more", file=sys.stderr)


def lines(s: Summary) -> list[str]:
    """What an engine has done, for people."""
    ends = ", ".join(f"{count} {reason}" for reason, count in s.finished.items())

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    def times(value: tuple[float, float] | None) -> str:
        return "-" if value is None else f"p50 {value[0]:.1f} ms, p99 {value[1]:.1f} ms"

    rows = "" if s.rows_per_token is None else f", {s.rows_per_token:.2f} rows of the target a token"
    speed = "-" if s.tokens_per_second is None else f"{s.tokens_per_second:.1f} tokens/s"
    return [
        f"requests        {s.requests} ({ends})",
        f"tokens          {s.prompt_tokens} of prompts, {s.tokens} new in {s.seconds:.2f} s: {speed}",
        f"first token     {times(s.first_token_ms)}",
        f"between tokens  {times(s.between_tokens_ms)}",
        f"drafts          {share(s.accepted)} accepted{rows}",
        f"batch           {share(s.occupancy)} in use over {s.iterations} iterations",
        f"cache           {share(s.pages)} of its pages in use, {s.most_pages} at most",
        f"zero experts    {share(s.zero_experts)} of the choices",
    ]

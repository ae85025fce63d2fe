"""`python -m longcat_ops generate`: text as it comes, then how the decoding went.

--json prints one object. Rates and seconds are of the best of `rounds` runs and leave the prompt's passes out; an
object is null when it was not measured, a number when it is not defined.

    prompt, text, ids          the prompt, what follows it, and that as token ids
    checkpoint                 path, layers, ffn_experts, zero_experts, top_k, mtp, file_bytes, load_seconds,
                               fp8_projections of projections (the experts of a layer count as one)
    run                        device, threads, dtype, backends (op -> backend), speculative, draft, temperature, top_k,
                               top_p, seed, beta (null: all drafts are verified), row_by_row (whether each row of a
                               decode pass runs alone, for want of kernels that keep rows apart)
    decode                     new_tokens, steps (target passes after the prompt's), drafted, accepted, acceptance,
                               tokens_per_step and tokens_per_second (the first token left out), seconds,
                               prompt_tokens, prompt_seconds, rounds
    plain                      identical, seconds, tokens_per_second, speedup: plain decoding of the same request
    teacher_forced             acceptance, positions, text (which one)
    experts                    FFN experts per token and layer: top_k, mean, min, max, zero_share, by_layer,
                               histogram (0 .. top_k), target (of training, if the checkpoint says so)
    parts                      attention, dense FFN, MoE, MTP, head and rest -> ms_per_token, share
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from .. import doctor
from ..engine import measure
from ..engine.c2t import DraftFilter
from ..engine.checks import check_prompts, check_sampling
from ..engine.generate import Generation
from ..engine.text import TextStream, encode, load_tokenizer
from ..errors import LongcatCheckpointError, LongcatError, LongcatShapeError, LongcatUnsupportedError, message
from ..model import LongcatFlashConfig, LongcatFlashForCausalLM, files
from ..model.device import usable_device
from . import report, terminal
from .texts import MOST_TEXT, read_text

DEFAULT_CHECKPOINT = Path("checkpoints/longcat-tiny")
DEFAULT_PROMPT = "Psalms 23\n1 The LORD is my shepherd;"
HELD_OUT = "heldout.txt"  # of a checkpoint's folder: text that it was not trained on
FORCED_TOKENS = 1000
PARTS_TOKENS = 64
PATIENCE = 10.0  # seconds: a decode that takes longer is timed once, a shorter one three times


def run(args: argparse.Namespace) -> int:
    request = _Request(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    start = perf_counter()
    model = LongcatFlashForCausalLM.from_pretrained(
        request.folder, device=request.device, dtype=request.dtype, precision=args.precision
    )
    load_seconds = perf_counter() - start
    compare = _wants_compare(args, model)
    text, first, seconds = _stream(model, request, quiet=args.json)
    facts: dict[str, Any] = {"prompt": request.prompt, "text": text, "ids": _new_ids(first, request)}
    if args.report or args.json:
        facts["checkpoint"] = _checkpoint(model, request.folder, load_seconds)
        facts["run"] = _run_facts(args, model, request)
        with terminal.status("measuring: repeating the decode, each way, for its times"):
            _measure(facts, model, request, first, compare, 3 if seconds < PATIENCE else 1)
            facts["teacher_forced"] = _teacher_forced(model, request, first) if args.teacher_forced else None
        facts["experts"] = _experts(model, request.folder, first)
    elif compare:
        facts["plain"] = {"identical": _same(first, request.timed(model, speculative=False)[0])}
    identical = (facts.get("plain") or {}).get("identical", True)
    if args.json:
        print(json.dumps(facts, indent=2))
    elif args.report:
        coloured = terminal.console() is not None
        print("\n" + "\n".join(report.lines(facts, sys.stdout, coloured=coloured)))
    if not identical:
        print("longcat_ops: generate: speculative and plain decoding differ", file=sys.stderr)
    return 0 if identical else 1


class _Request:
    """What was asked for, checked before a weight is read."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.folder = folder_of(args)
        self.config, _ = LongcatFlashConfig.read_files(self.folder)  # loading warns of unknown keys
        self.tokenizer = load_tokenizer(self.folder)
        self.prompt = _prompt(args)
        if not self.prompt:
            raise LongcatShapeError(message("generate", "prompt", "an empty text", "at least one character"))
        ids = encode(self.tokenizer, self.prompt, self.config.bos_token_id)
        self.max_new_tokens = args.max_new_tokens
        self.seed = secrets.randbits(31) if args.seed is None else args.seed
        check_sampling(args.temperature, args.top_k, args.top_p, args.draft, self.seed)
        self.options = {
            "temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p, "draft": args.draft,
            "seed": self.seed, "speculative": args.speculative,
        }  # fmt: skip
        self.beta = args.beta
        self.draft_filter = None if args.beta is None else DraftFilter.load(self.folder, args.beta)
        (self.ids,) = check_prompts(self.config, [torch.tensor(ids)], args.max_new_tokens)
        self.device = device_of(args.device)
        self.dtype = getattr(torch, args.dtype) if args.dtype else None
        self.text = self._text(args)

    def _text(self, args: argparse.Namespace) -> tuple[str, str] | None:
        """The text that drafts are judged by, and its name: --text, else the excerpt beside the checkpoint."""
        if args.text is not None:
            return read_text("--text", args.text), Path(args.text).name
        held_out = self.folder / HELD_OUT
        judged = args.teacher_forced and (args.report or args.json)
        return (files.read_text(held_out, MOST_TEXT), HELD_OUT) if judged and files.exists(held_out) else None

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def timed(self, model: LongcatFlashForCausalLM, **changes: Any) -> tuple[Generation, measure.Timing]:
        options = self.options | {"draft_filter": self.draft_filter} | changes
        return measure.timed_generate(model, self.ids, self.max_new_tokens, **options)


def folder_of(args: argparse.Namespace) -> Path:
    named = args.folder if args.checkpoint is None else args.checkpoint
    if named is None and not DEFAULT_CHECKPOINT.is_dir():
        raise LongcatCheckpointError(
            f"no checkpoint was named, and the default {DEFAULT_CHECKPOINT} is not in this folder.\n"
            "  fix: run in the root of a clone of the project, or name a folder: generate DIR"
        )
    return DEFAULT_CHECKPOINT if named is None else Path(named)


def _prompt(args: argparse.Namespace) -> str:
    if args.prompt_file is not None:
        return read_text("--prompt-file", args.prompt_file)
    text = DEFAULT_PROMPT if args.prompt is None else args.prompt
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # bytes that are not UTF-8 arrive as lone surrogates
        raise LongcatError(f"--prompt: not UTF-8 text (character {error.start + 1}).") from error
    return text


def device_of(name: str) -> torch.device:
    device = usable_device(name)
    if device.type == "meta":
        raise LongcatUnsupportedError(
            message("generate", "device", "'meta'", "cpu or cuda: there are no weights on it")
        )
    return device


def _wants_compare(args: argparse.Namespace, model: LongcatFlashForCausalLM) -> bool:
    possible = args.speculative and model.mtp is not None and args.temperature == 0
    if args.compare and not possible:
        raise LongcatUnsupportedError(
            "--compare needs greedy, speculative decoding: temperature 0, an MTP head, no --no-speculative."
        )
    return possible and (args.report or args.json) if args.compare is None else args.compare


def _stream(model: LongcatFlashForCausalLM, request: _Request, *, quiet: bool) -> tuple[str, Generation, float]:
    """Decode once, showing text as it comes; also the warm-up of the timed runs."""
    write = (lambda piece, drafted: None) if quiet else terminal.writer()
    stream = TextStream(request.decode, request.ids.tolist())
    pieces: list[str] = []

    def show(piece: str, drafted: bool) -> None:
        pieces.append(piece)
        if piece:
            write(piece, drafted)

    write(request.prompt, False)
    start = perf_counter()
    result, _ = request.timed(model, on_token=lambda _, token, drafted: show(stream.push(token), drafted))
    seconds = perf_counter() - start
    show(stream.finish(), False)
    write("\n", False)
    return "".join(pieces), result, seconds


def _measure(
    facts: dict[str, Any],
    model: LongcatFlashForCausalLM,
    request: _Request,
    first: Generation,
    compare: bool,
    rounds: int,
) -> None:
    """Adds `decode` and `plain`, the best of runs that take turns, and `parts`, from a run of its own."""
    own, plain = [], []
    for _ in range(rounds):
        own.append(request.timed(model)[1])
        if compare:
            plain.append(request.timed(model, speculative=False))
    best = min(own, key=lambda t: t.decode_seconds)
    steps, drafted, accepted = first.steps[0], first.drafted[0], first.accepted[0]
    facts["decode"] = {
        "new_tokens": len(first.num_real[0]), "steps": steps, "drafted": drafted, "accepted": accepted,
        "tokens_per_step": best.tokens / steps if steps else None,
        "acceptance": accepted / drafted if drafted else None,
        "seconds": best.decode_seconds, "tokens_per_second": best.tokens_per_second,
        "prompt_tokens": len(request.ids), "prompt_seconds": best.prompt_seconds, "rounds": rounds,
    }  # fmt: skip
    facts["plain"] = None
    if plain:
        slow = min((timing for _, timing in plain), key=lambda t: t.decode_seconds)
        facts["plain"] = {
            "identical": all(_same(first, result) for result, _ in plain),
            "seconds": slow.decode_seconds,
            "tokens_per_second": slow.tokens_per_second,
            "speedup": slow.decode_seconds / best.decode_seconds if best.tokens else None,
        }
    count = min(request.max_new_tokens, PARTS_TOKENS)
    seconds, timing = measure.time_by_part(model, request.ids, count, **request.options)
    shares = {
        part: {"ms_per_token": 1e3 * s / timing.tokens, "share": s / timing.decode_seconds}
        for part, s in seconds.items()
        if timing.tokens
    }
    facts["parts"] = shares or None


def _teacher_forced(model: LongcatFlashForCausalLM, request: _Request, first: Generation) -> dict[str, Any] | None:
    if model.mtp is None:
        return None
    if request.text is None:
        ids, label = first.sequences[0].tolist(), "the prompt and its continuation"
    else:
        text, label = request.text
        ids = encode(request.tokenizer, text, model.config.bos_token_id)
    ids = ids[: min(FORCED_TOKENS, model.config.max_position_embeddings)]
    agreed, positions = measure.teacher_forced_acceptance(model, torch.tensor(ids))
    return {"acceptance": agreed / positions if positions else None, "positions": positions, "text": label}


def _experts(model: LongcatFlashForCausalLM, folder: Path, first: Generation) -> dict[str, Any] | None:
    use = measure.expert_use(first.num_real[0], model.config.moe_topk)
    return use and {**asdict(use), "target": _target_experts(folder)}


def _target_experts(folder: Path) -> float | None:
    """FFN experts per token that training aimed at, if the checkpoint says so."""
    try:
        return float(files.read_object(folder / "metrics.json")["training"]["target_real_experts_per_token"])
    except (LongcatCheckpointError, ValueError, KeyError, TypeError, OverflowError):
        return None


def _checkpoint(model: LongcatFlashForCausalLM, folder: Path, seconds: float) -> dict[str, Any]:
    c = model.config
    quantised = [module.fp8 for module in model.modules() if hasattr(module, "fp8")]
    return {
        "path": str(folder), "layers": c.num_layers, "ffn_experts": c.n_routed_experts,
        "zero_experts": c.zero_expert_num, "top_k": c.moe_topk, "mtp": model.mtp is not None,
        "fp8_projections": sum(quantised), "projections": len(quantised),
        "file_bytes": sum(f.stat().st_size for f in files.weight_files(folder) if f.is_file()), "load_seconds": seconds,
    }  # fmt: skip


def _run_facts(args: argparse.Namespace, model: LongcatFlashForCausalLM, request: _Request) -> dict[str, Any]:
    rows = doctor.op_rows()
    kind = "cuda" if model.device.type == "cuda" else "cpu"
    return {
        **request.options, "beta": request.beta, "device": str(model.device), "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "speculative": bool(args.speculative and model.mtp is not None),
        "backends": {row.name: getattr(row, kind).backend for row in rows},
        "row_by_row": model.row_by_row,
    }  # fmt: skip


def _new_ids(result: Generation, request: _Request) -> list[int]:
    return result.sequences[0][len(request.ids) :].tolist()


def _same(a: Generation, b: Generation) -> bool:
    return torch.equal(a.sequences[0], b.sequences[0])

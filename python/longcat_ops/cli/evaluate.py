"""`python -m longcat_ops evaluate`: how good a checkpoint is on a text, and how far another form of it is away.

--json prints one object:

    tokens, bytes, windows     what was predicted, and in how many pieces
    checkpoint, other          path, bits_per_byte, nats_per_token, acceptance (of the MTP head's most likely token,
                               given the true text) over `drafts` positions; other is null without --against
    difference                 agreement of the most likely tokens, kl (of OTHER's distributions from CHECKPOINT's,
                               nats a token), layers (relative error of the rows behind each layer); null likewise
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

import torch

from ..engine.evaluate import Evaluation, Quality, evaluate
from . import terminal
from .texts import windows_of


def run(args: argparse.Namespace) -> int:
    if args.threads:
        torch.set_num_threads(args.threads)
    text, size = windows_of(args, args.folder, "--text", args.text)
    bars = terminal.Bars("layer")
    try:
        found = evaluate(
            args.folder, text, size, against=args.against, dtype=getattr(torch, args.dtype) if args.dtype else None,
            precision=args.precision, progress=lambda done, total: bars.show("evaluating", done, total),
        )  # fmt: skip
    finally:
        bars.close()
    print(json.dumps(asdict(found), indent=2) if args.json else "\n".join(lines(found)))
    return 0


def lines(found: Evaluation) -> list[str]:
    """The same for people."""
    out = [f"text        {found.tokens} tokens, {found.bytes} bytes, in {found.windows} pieces"]
    out += _quality("checkpoint", found.checkpoint)
    if found.other and found.difference:
        d = found.difference
        out += _quality("against", found.other)
        out.append(f"agreement   {d.agreement:.4f} of the most likely tokens; KL {d.kl:.2e} nats a token")
        by_layer = " ".join(f"{error:.2e}" for error in d.layers)
        out.append(f"error       |x - y| / |y| behind each layer: {by_layer}")
    return out


def _quality(head: str, q: Quality) -> list[str]:
    accepted = "no MTP head" if q.acceptance is None else f"{q.acceptance:.4f} of {q.drafts} drafts accepted, greedy"
    return [f"{head:<12}{q.path}: {q.bits_per_byte:.4f} bits a byte, {q.nats_per_token:.4f} nats a token; {accepted}"]

"""`python -m longcat_ops plan`: the text of a `Sizing`."""

from __future__ import annotations

import argparse
import json

from ..loading.sizing import HEADROOM, Sizing, size_rank


def run(args: argparse.Namespace) -> int:
    precision = None if args.precision == "stored" else args.precision
    sizing = size_rank(args.path, ep=args.ep, tp=args.tp, tp_form=args.tp_form, precision=precision, mtp=args.mtp)
    print(
        json.dumps(sizing.to_dict(), indent=2)
        if args.json
        else "\n".join(line.rstrip() for line in lines(sizing, args.path))
    )
    return 0


def lines(sizing: Sizing, path: str) -> list[str]:
    """The report, line by line."""
    total = f"{_count(sizing.parameters_total)} parameters" + (
        f" + {_count(sizing.parameters_mtp)} MTP head" if sizing.parameters_mtp else ", no MTP head"
    )
    active = ", ".join(f"{_count(n)} at {k}" for k, n in sizing.active_parameters.items())
    form = f" ({sizing.tp_form} form)" if sizing.tp > 1 else ""
    out = [
        f"{path}: {total}",
        f"active per token, by FFN experts chosen: {active} (lm_head counted, embedding and MTP not)",
        f"largest rank at EP {sizing.ep}, TP {sizing.tp}{form}, precision {sizing.precision}, "
        f"other tensors {sizing.dtype}:",
        "",
        f"  {'component':<11}{'parameters':>12}{'bytes':>12}  of which FP8 scales",
    ]
    for name, part in sizing.parts.items():
        scales = _bytes(part.scale_bytes) if part.scale_bytes else "-"
        out.append(
            f"  {name:<11}{_count(part.parameters):>12}{_bytes(part.bytes):>12}  {scales:>10}  {_split(sizing, name)}"
        )
    parameters = sum(part.parameters for part in sizing.parts.values())
    scales = sum(part.scale_bytes for part in sizing.parts.values())
    out.append(
        f"  {'total':<11}{_count(parameters):>12}{_bytes(sizing.bytes):>12}  {_bytes(scales) if scales else '-':>10}"
    )
    kv = f"KV cache: {sizing.kv_bytes_per_token:,} B per token over {sizing.kv_slots} slots"
    if sizing.kv_bytes_per_token != sizing.kv_bytes_per_token_without_mtp:
        kv += f" ({sizing.kv_bytes_per_token_without_mtp:,} B without the MTP head's)"
    out += ["", f"{kv}, whole on each rank that holds the sequence"]
    if sizing.symmetric_bytes:
        out.append(
            f"symmetric memory of the exchanges of {sizing.tp} TP ranks: {_bytes(sizing.symmetric_bytes)} a rank"
        )
    if sizing.expert_bytes:
        out.append(
            f"rows of an ExpertParallel over these ranks, 512 tokens a rank: {_bytes(sizing.expert_bytes)} a rank"
        )
    if sizing.attention_bytes:
        out.append(f"partial sums of mla_decode on a GPU: at most {_bytes(sizing.attention_bytes)}, of the headroom")
    needed = sizing.bytes + sizing.symmetric_bytes + sizing.expert_bytes
    for fit in sizing.fits:
        usable = f"{_bytes(fit.usable)} usable"
        if fit.fits:
            rest = fit.usable - needed
            verdict = f"fits; {_bytes(rest)} left = {fit.kv_tokens:,} tokens of KV cache"
        else:
            verdict = f"does not fit: {_bytes(needed - fit.usable)} too much"
        out.append(f"{fit.card:>6} card ({usable}): {verdict}")
    if sizing.files_total:
        out.append(f"files: the first rank reads {sizing.files} of {sizing.files_total}")
    out += ["", f"GiB = 2^30 bytes, cards are named by them; {HEADROOM:.0%} of each card is left free."]
    out.append(
        "Counted as a GPU holds it: norms fp32; router fp32 and as bf16 terms; kv_b dense, half of it transposed too."
    )
    out.append("Not counted: workspace, activations, other copies that a backend makes.")
    return out + [f"note: {note}" for note in sizing.notes]


def _split(sizing: Sizing, name: str) -> str:
    if name == "experts":
        return f"{sizing.experts_here} of {sizing.experts_total} a layer" if sizing.ep > 1 else "all, on one rank"
    if sizing.tp == 1:
        return ""
    heads = (
        f"heads / {sizing.tp} (q_b, kv_b, o_proj); q_a and kv_a whole" if sizing.tp_form == "all_reduce" else "whole"
    )
    return {
        "embedding": f"vocabulary / {sizing.tp}",
        "lm_head": f"vocabulary / {sizing.tp}",
        "attention": heads,
        "dense FFN": f"width / {sizing.tp}",
        "MTP": "as attention, dense FFN and embedding; eh_proj whole",
    }.get(name, "whole")


def _count(number: int) -> str:
    for unit, scale in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return str(number)


def _bytes(number: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= scale:
            return f"{number / scale:.2f} {unit}"
    return f"{number} B"

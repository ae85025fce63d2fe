"""`python -m longcat_ops plan`: the text of a `Plan`."""

from __future__ import annotations

import argparse
import json

from .loading.plan import HEADROOM, Plan, make_plan


def run(args: argparse.Namespace) -> int:
    precision = None if args.precision == "stored" else args.precision
    plan = make_plan(args.path, ep=args.ep, tp=args.tp, precision=precision, mtp=args.mtp)
    print(
        json.dumps(plan.to_dict(), indent=2)
        if args.json
        else "\n".join(line.rstrip() for line in lines(plan, args.path))
    )
    return 0


def lines(plan: Plan, path: str) -> list[str]:
    """The report, line by line."""
    total = f"{_count(plan.parameters_total)} parameters" + (
        f" + {_count(plan.parameters_mtp)} MTP head" if plan.parameters_mtp else ", no MTP head"
    )
    active = ", ".join(f"{_count(n)} at {k}" for k, n in plan.active_parameters.items())
    out = [
        f"{path}: {total}",
        f"active per token, by FFN experts chosen: {active} (lm_head counted, embedding and MTP not)",
        f"largest rank at EP {plan.ep}, TP {plan.tp} (splits of the same ranks), precision {plan.precision}, "
        f"other tensors {plan.dtype}:",
        "",
        f"  {'component':<11}{'parameters':>12}{'bytes':>12}  of which FP8 scales",
    ]
    for name, part in plan.parts.items():
        scales = _bytes(part.scale_bytes) if part.scale_bytes else "-"
        out.append(
            f"  {name:<11}{_count(part.parameters):>12}{_bytes(part.bytes):>12}  {scales:>10}  {_split(plan, name)}"
        )
    parameters = sum(part.parameters for part in plan.parts.values())
    scales = sum(part.scale_bytes for part in plan.parts.values())
    out.append(
        f"  {'total':<11}{_count(parameters):>12}{_bytes(plan.bytes):>12}  {_bytes(scales) if scales else '-':>10}"
    )
    kv = f"KV cache: {plan.kv_bytes_per_token:,} B per token over {plan.kv_slots} slots"
    if plan.kv_bytes_per_token != plan.kv_bytes_per_token_without_mtp:
        kv += f" ({plan.kv_bytes_per_token_without_mtp:,} B without the MTP head's)"
    out += ["", f"{kv}, whole on each rank that holds the sequence"]
    for fit in plan.fits:
        usable = f"{_bytes(fit.usable)} usable"
        if fit.fits:
            rest = fit.usable - plan.bytes
            verdict = f"fits; {_bytes(rest)} left = {fit.kv_tokens:,} tokens of KV cache"
        else:
            verdict = f"does not fit: {_bytes(plan.bytes - fit.usable)} too much"
        out.append(f"{fit.card:>6} card ({usable}): {verdict}")
    if plan.files_total:
        out.append(f"files: the first rank reads {plan.files} of {plan.files_total}")
    out += ["", f"GiB = 2^30 bytes, cards are named by them; {HEADROOM:.0%} of each card is left free."]
    out.append(
        "Counted as the model holds it: router, norms, lm_head fp32; kv_b dense, its absorbed halves fp32 beside it."
    )
    out.append("Not counted: workspace, activations, communication buffers, other copies that a backend makes.")
    return out + [f"note: {note}" for note in plan.notes]


def _split(plan: Plan, name: str) -> str:
    if name == "experts":
        return f"{plan.experts_here} of {plan.experts_total} a layer" if plan.ep > 1 else "all, on one rank"
    if plan.tp == 1:
        return ""
    return {
        "embedding": f"vocabulary / {plan.tp}",
        "lm_head": f"vocabulary / {plan.tp}",
        "attention": f"heads / {plan.tp} (q_b, kv_b, o_proj); q_a and kv_a whole",
        "dense FFN": f"width / {plan.tp}",
        "MTP": f"as attention, dense FFN and embedding / {plan.tp}; eh_proj whole",
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

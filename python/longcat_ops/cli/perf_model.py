"""`python -m longcat_ops perf-model`: what a deployment should reach and cost, by `perf.deployment`. It needs no torch
unless it reads a config.json.

--json prints one object:

    deployment    the arguments in force; none with --report
    result        without a mode
    report        table_7, table_6
    worth         of each row: name, and a result
    sweep         of each point: the values of the axes, and a result
    solve         best (a GPU), by_gpu (results with their deployment), stop

A result has parts_us and exposed_us by name, layer_us, step_us, tpot_ms, tokens_s_user, tokens_s_gpu, dollars,
weight_bytes, cache_bytes, fits and binding; or a reason why it cannot be.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import LongcatShapeError, message
from ..perf.deployment import reported, solve, studies, tables
from ..perf.deployment.calibration import measured
from ..perf.deployment.deployment import Deployment, divisors
from ..perf.deployment.hardware import EFFICIENCIES, GPUS, Efficiency, Gpu, flat, link_by_name, with_price
from ..perf.deployment.network import NETWORKS, Network, from_config, known
from ..perf.deployment.step import Result, evaluate, with_attention

DEFAULT_GPU, DEFAULT_EP = "H800", 128


def run(args: argparse.Namespace) -> int:
    if args.plot and not args.sweep:
        raise LongcatShapeError(message("perf-model", "plot", repr(args.plot), "a sweep to draw (--sweep)"))
    gpus = _gpus(args)
    base = _deployment(args, gpus)
    mode = next((one for one in ("report", "worth", "sweep", "solve") if getattr(args, one)), "result")
    modes: dict[str, Callable[..., tuple[list[str], dict[str, Any]]]] = {
        "result": _one, "report": _report, "worth": _worth, "sweep": _sweep, "solve": _solve,
    }  # fmt: skip
    lines, facts = modes[mode](args, base, gpus)
    described = {"deployment": _described(base)} if mode != "report" else {}
    print(json.dumps(described | facts, indent=2) if args.json else "\n".join(line.rstrip() for line in lines))
    return 0


def _deployment(args: argparse.Namespace, gpus: dict[str, Gpu]) -> Deployment:
    gpu, network = gpus[args.gpu or DEFAULT_GPU], _network(args.network)
    link = link_by_name(args.link, gpu) if args.link else None
    if args.link_gb_s is not None:
        if args.link or not 0 < args.link_gb_s < 1e6:
            raise LongcatShapeError(message("perf-model", "link_gb_s", args.link_gb_s, "GB/s, without --link"))
        link = flat("given", 1e9 * args.link_gb_s, "given")
    most = gpu.domain if args.link == "NVLink" else DEFAULT_EP
    ep = max(n for n in divisors(network.experts) if n <= most) if args.ep is None else args.ep
    same = ("batch", "drafts", "acceptance", "context", "precision", "attention_precision", "overlap", "zero_aware",
            "ffn_experts", "tp")  # fmt: skip
    d = Deployment(network, gpu, ep, **{name: getattr(args, name) for name in same}, link=link,
                   efficiency=_efficiency(args.efficiency))  # fmt: skip
    return d if args.attention_us is None else with_attention(d, args.attention_us)


def _network(name: str) -> Network:
    if (found := known(name)) is not None:
        return found
    path = Path(name)
    if path.suffix != ".json" and not path.exists():
        expected = f"{', '.join(NETWORKS)}, a config.json or its folder"
        raise LongcatShapeError(message("perf-model", "network", repr(name), expected))
    from ..model import files

    path = path / "config.json" if files.is_folder(path) else path
    return from_config(files.read_object(path), files.shown(path))


def _efficiency(name: str) -> Efficiency:
    if name in EFFICIENCIES:
        return EFFICIENCIES[name]
    if name == "achieved":
        return reported.achieved()
    path = Path(name)
    path = path / "answers.jsonl" if path.is_dir() else path
    if not path.is_file():
        expected = f"{', '.join(EFFICIENCIES)}, achieved, or an answers.jsonl of a check of a GPU"
        raise LongcatShapeError(message("perf-model", "efficiency", repr(name), expected))
    return measured(_json_lines(path), str(path))


def _json_lines(path: Path) -> Iterable[dict[str, Any]]:
    """Objects of a file, one a line; a line that was cut off is left out."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def _gpus(args: argparse.Namespace) -> dict[str, Gpu]:
    """The table with the prices of --price."""
    found = dict(GPUS)
    for text in args.price:
        name, _, dollars = text.rpartition("=")
        name = name or args.gpu or DEFAULT_GPU
        try:
            price = float(dollars)
        except ValueError:
            price = 0.0
        if name not in found or not 0 < price < 1e6:
            expected = f"dollars an hour, X or GPU=X with one of {', '.join(GPUS)}"
            raise LongcatShapeError(message("perf-model", "price", repr(text), expected))
        found[name] = with_price(found[name], price)
    return found


def _one(args: argparse.Namespace, d: Deployment, gpus: dict[str, Gpu]) -> tuple[list[str], dict[str, Any]]:
    r = evaluate(d)
    p = r.parts
    parts = {"attention": p.attention, "dense FFN": p.dense, "dispatch": p.dispatch, "MoE": p.moe, "combine": p.combine}
    if not d.network.dense_ffns:
        del parts["dense FFN"]
    rows = [(name, tables.number(part.us), part.bound) for name, part in parts.items()]
    rows.append(("a layer", tables.number(r.layer_us), " + ".join(r.exposed)))
    price = d.gpu.price
    cost = f"at {price.value:g} $ an hour: {price.source}" if price else "no price known: give --price"
    found = zip(tables.COSTS, tables.costs(r), ("", "", "", cost), strict=True)
    step = f"{tables.number(1e-3 * r.step_us)} ms"
    return [
        *_heading(d), "", *text((("part", "us", ""), rows)), "",
        *text((("a step of the target", step, ""), list(found))), "",
        f"  GiB of a GPU: {tables.memory(r)}; weights {r.weights / 2**30:.1f}, cache {r.cache / 2**30:.1f}",
        f"  the longest part of a layer: {tables.longest(r)}", *_notes(d),
    ], {"result": _facts(r)}  # fmt: skip


def _report(args: argparse.Namespace, d: Deployment, gpus: dict[str, Gpu]) -> tuple[list[str], dict[str, Any]]:
    fit = reported.achieved()
    lines = [
        f"{reported.SOURCE}: H800, EP 128, 96 sequences a GPU, one draft, 80 % accepted, 40 GB/s", "",
        *text(tables.table_7()), "", *text(tables.table_6()), "",
        f"  `achieved`: step = {fit.slowdown:.3f} x modelled + {1e-3 * fit.fixed_us:.2f} ms; {fit.source}",
    ]  # fmt: skip
    table_7 = [
        {"network": c.network, "printed_and_ours_us": c.cells, "tpot_ms": [c.tpot_ms, c.result.tpot_ms],
         "dollars": [c.dollars, c.dollars_of_printed], "result": _facts(c.result)}
        for c in reported.TABLE_7
    ]  # fmt: skip
    table_6 = [
        {"batch": p.batch, "context": p.context, "attention_precision": p.attention_precision, "tpot_ms": p.tpot_ms,
         "dollars": p.dollars, "result": _facts(evaluate(p.deployment)),
         "achieved": _facts(evaluate(replace(p.deployment, efficiency=fit)))}
        for p in reported.TABLE_6
    ]  # fmt: skip
    return lines, {"report": {"table_7": table_7, "table_6": table_6}}


def _worth(args: argparse.Namespace, d: Deployment, gpus: dict[str, Gpu]) -> tuple[list[str], dict[str, Any]]:
    found = [{"name": name} | _facts(point.result, point.reason) for name, point in studies.ablation(d)]
    return [*_heading(d), "", *text(tables.worth(evaluate(d))), *_notes(d)], {"worth": found}


def _sweep(args: argparse.Namespace, d: Deployment, gpus: dict[str, Gpu]) -> tuple[list[str], dict[str, Any]]:
    axes = dict(map(studies.axis, args.sweep))
    if len(axes) < len(args.sweep):
        raise LongcatShapeError(message("perf-model", "sweep", repr(args.sweep), "two different axes"))
    points = studies.sweep(d, axes, gpus)
    if args.plot:
        from . import perf_model_plot

        perf_model_plot.write(args.plot, axes, points, args.metric, d.network.name)
    found = [dict(zip(axes, point.values, strict=True)) | _facts(point.result, point.reason) for point in points]
    return [*_heading(d), "", *text(tables.swept(axes, points)), *_notes(d)], {"sweep": found}


def _solve(args: argparse.Namespace, d: Deployment, gpus: dict[str, Gpu]) -> tuple[list[str], dict[str, Any]]:
    kinds = [gpus[args.gpu]] if args.gpu else list(gpus.values())
    wanted = solve.targets(args.solve)
    found = solve.solve(d, wanted, kinds, None if args.ep is None else [args.ep])
    best = found.best
    where = f"{best.deployment.ep} x {best.deployment.gpu.name}, {best.deployment.batch} sequences a GPU"
    cheapest = f"{where}, {tables.number(best.dollars)} $ a million tokens"
    lines = [
        f"{d.network.name}, {args.solve}: {cheapest}; {found.tried} shapes tried",
        f"efficiency {d.efficiency.name}: {d.efficiency.source}", "",
        *text(tables.solved(found)), "", f"  what keeps a larger batch away: {found.stop}",
        f"  the longest part of a layer: {tables.longest(best)}",
        *([f"  no price known of {', '.join(found.unpriced)}: give --price GPU=X"] if found.unpriced else []),
        *_notes(d),
    ]  # fmt: skip
    by_gpu = {name: _facts(one) | {"deployment": _described(one.deployment)} for name, one in found.by_gpu.items()}
    return lines, {"solve": {"best": best.deployment.gpu.name, "by_gpu": by_gpu, "stop": found.stop}}


def _heading(d: Deployment) -> list[str]:
    n = d.network
    tokens = f"{d.batch} sequences a GPU x {1 + d.drafts} tokens, {d.acceptance:.0%} of drafts accepted"
    how = f"context {d.context:,}, {d.precision}, overlap {d.hiding}, link {d.path.name} ({d.path.source})"
    size = f"{n.parameters / 1e9:.1f} B parameters, {n.active(d.rows) / 1e9:.1f} B active"
    return [
        f"{n.name}, {size}: modelled, not measured",
        f"{d.gpu.name}, EP {d.ep}, {tokens},", how, f"efficiency {d.efficiency.name}: {d.efficiency.source}",
    ]  # fmt: skip


def _notes(d: Deployment) -> list[str]:
    notes = list(d.network.notes)
    if d.drafts and not d.network.mtp_heads:
        notes.append("the network has no MTP head: drafts come from elsewhere, at no cost")
    return [f"  note: {note}" for note in notes]


def text(table: tables.Table) -> list[str]:
    """A table with columns of equal width: the first and words to the left, numbers to the right."""
    heading, rows = table
    lines = [heading, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heading))]
    left = [i == 0 or not any(row[i][:1].isdigit() or row[i] == "-" for row in rows) for i in range(len(heading))]
    return ["  " + "  ".join(cell.ljust(w) if side else cell.rjust(w) for cell, w, side in
                             zip(line, widths, left, strict=True)) for line in lines]  # fmt: skip


def _described(d: Deployment) -> dict[str, Any]:
    names = ("ep", "batch", "drafts", "acceptance", "context", "precision", "attention_precision", "zero_aware", "tp",
             "attention_factor")  # fmt: skip
    found = {name: getattr(d, name) for name in names}
    return {"network": d.network.name, "gpu": d.gpu.name, "overlap": d.hiding, "link": d.path.name,
            "efficiency": d.efficiency.name, "ffn_experts": d.rows, **found}  # fmt: skip


def _facts(r: Result | None, reason: str = "") -> dict[str, Any]:
    if r is None:
        return {"reason": reason}
    parts = {
        name: getattr(r.parts, name).us for name in ("attention", "project", "dense", "dispatch", "moe", "combine")
    }
    name, part = r.binding
    return {
        "parts_us": parts, "exposed_us": {one: found.us for one, found in r.exposed.items()}, "layer_us": r.layer_us,
        "step_us": r.step_us, "tpot_ms": r.tpot_ms, "tokens_s_user": r.tokens_s_user, "tokens_s_gpu": r.tokens_s_gpu,
        "dollars": r.dollars, "weight_bytes": r.weights, "cache_bytes": r.cache, "fits": r.fits,
        "binding": {"part": name, "by": part.bound},
    }  # fmt: skip

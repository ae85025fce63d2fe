"""What bench_ep.py prints: a line for each way in each cell, and why others are absent."""

from __future__ import annotations

from typing import Any

from comm.ep_problem import DISPATCH, ROUND_TRIP
from comm.tables import HARNESS


def measured_lines(infos: list[dict[str, Any]]) -> list[str]:
    """Of cells that ran."""
    if not infos:
        return []
    first = infos[0]
    what = HARNESS if first["harness"] else f"backend {first['backend']}"
    found = [f"experts over {first['ranks']} ranks, {first['versions']}: {what}"]
    found += [f"  not {name}: {why}" for name, why in first["why_not"].items()]
    times = "".join(f"{name:>11s}" for name in ("us", "p10", "p90"))
    found += [f"  {'':34s}{times}{'bytes sent':>14s}{'counted':>12s}{'ratio':>7s}  mode"]
    for info in infos:
        found.append(f"{info['cell']}, {info['rounds']} rounds{_floor(info)}")
        found += [_line(name, row, info["ratio"]) for name, row in info["measured"].items()]
    found += _combines(infos)
    reasons = {(name, why): None for info in infos for name, why in info["absent"].items()}
    return [*found, *(f"  no time of {name}: {why}" for name, why in reasons)]


def _floor(info: dict[str, Any]) -> str:
    return f"; the wire needs {info['wire_us']} us" if "wire_us" in info else ""


def _line(name: str, row: dict[str, Any], ratio: dict[str, float]) -> str:
    times = "".join(f"{row[key]:11.2f}" for key in ("us", "p10_us", "p90_us"))
    counted = f"{row['counted']:12,}" if row["counted"] else f"{'':12s}"
    beside = f"{ratio[name]:7.2f}" if name in ratio else f"{'':7s}"
    return f"  {name:34s}{times}{row['sent']:14,}{counted}{beside}  {row['mode']}"


def _combines(infos: list[dict[str, Any]]) -> list[str]:
    """What a combine adds to a dispatch: the difference of two medians."""
    cells = {(info["expert_call"], info["tokens_a_rank"]): info["measured"] for info in infos}
    found = []
    for (call, tokens), both in cells.items():
        alone = cells.get((DISPATCH, tokens), {}) if call == ROUND_TRIP else {}
        parts = [f"{name} {both[name]['us'] - alone[name]['us']:.2f}" for name in both if name in alone]
        found += [f"combine, {tokens} tokens a rank, by difference, us: {'; '.join(parts)}"] * bool(parts)
    return found


def predicted_lines(infos: list[dict[str, Any]], device: str) -> list[str]:
    """Of cells that did not run."""
    found = [f"experts over {infos[0]['ranks']} ranks, floors for an {device}, nothing ran"] if infos else []
    return [*found, *(f"  {info['cell']:44s}{info['sent']:>12,} bytes{_floor(info)}" for info in infos)]

"""What bench_comm.py prints: a line for each implementation in each cell, and why others are absent."""

from __future__ import annotations

from typing import Any

from comm.cells import label

HARNESS = "the harness, not speed: ranks on the host, over gloo"


def measured_lines(infos: list[dict[str, Any]]) -> list[str]:
    """Of cells that ran."""
    if not infos:
        return []
    first = infos[0]
    what = HARNESS if first["harness"] else f"rung {first['backend']}"
    found = [f"collectives on {first['ranks']} ranks, {first['versions']}: {what}"]
    found += [f"  not {name}: {why}" for name, why in first["why_not"].items()]
    times = "".join(f"{name:>10s}" for name in ("us", "p10", "p90"))
    found += [f"  {'':30s}{times}{'algbw':>9s}{'busbw':>9s}{'wire':>7s}{'GEMM':>8s}{'ratio':>7s}  blocks"]
    for info in infos:
        found.append(f"{info['cell']}, {label(info['size'])}, {info['mode']}, {info['rounds']} rounds{_model(info)}")
        found += [_line(name, row, info) for name, row in info["measured"].items()]
    reasons: dict[str, dict[str, None]] = {}
    for info in infos:
        for name, why in info["absent"].items():
            reasons.setdefault(name, {})[why] = None
    found += [f"  no time of {name}: {why}" for name, whys in reasons.items() for why in whys]
    return found


def _model(info: dict[str, Any]) -> str:
    if "wire_us" not in info:
        return ""
    low, high = info["band_us"]
    return f"; {info['form']}: bound {info['bound_us']}, wire {info['wire_us']}, predicted {low} .. {high} us"


def _line(name: str, row: dict[str, Any], info: dict[str, Any]) -> str:
    wire = f"{row['wire_share']:7.0%}" if "wire_share" in row else f"{'':7s}"
    gemm = f"{row['gemm_slowdown']:+8.1%}" if "gemm_slowdown" in row else f"{'':8s}"
    ratio = f"{info['ratio'][name]:7.2f}" if name in info["ratio"] else f"{'':7s}"
    note = f" ({info['notes'][name]})" if name in info["notes"] else ""
    times = "".join(f"{row[key]:10.2f}" for key in ("us", "p10_us", "p90_us"))
    return (f"  {name:30s}{times}{row['algbw']:9.2f}{row['busbw']:9.2f}{wire}{gemm}{ratio}  "
            f"{info['blocks'][name]}{note}")  # fmt: skip


def predicted_lines(infos: list[dict[str, Any]], device: str) -> list[str]:
    """Of cells that did not run."""
    found = [f"{infos[0]['ranks']} ranks, a prediction for an {device}, nothing ran"] if infos else []
    for info in infos:
        found.append(f"  {info['cell']:46s}{info['bytes']:>12,} bytes{_model(info)}")
    return found

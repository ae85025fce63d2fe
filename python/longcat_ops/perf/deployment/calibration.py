"""Shares of a GPU's peaks that kernels of this library were measured to reach, from the answers of a check of a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...errors import LongcatUnsupportedError, message
from ..devices import by_name
from .hardware import REPORT, Efficiency

_PRODUCTS, _ATTENTION = ("times/gate_up-", "times/down-"), "times/attention-"
_OURS = ("longcat_ops", "split_rows")  # how the times of our own kernels are named


def measured(lines: Iterable[Mapping[str, Any]], source: str) -> Efficiency:
    """lines: of answers.jsonl (docs/hardware.md). Each FP8 product and each latent attention that passed has a share,
    its floor at the peaks of the data sheet over the measured time, and counts for the part that sets its floor. The
    result has the medians; of a part without a measurement it has the report's share, and says so.

    Raises LongcatUnsupportedError where nothing was measured, or on a GPU that `devices` does not have."""
    steps = {line["step"]: line["answer"] for line in lines if "step" in line and line.get("status") == "passed"}
    shares: dict[str, list[float]] = {"memory": [], "products": [], "attention": []}
    name = steps.get("facts", {}).get("device")
    device = by_name(name) if name else None
    for step, answer in steps.items():
        core = step.startswith(_ATTENTION)
        if device is None or not (core or step.startswith(_PRODUCTS)):
            continue
        us = min((t["us"] for way, t in answer["times"].items() if way.startswith(_OURS)), default=0.0)
        memory = 1e6 * answer["bytes"] / device.memory.value
        cores = 1e6 * answer["flops"] / (device.bf16 if core else device.fp8).value
        part = "memory" if memory >= cores else "attention" if core else "products"
        if us > 0:
            shares[part].append(max(memory, cores) / us)
    if not any(shares.values()):
        raise LongcatUnsupportedError(
            message("perf-model", "efficiency", source, "answers of a GPU with times of products or of attention")
        )
    counts = ", ".join(f"{part} {f'of {len(found)}' if found else 'not measured'}" for part, found in shares.items())
    found = {part: _median(values) if values else getattr(REPORT, part) for part, values in shares.items()}
    return Efficiency("measured", f"{name}, {source}: medians, {counts}", **found)


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2

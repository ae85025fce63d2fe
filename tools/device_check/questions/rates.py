"""What the device is, and rates that no kernel can beat."""

from __future__ import annotations

import platform
import subprocess
from typing import Any

import torch

from device_check.machine import Machine
from report import graph_time

QUERY = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu")


def facts(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    query = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
        values = [value.strip() for value in done.stdout.strip().split(",")]
        found |= dict(zip(QUERY, values, strict=True))
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        found["nvidia_smi"] = f"{type(error).__name__}: {error}"
    return found | machine.probes.ask("device") | {"timer": machine.probes.ask("timer")}


def probe(machine: Machine, what: str, number: int = 0) -> dict[str, Any]:
    return machine.probes.ask(what, number)


def memory(machine: Machine, megabytes: int) -> dict[str, Any]:
    """Bytes a second that torch's copy moves, read and written, and that its reductions read."""
    source = torch.randint(256, (megabytes << 20,), dtype=torch.uint8, device=machine.device)
    target = torch.empty_like(source)
    target.copy_(source)
    us = machine.times({"copy": [lambda: target.copy_(source)]})["copy"]["us"]
    found = {"copy_gb_per_s": round(2e-3 * source.nbytes / us, 1)}
    if machine.real:
        found["read_gb_per_s"] = round(1e-9 * graph_time.read_bytes_per_second(machine.l2_bytes), 1)
    return found

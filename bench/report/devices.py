"""What a result was taken on: the device, its peaks, and why results of two devices are not compared."""

from __future__ import annotations

import os
import platform
import subprocess

import torch

from longcat_ops import LongcatUnsupportedError, perf


def known(name: str) -> perf.Device | None:
    """The device of that name in the table of longcat_ops.perf, if it is there."""
    try:
        return perf.by_name(name)
    except LongcatUnsupportedError:
        return None


def here() -> perf.Device:
    """The device of floors and predictions: the GPU, or an H100 if there is none or an unknown one."""
    found = known(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return found or perf.DEVICES["H100"]


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            return next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), "unknown")
    except OSError:
        return platform.processor() or "unknown"


def _nvidia_smi(field: str) -> str | None:
    query = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def machine_facts() -> dict[str, object]:
    """What goes into the `machine_info` of a results file."""
    facts: dict[str, object] = {"device": cpu_name(), "cores": os.cpu_count(), "torch": torch.__version__}
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        facts |= {"device": found.name, "memory_gib": round(found.total_memory / 2**30)}
        facts |= {"l2_bytes": found.L2_cache_size, "multiprocessors": found.multi_processor_count}
        facts |= {"driver": _nvidia_smi("driver_version"), "max_sm_clock": _nvidia_smi("clocks.max.sm")}
    return facts


def versions(device: torch.device) -> str:
    """The device, its driver, torch and NCCL, in one line."""
    if device.type != "cuda":
        return f"{cpu_name()}, torch {torch.__version__}"
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    driver = _nvidia_smi("driver_version")
    return f"{torch.cuda.get_device_name(device)}, driver {driver}, torch {torch.__version__}, NCCL {nccl}"


def differences(one: dict, other: dict) -> list[str]:
    """Why results with these two `machine_info` must not be compared; empty if they may be."""

    def major(info: dict) -> str | None:
        return str(info["driver"]).split(".")[0] if info.get("driver") else None

    pairs = {
        "device": (one.get("device"), other.get("device")),
        "major version of the driver": (major(one), major(other)),
        "memory in GiB": (one.get("memory_gib"), other.get("memory_gib")),
    }
    return [f"{what}: {a} and {b}" for what, (a, b) in pairs.items() if a != b]

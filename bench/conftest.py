"""Bench settings: what the machine is, and a table of ratios at the end of a run."""

from __future__ import annotations

import os
import platform

import pytest
import torch


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            return next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), "unknown")
    except OSError:
        return platform.processor() or "unknown"


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    machine_info.update(device=gpu or _cpu_name(), cores=os.cpu_count(), torch=torch.__version__)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    for bench in getattr(session, "benchmarks", None) or []:
        info = bench.extra_info
        if "tokens_per_s" not in info:
            continue
        terminalreporter.write_line(f"\n{bench.group}, {_cpu_name()}, torch {torch.__version__}: peer {info['peer']}")
        for name, rate in info["tokens_per_s"].items():
            ratio = info["ratio_to_peer"].get(name)
            against = f"{ratio:6.2f}x peer" if ratio is not None else ""
            terminalreporter.write_line(
                f"  {name:18s} {rate:9.1f} tokens/s  spread {info['spread'][name]:4.0%}  {against}"
            )

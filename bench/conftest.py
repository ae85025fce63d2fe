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
    infos = [(bench.group, bench.extra_info) for bench in getattr(session, "benchmarks", None) or []]
    for group, info in infos:
        if "tokens_per_s" in info:
            _print_rates(terminalreporter, group, info)
    _print_overheads(terminalreporter, [info for _, info in infos if "torch_ops_us" in info])
    _print_groups(terminalreporter, [info for _, info in infos if "tokens_per_group" in info])
    _print_floors(terminalreporter, [info for _, info in infos if "bytes" in info])


def _print_rates(terminalreporter: pytest.TerminalReporter, group: str, info: dict) -> None:
    terminalreporter.write_line(f"\n{group}, {_cpu_name()}, torch {torch.__version__}: peer {info['peer']}")
    for name, rate in info["tokens_per_s"].items():
        ratio = info["ratio_to_peer"].get(name)
        against = f"{ratio:6.2f}x peer" if ratio is not None else ""
        terminalreporter.write_line(f"  {name:18s} {rate:9.1f} tokens/s  spread {info['spread'][name]:4.0%}  {against}")


def _print_overheads(terminalreporter: pytest.TerminalReporter, infos: list[dict]) -> None:
    if not infos:
        return
    neg = sorted(info["torch_neg_us"] for info in infos)[len(infos) // 2]
    terminalreporter.write_line(
        f"\ncall overhead in us above the kernel's work, {_cpu_name()}, torch {torch.__version__}, 1 thread; "
        f"torch.neg(out=) of 8 elements takes {neg}"
    )
    terminalreporter.write_line(f"  {'op':38s}{'kernel':>11s}{'its work':>10s}{'function':>10s}{'torch.ops':>11s}")
    for info in infos:
        terminalreporter.write_line(
            f"  {info['op']:38s}{info['backend']:>11s}{info['kernel_us']:10.1f}{info['function_us']:10.1f}"
            f"{info['torch_ops_us']:11.1f}"
        )


def _print_groups(terminalreporter: pytest.TerminalReporter, infos: list[dict]) -> None:
    """Times and floors in us."""
    if infos:
        nothing_ran = any(name.startswith("predicted") for name in infos[0])
        where = "predictions, nothing ran" if nothing_ran else torch.cuda.get_device_name()
        terminalreporter.write_line(f"\ngrouped FP8 GEMM [{where}]")
    for info in infos:
        times = {name.removesuffix("_us").replace("_", " "): us for name, us in info.items() if name.endswith("_us")}
        cells = [f"{name} {us:.1f}" for name, us in times.items()]
        terminalreporter.write_line(
            f"  {info['shape']:8s} G {info['groups']:3d} m {info['tokens_per_group']:4d}: {', '.join(cells)} us"
        )


def _print_floors(terminalreporter: pytest.TerminalReporter, infos: list[dict]) -> None:
    """Times in us beside the floor; a prediction says that it is one."""
    for info in infos:
        times = {
            name.removesuffix("_us"): us for name, us in info.items() if name.endswith("_us") and name != "floor_us"
        }
        cells = [f"{name.replace('_', ' ')} {us:.2f} us ({us / info['floor_us']:.2f}x)" for name, us in times.items()]
        where = "a prediction for an H100, nothing ran" if "predicted" in times else torch.cuda.get_device_name()
        terminalreporter.write_line(
            f"{info['op']:20s}T {info['tokens']:5d} {info['bytes']:>13,} bytes, floor {info['floor_us']:8.2f} us: "
            f"{', '.join(cells)}  [{where}]"
        )

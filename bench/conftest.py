"""Bench settings: what the machine is, and a table of ratios at the end of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import report as reports
import tables
from longcat_ops.perf import Band
from report import devices


@pytest.fixture
def report(request: pytest.FixtureRequest) -> reports.Report:
    return reports.Report(request)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--predictions-json", type=Path, metavar="FILE", help="keeps what is predicted without a GPU")
    parser.addoption("--grid", choices=("short", "full"), help="cells of the benches of products; full without a GPU")
    parser.addoption("--peers", default="", help="parts of names, with commas: only these of products")
    parser.addoption("--seconds", type=float, help="of such a bench; then its peers get no time; 0: no limit")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    machine_info.update(devices.machine_facts())


def pytest_benchmark_compare_machine_info(
    config: pytest.Config, benchmarksession: object, machine_info: dict, compared_benchmark: dict
) -> None:
    """--benchmark-compare refuses results of another device."""
    if found := devices.differences(compared_benchmark["machine_info"], machine_info):
        raise pytest.UsageError(f"results of different devices are not compared: {'; '.join(found)}")


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    infos = [(bench.group, bench.extra_info) for bench in getattr(session, "benchmarks", None) or []]
    infos += reports.predictions(config)
    if path := config.getoption("--predictions-json"):
        reports.write_predictions(config, path)
    for group, info in infos:
        if "tokens_per_s" in info:
            _print_rates(terminalreporter, group, info)
    _print_cpu_products(terminalreporter, [info for _, info in infos if "cpu_us" in info])
    _print_overheads(terminalreporter, [info for _, info in infos if "torch_ops_us" in info])
    for line in tables.terminal_lines([info for _, info in infos if "rows" in info]):
        terminalreporter.write_line(line)
    _print_floors(terminalreporter, [info for _, info in infos if "floor_us" in info])


def _print_rates(terminalreporter: pytest.TerminalReporter, group: str, info: dict) -> None:
    terminalreporter.write_line(f"\n{group}, {devices.cpu_name()}, torch {torch.__version__}: peer {info['peer']}")
    for name, rate in info["tokens_per_s"].items():
        low, high = info["p10_p90"][name]
        line = f"  {name:19s}{rate:9.1f} tokens/s ({low:.0f} .. {high:.0f})"
        kinds = {"ratio_to_peer": "x peer", "same_precision": "x HF in its precision",
                 "ratio_to_one_by_one": "x one by one"}  # fmt: skip
        for kind, text in kinds.items():
            if name in info.get(kind, {}):
                line += f"{info[kind][name]:7.2f}{text}"
        terminalreporter.write_line(line)
    if "read_share" in info:
        shares = ", ".join(f"{name} {share:.2f}" for name, share in info["read_share"].items())
        terminalreporter.write_line(f"  of {info['memory_gb_per_s']} GB/s, weights read in a plain decode: {shares}")


def _print_cpu_products(terminalreporter: pytest.TerminalReporter, infos: list[dict]) -> None:
    if not infos:
        return
    terminalreporter.write_line(
        f"\ndense products in us, {devices.cpu_name()}, torch {torch.__version__}; ratio: torch in its faster dtype / "
        "ours in bf16; read: of the rate at which the same threads read memory"
    )
    names = list(infos[0]["cpu_us"])
    terminalreporter.write_line(f"  {'':38s}{''.join(f'{name:>12s}' for name in names)}{'ratio':>8s}{'read':>7s}")
    for info in infos:
        place = f"{info['network']} {info['product']} {info['shape'][0]}x{info['shape'][1]}"
        share = f"{info['read_share']:7.2f}" if "read_share" in info else ""
        times = "".join(f"{info['cpu_us'][name]:12.1f}" for name in names)
        cell = f"{place}, m {info['m']}, {info['threads']}t"
        terminalreporter.write_line(f"  {cell:38s}{times}{info['ratio']:8.2f}{share}")


def _print_overheads(terminalreporter: pytest.TerminalReporter, infos: list[dict]) -> None:
    if not infos:
        return
    neg = sorted(info["torch_neg_us"] for info in infos)[len(infos) // 2]
    terminalreporter.write_line(
        f"\ncall overhead in us above the kernel's work, {devices.cpu_name()}, torch {torch.__version__}, 1 thread; "
        f"torch.neg(out=) of 8 elements takes {neg}"
    )
    terminalreporter.write_line(f"  {'op':38s}{'kernel':>11s}{'its work':>10s}{'function':>10s}{'torch.ops':>11s}")
    for info in infos:
        terminalreporter.write_line(
            f"  {info['op']:38s}{info['backend']:>11s}{info['kernel_us']:10.1f}{info['function_us']:10.1f}"
            f"{info['torch_ops_us']:11.1f}"
        )


def _print_floors(terminalreporter: pytest.TerminalReporter, infos: list[dict]) -> None:
    """Prints times in us beside the floor; predictions are marked as such."""
    for info in infos:
        floor = info["floor_us"]
        times = {name.removesuffix("_us"): us for name, us in info.items() if name.endswith("_us")}
        cells = [
            f"{name.replace('_', ' ')} {us:.2f} us ({us / floor:.2f}x)"
            for name, us in times.items()
            if name != "floor" and not name.endswith(("_low", "_high"))
        ]
        for name in (name.removesuffix("_low") for name in times if name.endswith("_low")):
            band = Band(times[f"{name}_low"], times[f"{name}_high"])
            cells.append(f"{name.replace('_', ' ')} {band} us ({band.low / floor:.2f}x .. {band.high / floor:.2f}x)")
        nothing_ran = f"a prediction for an {devices.here().name}, nothing ran"
        where = nothing_ran if "predicted_low" in times else torch.cuda.get_device_name()
        terminalreporter.write_line(
            f"{info['op']:20s}T {info['tokens']:5d} {info['bytes']:>13,} bytes, floor {info['floor_us']:8.2f} us: "
            f"{', '.join(cells)}  [{where}]"
        )

"""Options and markers of the whole suite."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import summary

try:
    from hypothesis import settings

    # Shared machines make deadlines flaky; a fixed seed makes a failure repeatable everywhere.
    settings.register_profile("longcat", deadline=None, derandomize=True, max_examples=25, print_blob=True)
    settings.load_profile("longcat")
except ImportError:
    pass


_CARRIED = pytest.StashKey()  # the registration that --backend cuda keeps


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also run the tests marked slow")
    parser.addoption(
        "--backend",
        choices=("reference", "cpu", "emu", "cuda"),
        help="what runs the ops of these tests: LONGCAT_OPS_BACKEND, or the GPU (tests/support/carried.py)",
    )


def pytest_configure(config: pytest.Config) -> None:
    backend = config.getoption("--backend")
    if backend is None:
        return
    if "longcat_ops" in sys.modules:
        raise pytest.UsageError("--backend comes too late: longcat_ops is already imported")
    if backend == "emu":
        subprocess.run([sys.executable, Path(__file__).parent.parent / "tools" / "build_emulator.py"], check=True)
    if backend != "cuda":
        os.environ["LONGCAT_OPS_BACKEND"] = backend  # read when longcat_ops is imported, by the first test module
        return
    import torch

    if not torch.cuda.is_available():
        raise pytest.UsageError("--backend cuda needs a Hopper GPU: torch sees no CUDA device")
    from support import carried

    config.stash[_CARRIED] = carried.register()


def _gpu_problem() -> str:
    import torch

    from longcat_ops import _library

    if not torch.cuda.is_available():
        return "needs a Hopper GPU: torch sees no CUDA device"
    supported, text = _library.load().device_supported(0)
    return "" if supported else f"needs a Hopper GPU: {text}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    gpu_problem = None
    for item in items:
        if "slow" in item.keywords and not config.getoption("--full"):
            item.add_marker(pytest.mark.skip(reason="slow: runs with --full"))
        if "gpu" in item.keywords:
            gpu_problem = _gpu_problem() if gpu_problem is None else gpu_problem
            if gpu_problem:
                item.add_marker(pytest.mark.skip(reason=gpu_problem))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What tests/conformance/test_conformance.py found, if it ran."""
    if lines := config.stash.get(summary.PRIMITIVES, None):
        terminalreporter.section("primitives of cuda/ptx")
        for line in lines:
            terminalreporter.write_line(line)

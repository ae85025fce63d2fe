"""Options, tiers and markers of the whole suite."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from collections.abc import Callable
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
TESTS = Path(__file__).parent
LONG_FILES = ("test_readme.py", "test_emu_backend.py", "test_model_checkpoint.py", "test_conformance.py")
# Folders whose tests start no compiler and no pytest of their own.
QUICK_FOLDERS = ("cli", "compat", "engine", "integrations", "loading", "model", "ops", "perf")


def pytest_addoption(parser: pytest.Parser) -> None:
    tiers = parser.getgroup("longcat_ops")
    tiers.addoption("--full", action="store_true", help="also run the tests marked slow")
    tiers.addoption("--fast", action="store_true", help="only the folders that need no compiler, no test marked long")
    tiers.addoption(
        "--part",
        metavar="K/N",
        type=_part,
        help="only one N-th of the tests marked slow, and nothing else: each of K = 0 .. N-1 has other ones",
    )
    tiers.addoption(
        "--backend",
        choices=("reference", "cpu", "emu", "cuda"),
        help="what runs the ops of these tests: LONGCAT_OPS_BACKEND, or the GPU (tests/support/carried.py)",
    )


def _part(text: str) -> tuple[int, int]:
    k, _, n = text.partition("/")
    if not (k.isdigit() and n.isdigit() and int(k) < int(n)):
        raise ValueError(text)
    return int(k), int(n)


def pytest_configure(config: pytest.Config) -> None:
    # With these set, pytest writes whole diffs, and diffing two results of a few hundred kB takes minutes.
    for name in ("CI", "BUILD_NUMBER"):
        os.environ.pop(name, None)
    backend = config.getoption("--backend")
    if backend is None:
        return
    if "longcat_ops" in sys.modules:
        raise pytest.UsageError("--backend comes too late: longcat_ops is already imported")
    if backend == "emu":
        subprocess.run([sys.executable, TESTS.parent / "tools" / "build_emulator.py"], check=True)
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


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--fast"):
        _keep(config, items, _is_quick)
    if part := config.getoption("--part"):
        k, n = part
        _keep(config, items, lambda item: "slow" in item.keywords and zlib.crc32(item.nodeid.encode()) % n == k)
    items.sort(key=_starts_late)  # stable: a file's tests stay together and in order
    gpu_problem = None
    for item in items:
        if "slow" in item.keywords and not (config.getoption("--full") or config.getoption("--part")):
            item.add_marker(pytest.mark.skip(reason="slow: runs with --full"))
        if "gpu" in item.keywords:
            gpu_problem = _gpu_problem() if gpu_problem is None else gpu_problem
            if gpu_problem:
                item.add_marker(pytest.mark.skip(reason=gpu_problem))


def _keep(config: pytest.Config, items: list[pytest.Item], wanted: Callable[[pytest.Item], bool]) -> None:
    kept = [item for item in items if wanted(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def _is_quick(item: pytest.Item) -> bool:
    return item.path.relative_to(TESTS).parts[0] in QUICK_FOLDERS and "long" not in item.keywords


def _starts_late(item: pytest.Item) -> bool:
    """Sorts files that take a minute first, so that no worker runs one alone at the end."""
    return item.path.name not in LONG_FILES


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker process of pytest-xdist hands its lines over to the process that prints."""
    if output := getattr(session.config, "workeroutput", None):
        output["primitives"] = session.config.stash.get(summary.PRIMITIVES, [])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object, error: object) -> None:
    if lines := getattr(node, "workeroutput", {}).get("primitives"):
        node.config.stash[summary.PRIMITIVES] = lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints what tests/conformance/test_conformance.py found, if it ran."""
    if lines := config.stash.get(summary.PRIMITIVES, None):
        terminalreporter.section("primitives of cuda/ptx")
        for line in lines:
            terminalreporter.write_line(line)

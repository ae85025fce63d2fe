"""Builds the emulator's C++ tests, its arithmetic and the conformance cases over it; what is up to date stays."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _tool(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


def run(*command: str | Path, **kwargs) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def build(name: str = "emulator-tests", target: str = "everything", flags: str = "") -> Path:
    """The folder build/<name> with emu_tests, libemu_numerics.so and libemu_conformance.so, or one of them."""
    cmake, ninja = _tool("cmake"), _tool("ninja")
    folder = ROOT / "build" / name
    folder.mkdir(parents=True, exist_ok=True)
    options = [f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DCMAKE_BUILD_TYPE=None"]
    if flags:
        options.append(f"-DCMAKE_CXX_FLAGS={flags}")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes may come at once
        run(cmake, "-S", ROOT / "tests" / "emu", "-B", folder, "-G", "Ninja", *options)
        run(cmake, "--build", folder, "--target", target, "--parallel", str(os.cpu_count() or 1))
    return folder

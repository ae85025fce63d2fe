"""Starts a separate pytest process from a test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_pytest(*arguments: str, timeout: float = 1800, **environment: str) -> subprocess.CompletedProcess:
    """Runs pytest on this source tree with one thread, without the environment of the outer pytest and its workers."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LONGCAT_OPS_", "PYTEST_"))}
    path = os.pathsep.join([str(ROOT / "python"), clean.get("PYTHONPATH", "")])
    clean |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, timeout=timeout)

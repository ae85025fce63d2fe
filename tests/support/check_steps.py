"""Steps of a GPU check that need no GPU."""

from __future__ import annotations

import sys
from pathlib import Path

from device_check.runner import Step

PASSED = "1 passed in 0.01s"


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def counting(name: str, folder: Path, then: str = "") -> Step:
    """Counts how often it ran, by a file of its own."""
    code = f"open({str(folder / name)!r}, 'a').write('x'); {then or 'pass'}; print({PASSED!r})"
    return Step(name, python(code), 30, "pytest")


def sleeps_once(name: str, folder: Path) -> Step:
    return counting(name, folder, f"import time; time.sleep(60 * (open({str(folder / name)!r}).read() == 'x'))")

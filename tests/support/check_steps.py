"""Steps of a GPU check that need no GPU."""

from __future__ import annotations

import sys
from pathlib import Path

from device_check.steps import Step

PASSED = "1 passed in 0.01s"


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def command(name: str, code: str, limit: float = 30) -> Step:
    """A step that runs `code` both on a GPU and in a rehearsal."""

    def run(*_: object) -> tuple[str, ...]:
        return python(code)

    return Step(name, 0, limit, command=run, rehearsal=run, parser="pytest")


def prints(name: str, text: str = PASSED, status: int = 0) -> Step:
    return command(name, f"print({text!r}); raise SystemExit({status})")


def counting(name: str, folder: Path, then: str = "") -> Step:
    """A step that appends one byte to its own file on every run."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    return command(name, f"open({str(file)!r}, 'a').write('x'); {then or 'pass'}; print({PASSED!r})")


def sleeps_once(name: str, folder: Path) -> Step:
    return counting(name, folder, f"import time; time.sleep(60 * (open({str(folder / name)!r}).read() == 'x'))")

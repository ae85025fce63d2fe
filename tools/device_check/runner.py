"""Runs the steps of a part, one after another, each under its limit, and keeps the report up to date on disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .parse import PARSERS

FINISHED = ("passed", "failed", "timed out")  # what a later run does not repeat
TAIL = 2000  # characters of a step's output that the report keeps if it did not pass
LOG_LIMIT = 12 << 20  # bytes
WORTH_STARTING_S = 5  # what must be left of the part's time


@dataclass(frozen=True)
class Step:
    name: str
    command: tuple[str, ...]
    limit_s: float
    parser: str  # of PARSERS
    environment: dict[str, str] = field(default_factory=dict)
    resumes: bool = False  # called again, it goes on where it was stopped


class Report:
    """report.json in the output folder: facts of the machine, then every step's outcome by part."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "report.json"
        self.log = folder / "log.txt"
        self.content: dict = {"facts": {}, "parts": {}}
        if self.path.exists():
            self.content = json.loads(self.path.read_text())

    def save(self) -> None:
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.content, indent=1) + "\n")
        unfinished.replace(self.path)  # a kill leaves the old report or the new one

    def steps(self, part: int) -> dict[str, dict]:
        return self.content["parts"].setdefault(str(part), {})

    def append_log(self, text: str) -> None:
        with self.log.open("ab") as file:
            file.write(text.encode()[: max(0, LOG_LIMIT - file.tell())])


def execute(step: Step, limit_s: float) -> tuple[int | None, str]:
    """(exit status, output) of the step's command; the status is None if it was stopped at the limit."""
    process = subprocess.Popen(
        step.command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=os.environ | step.environment,
        text=True,
        errors="replace",
        start_new_session=True,  # its children end with it
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return None, output
    except BaseException:  # this process is being stopped
        os.killpg(process.pid, signal.SIGKILL)
        raise


def outcome(step: Step, status: int | None, output: str) -> dict:
    found = PARSERS[step.parser](output)
    ok = found.pop("ok") and status == 0
    state = "timed out" if status is None else "passed" if ok else "failed"
    entry = {"status": state, "exit_status": status, "result": found}
    return entry if ok else entry | {"tail": output[-TAIL:]}


def say_at_once(text: str) -> None:
    print(text, flush=True)


def run_part(
    report: Report, part: int, steps: list[Step], budget_s: float, say: Callable[[str], None] = say_at_once
) -> bool:
    """Runs what is not finished yet, as far as the time allows; true when nothing is left.

    A step that outlives its own limit is "timed out" and done with; one that only the part's end cut off, or that can
    go on where it was stopped, is run again.
    """
    end = time.monotonic() + budget_s
    done = report.steps(part)
    for step in steps:
        if done.get(step.name, {}).get("status") in FINISHED:
            say(f"{step.name}: {done[step.name]['status']} (earlier)")
            continue
        left = end - time.monotonic()
        if left < min(step.limit_s, WORTH_STARTING_S):
            say(f"part {part} is out of time before {step.name}: run it again")
            return False
        entry = {"command": list(step.command), "environment": step.environment, "limit_s": step.limit_s}
        done[step.name] = entry | {"status": "running", "date": time.strftime("%Y-%m-%d %H:%M:%S")}
        report.save()
        start = time.monotonic()
        try:
            status, output = execute(step, min(step.limit_s, left))
        except OSError as error:
            status, output = 127, f"{step.command[0]}: {error}"
        entry = done[step.name] | outcome(step, status, output) | {"seconds": round(time.monotonic() - start, 1)}
        if status is None and (step.resumes or left < step.limit_s):
            entry["status"] = "interrupted"
        done[step.name] = entry
        report.append_log(f"== {step.name}: {' '.join(step.command)}\n{output}\n")
        report.save()
        say(f"{step.name}: {entry['status']} in {entry['seconds']} s {json.dumps(entry['result'])[:200]}")
    return all(done[step.name]["status"] in FINISHED for step in steps)

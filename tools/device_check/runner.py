"""Runs a plan within a budget: questions by a worker, commands as processes of their own, each under its limit."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .answers import Answers
from .environment import ROOT, Environment
from .parse import PARSERS
from .steps import Step

START_LIMIT_S = 120.0  # a worker must import torch by then, from a cold disk and with a faulty driver
TAIL = 1500  # characters of a step's output that its answer keeps if it did not pass
Outcome = dict[str, Any]  # status, and answer or text


def search_path(environment: Environment) -> dict[str, str]:
    """The variables of every step: the package, and the folders that its programs import from."""
    variables = environment.variables()
    own = os.pathsep.join(str(ROOT / name) for name in ("tools", "bench", "tests"))
    return variables | {"PYTHONPATH": f"{variables['PYTHONPATH']}{os.pathsep}{own}"}


class Worker:
    """A child that answers questions; its output goes to `log`."""

    def __init__(self, environment: Environment, log: Path) -> None:
        ours, theirs = os.pipe()
        command = [sys.executable, "-m", "device_check.worker", str(theirs), environment.device]
        command += [str(environment.conformance), str(environment.traced)]
        with log.open("ab") as words:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=words, stderr=subprocess.STDOUT, text=True,
                env=os.environ | search_path(environment), pass_fds=(theirs,), start_new_session=True,
            )  # fmt: skip
        os.close(theirs)
        self._answers, self._rest = ours, b""

    def start(self, limit_s: float) -> Outcome | None:
        """None when it is ready."""
        line = self._line(limit_s)
        return None if line is not None and "ready" in line else self._gone(line is None, "starting", limit_s)

    def ask(self, question: str, arguments: dict[str, Any], limit_s: float) -> Outcome:
        try:
            self.process.stdin.write(json.dumps([question, arguments]) + "\n")
            self.process.stdin.flush()
            line = self._line(limit_s)
        except BrokenPipeError:
            line = {}
        if not line:
            return self._gone(line is None, "the question", limit_s)
        if "answer" in line:
            return {"status": "passed", "answer": line["answer"]}
        if line.get("broken"):
            self.stop()
        return {"status": "failed", "text": line["error"]}

    def _gone(self, late: bool, what: str, limit_s: float) -> Outcome:
        self.stop()
        if late:
            return {"status": "timed out", "text": f"{what}: no answer in {limit_s:.0f} s"}
        return {"status": "crashed", "text": f"the worker ended with status {self.process.returncode}"}

    def _line(self, limit_s: float) -> dict[str, Any] | None:
        """The next line; {} at the end of the output, None if it takes too long."""
        end = time.monotonic() + limit_s
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return None
            if not (part := os.read(self._answers, 1 << 16)):
                self.process.wait(10)
                return {}
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    @property
    def alive(self) -> bool:
        return self.process.returncode is None

    def stop(self) -> None:
        if self.alive:
            kill(self.process)
        self.process.stdin.close()
        if self._answers >= 0:
            os.close(self._answers)
            self._answers = -1


def kill(process: subprocess.Popen) -> None:
    """With its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def execute(command: Sequence[str], variables: dict[str, str], limit_s: float) -> tuple[int | None, str]:
    """(exit status, output) of a command; the status is None if it was stopped at the limit."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=os.environ | variables,
        text=True,
        errors="replace",
        start_new_session=True,  # its children end with it
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        kill(process)
        return None, process.communicate()[0]
    except BaseException:  # this process is being stopped
        kill(process)
        raise


@dataclass
class Run:
    """One call of the check. It ends after `budget_s`; `say` prints a line."""

    answers: Answers
    environment: Environment
    out: Path
    budget_s: float
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._end = time.monotonic() + self.budget_s
        self._worker: Worker | None = None

    def steps(self, steps: Sequence[Step]) -> list[str]:
        """Runs what is not finished, in order; a step that does not fit into what is left is skipped for later ones
        that do. Returns the names of those that are left."""
        left = []
        try:
            for step in steps:
                if self.answers.is_finished(step.name):
                    continue
                if self._end - time.monotonic() < step.seconds:
                    left.append(step.name)
                    continue
                outcome = self._step(step)
                if outcome["status"] == "interrupted":
                    left.append(step.name)
        finally:
            if self._worker:
                self._worker.stop()
        return left

    def _step(self, step: Step) -> Outcome:
        start, remaining = time.monotonic(), self._end - time.monotonic()
        limit = min(step.limit_s, remaining)
        try:
            outcome = self._ask(step, limit) if step.ask else self._execute(step, limit)
        except OSError as error:
            outcome = {"status": "failed", "text": f"{type(error).__name__}: {error}"}
        if outcome["status"] == "timed out" and (step.resumes or limit < step.limit_s):
            outcome["status"] = "interrupted"  # by the end of the budget, not by its own limit
        seconds = round(time.monotonic() - start, 2)
        line = {"step": step.name, "date": time.strftime("%Y-%m-%d %H:%M:%S"), "seconds": seconds} | outcome
        self.answers.add(line)
        told = outcome.get("text") or json.dumps(outcome.get("answer", {}))
        self.say(f"{step.name}: {outcome['status']} in {seconds} s {told[:150]}")
        return outcome

    def _ask(self, step: Step, limit_s: float) -> Outcome:
        if self._worker is None or not self._worker.alive:
            begin = time.monotonic()
            self._worker = Worker(self.environment, self.answers.log)
            if problem := self._worker.start(min(START_LIMIT_S, self._end - begin)):
                return problem
            limit_s = min(limit_s, self._end - time.monotonic())
        return self._worker.ask(step.ask, step.arguments_on(self.environment.real), limit_s)

    def _execute(self, step: Step, limit_s: float) -> Outcome:
        command = step.command_on(self.environment.real, self.environment, self.out)
        status, output = execute(command, search_path(self.environment) | step.variables, limit_s)
        self.answers.append_log(f"== {step.name}: {' '.join(command)}\n{output}\n")
        found = PARSERS[step.parser](output)
        ok = found.pop("ok") and status == 0
        state = "timed out" if status is None else "passed" if ok else "failed"
        outcome: Outcome = {"status": state, "command": list(command), "exit_status": status, "answer": found}
        return outcome if ok else outcome | {"text": output[-TAIL:]}

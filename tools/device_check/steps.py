"""What a step of a check is: a question that the worker answers, or a command of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .environment import Environment

Command = Callable[[Environment, Path], tuple[str, ...]]  # of the libraries and the output folder


@dataclass(frozen=True)
class Step:
    """seconds: its expected time on an H200. limit_s: after this, its process is stopped.

    ask: a function of device_check.questions, with its arguments; small: those that differ in a rehearsal.
    command: a process of its own, which parse.PARSERS[parser] reads; rehearsal: what a rehearsal runs in its place.
    resumes: called again, it goes on where it was stopped.
    """

    name: str
    seconds: float
    limit_s: float = 60
    ask: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    small: dict[str, Any] = field(default_factory=dict)
    command: Command | None = None
    rehearsal: Command | None = None
    parser: str = "json"
    variables: dict[str, str] = field(default_factory=dict)
    resumes: bool = False

    def arguments_on(self, real: bool) -> dict[str, Any]:
        return self.arguments if real else self.arguments | self.small

    def command_on(self, real: bool, environment: Environment, out: Path) -> tuple[str, ...]:
        make = self.command if real else self.rehearsal
        assert make is not None, self.name
        return make(environment, out)

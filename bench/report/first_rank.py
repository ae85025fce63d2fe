"""One report of several ranks that run the same tests: the first prints and writes, the others tell what failed."""

from __future__ import annotations

import io
import os
import sys
import time

import pytest
from _pytest.terminal import TerminalReporter

from . import fleet

_NAME = "ranks that are silent"
LEAVE_S = 10.0


class _Silent:
    """Keeps what a rank would have printed, and prints it if a test failed there. Then it stays until the first rank
    has printed, too: torchrun ends all ranks when one ends with an error."""

    def __init__(self, config: pytest.Config) -> None:
        self.text, self.status = io.StringIO(), 0
        config.pluginmanager.unregister(config.pluginmanager.getplugin("terminalreporter"))
        config.pluginmanager.register(TerminalReporter(config, self.text), "terminalreporter")

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        self.status = int(exitstatus)

    def pytest_unconfigure(self, config: pytest.Config) -> None:
        if self.status in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            return
        rank = os.environ["RANK"]
        sys.stderr.write("".join(f"rank {rank} | {line}\n" for line in self.text.getvalue().splitlines()))
        sys.stderr.flush()
        until = time.monotonic() + LEAVE_S
        while fleet.first_lives() and time.monotonic() < until:
            time.sleep(0.1)


def configure(config: pytest.Config) -> None:
    """For the hook pytest_configure, after that of all others. A second call does nothing."""
    if fleet.is_first_rank() or config.pluginmanager.has_plugin(_NAME):
        return
    config.pluginmanager.register(_Silent(config), _NAME)
    if session := getattr(config, "_benchmarksession", None):  # of pytest-benchmark: it has nothing to save
        session.json = session.save = session.autosave = session.compare = None

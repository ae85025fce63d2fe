"""Ranks for bench_comm.py and bench_ep.py, one report of all of them, and its tables at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import report as reports
from comm import claim, ep_tables, tables
from comm.ep_field import ExpertField
from comm.field import Field
from report import devices, first_rank
from report.fleet import Fleet, ranks_here


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--claim", action="store_true", help="bench_comm.py: also the sentence of the report, row by row")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--claim") and (why := claim.refusal(ranks_here(), torch.cuda.device_count())):
        raise pytest.UsageError(why)
    first_rank.configure(config)


@pytest.fixture(scope="session")
def comm_field() -> Iterator[Field | None]:
    yield from _opened(Field)


@pytest.fixture(scope="session")
def expert_field() -> Iterator[ExpertField | None]:
    yield from _opened(ExpertField)


def _opened(kind: Callable[[Fleet], Any]) -> Iterator[Any]:
    """A field over the ranks of torchrun. None without torchrun: then nothing runs."""
    if not ranks_here():
        yield None
        return
    fleet = Fleet.start()
    try:
        field = kind(fleet)
        yield field
        field.close()
    finally:
        fleet.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    infos = [bench.extra_info for bench in getattr(session, "benchmarks", None) or []]
    experts = [info for info in infos if "expert_call" in info]
    infos = [info for info in infos if "collective" in info]
    lines = tables.measured_lines(infos) + ep_tables.measured_lines(experts)
    if config.getoption("--claim"):
        lines += claim.lines(infos)
    predicted = [info for group, info in reports.predictions(config) if group == "comm"]
    lines += tables.predicted_lines(predicted, devices.here().name)
    predicted = [info for group, info in reports.predictions(config) if group == "experts over ranks"]
    for line in lines + ep_tables.predicted_lines(predicted, devices.here().name):
        terminalreporter.write_line(line)

"""One cell of a bench: measured, as a benchmark of pytest-benchmark, or predicted, which is no benchmark at all. If
nothing ran there is no time, so there is no row in a table, no statistic and no entry in --benchmark-json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longcat_ops.perf import Band

from . import devices

PREDICTIONS = pytest.StashKey[list[tuple[str, dict]]]()


class Report:
    """Runs one cell; `info` then holds the facts about it."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request
        self.info: dict[str, Any] = {}

    def measured(self, group: str, measure: Callable, *arguments: object) -> Any:
        """The result of `measure`, which runs once."""
        benchmark = self._request.getfixturevalue("benchmark")
        benchmark.group, self.info = group, benchmark.extra_info
        return benchmark.pedantic(measure, arguments, rounds=1)

    def predicted(self, group: str, predict: Callable, *arguments: object) -> Any:
        """The result of `predict`, which is not timed."""
        self._request.config.stash.setdefault(PREDICTIONS, []).append((group, self.info))
        return predict(*arguments)


def band_us(band: Band, name: str = "predicted") -> dict[str, float]:
    """A band in the form that a cell's `info` has."""
    return {f"{name}_low_us": band.low, f"{name}_high_us": band.high}


def predictions(config: pytest.Config) -> list[tuple[str, dict]]:
    return config.stash.get(PREDICTIONS, [])


def write_predictions(config: pytest.Config, path: Path) -> None:
    """Writes them in the form of pytest-benchmark's file, under a key of their own."""
    found = [{"group": group, "extra_info": info} for group, info in predictions(config)]
    content = {"machine_info": devices.machine_facts(), "predictions": found}
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")

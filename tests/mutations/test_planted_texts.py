"""Every planted bug of the suite, including the long tier's, still finds its files, and its text exactly once."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.kernel_mutations import Mutation, text_problem

TESTS = Path(__file__).resolve().parents[1]
FILES = sorted(path for path in TESTS.rglob("test_*.py") if "Mutation" in path.read_text() and path != Path(__file__))


def _mutations(value: Any) -> Iterator[Mutation]:
    if isinstance(value, Mutation):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _mutations(item)


def _planted(path: Path) -> list[Mutation]:
    """The bugs in the lists of the file, each once."""
    spec = importlib.util.spec_from_file_location(f"planted_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(dict.fromkeys(m for value in vars(module).values() for m in _mutations(value)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_text_is_there_once(path: Path) -> None:
    mutations = _planted(path)
    assert mutations, f"{path.name} holds no planted bug in a list"
    assert [problem for problem in map(text_problem, mutations) if problem] == []


def test_all_of_them_are_found() -> None:
    """No bug hides in a form that the search misses: a new bug must be counted here, too."""
    assert sum(len(_planted(path)) for path in FILES) == 623


@pytest.mark.parametrize(
    "header, old, expected",
    [
        ("moe_route/gone.cuh", "x", "cuda/moe_route/gone.cuh does not exist"),
        ("moe_route/moe_route.cuh", "no such text", "has 0 times"),
        ("moe_route/moe_route.cuh", "ptx::", "expected 1"),
    ],
)
def test_a_text_that_moved_is_reported(header: str, old: str, expected: str) -> None:
    assert expected in text_problem(Mutation("moved", "moe_route/moe_route.cu", header, old, ""))

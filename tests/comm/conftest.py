"""Ranks for the tests of this folder: four processes, started once.

A test with the fixture `world` runs among 1, 2, 3 and 4 of them, over each of RUNGS.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.comm_ranks import Keeper, Ranks

RUNGS = ("gloo",)


@pytest.fixture(scope="session")
def keeper() -> Iterator[Keeper]:
    found = Keeper()
    yield found
    found.close()


@pytest.fixture(scope="session", params=RUNGS)
def rung(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=(1, 2, 3, 4), ids=lambda n: f"{n} ranks")
def world(request: pytest.FixtureRequest, keeper: Keeper, rung: str) -> Ranks:
    return Ranks(keeper, request.param, rung)


@pytest.fixture(params=(2, pytest.param(3, marks=pytest.mark.slow), 4), ids=lambda n: f"{n} ranks")
def peers(request: pytest.FixtureRequest, keeper: Keeper, rung: str) -> Ranks:
    """A world of more than one rank."""
    return Ranks(keeper, request.param, rung)


@pytest.fixture
def pair(keeper: Keeper, rung: str) -> Ranks:
    """Two ranks."""
    return Ranks(keeper, 2, rung)

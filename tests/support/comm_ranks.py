"""Ranks that the tests of communicators share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from support.comm_pool import Pool

RANKS = 4


class Keeper:
    """One pool, started anew after a job has failed: its ranks are then out of step."""

    def __init__(self) -> None:
        self._pool: Pool | None = None

    def run(self, count: int, job: str, /, **arguments: Any) -> list[Any]:
        if self._pool is None:
            self._pool = Pool(RANKS, subgroups=True)
        try:
            return self._pool.run(count, job, **arguments)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None


@dataclass
class Ranks:
    """The first `ranks` processes, and the rung of their communicators."""

    keeper: Keeper
    ranks: int
    rung: str

    def run(self, job: str, **arguments: Any) -> list[Any]:
        """What each rank's job returned."""
        return self.keeper.run(self.ranks, job, ranks=self.ranks, backend=self.rung, **arguments)

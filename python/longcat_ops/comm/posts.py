"""What ranks tell each other through the store: posts of each rank, and one record of the first failure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import LongcatCommError, LongcatError, LongcatTimeoutError


@dataclass
class Post:
    """Where a rank is in one channel.

    call: number of its newest call, from 1. step, stage: the part of that call it has come to. text: the call, the same
    text on every rank of a right program. waiting: it has waited there for a while, so it is alive and not the cause.
    refused: number and error of the newest calls that it refused. closed: it has closed its communicator.
    """

    call: int = 0
    step: int = 0
    stage: str = ""
    text: str = ""
    waiting: bool = False
    refused: list[tuple[int, str]] = field(default_factory=list)
    closed: bool = False

    def dumps(self) -> str:
        return json.dumps(list(self.__dict__.values()))

    @staticmethod
    def loads(text: bytes) -> Post:
        return Post(*json.loads(text))

    def __str__(self) -> str:
        if self.closed:
            return f"closed its communicator after call {self.call}"
        if self.call == 0:
            return "has made no call yet"
        at = f"in stage `{self.stage}`" if self.text else "before its first stage"
        return f"last seen {at} of call {self.call}" + (f", {self.text}" if self.text else "")


@dataclass
class Record:
    """The first failure of a communicator. by: the rank that found it. seen: of a timeout, the missing ranks."""

    by: int
    text: str
    op: str = ""
    slot: str = ""
    expected: int = 0
    seen: dict[int, str] | None = field(default=None)

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def loads(text: bytes) -> Record | None:
        """None where no failure is recorded."""
        if not text:
            return None
        record = Record(**json.loads(text))
        if record.seen is not None:
            record.seen = {int(rank): seen for rank, seen in record.seen.items()}
        return record

    @staticmethod
    def of(error: Any, by: int) -> Record:
        if isinstance(error, LongcatTimeoutError):
            return Record(by, str(error), error.op, error.slot, error.expected, error.seen)
        return Record(by, str(error))

    def error(self, rank: int) -> LongcatError:
        """The failure as `rank` raises it."""
        if self.seen is None:
            return LongcatCommError(self.text + ("" if self.by == rank else f"\n  found by rank {self.by}"))
        note = "" if self.by == rank else f"rank {self.by} waited longest"
        if rank in self.seen:
            note = f"rank {self.by} gave up before this rank came"
        return LongcatTimeoutError(rank, self.op, self.slot, self.expected, self.seen, note)

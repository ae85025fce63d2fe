"""What the ranks of a model tell each other on the host: numbers that all must know, or must have alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ..comm import Communicator
from ..comm.store import client_of
from ..errors import LongcatCommError, LongcatShapeError, LongcatTimeoutError, message

BYTES = 4096
# What can be asked, in an order that all ranks know: so that ranks that ask other things say so.
QUESTIONS = (
    "a pass", "the rows of a step", "who has tokens left", "a seed", "tp_form", "the tp_group", "its size", "a failure",
    "config", "checkpoint", "precision", "arguments", "input_ids",
)  # fmt: skip
T = TypeVar("T")


class Agreement:
    """Collectives of all ranks of `group`, on the host."""

    def __init__(self, group: Any, timeout_s: float | None = None) -> None:
        self.comm = _meet(group, timeout_s)
        self.rank, self.ranks = self.comm.rank, self.comm.ranks

    def ask(self, question: str, *values: int) -> list[list[int]]:
        """Every rank's values, two at most. Raises LongcatCommError on all ranks if they ask other things."""
        mine = [QUESTIONS.index(question), *values, *[0] * (2 - len(values))]
        found = self.comm.all_gather(torch.tensor([mine], dtype=torch.int64)).tolist()
        if len({code for code, *_ in found}) > 1:
            asked = ", ".join(f"{QUESTIONS[code]} on rank {r}" for r, (code, *_) in enumerate(found))
            raise LongcatCommError(f"LongcatFlashForCausalLM: ranks do not make the same calls: {asked}.")
        return [given[: len(values)] for _, *given in found]

    def of_all(self, question: str, value: int) -> list[int]:
        """Every rank's number."""
        return [number for (number,) in self.ask(question, value)]

    def require_same(self, op: str, what: str, value: object) -> None:
        """Raises LongcatShapeError on every rank if ranks have other values of `what`, one of QUESTIONS."""
        found = self.of_all(what, digest(value))
        if len(set(found)) > 1:
            alike = [[r for r, other in enumerate(found) if other == one] for one in dict.fromkeys(found)]
            got = ", ".join(f"one on ranks {ranks}" for ranks in alike)
            raise LongcatShapeError(message(op, what, got, "the same on every rank"))

    def together(self, work: Callable[[], T]) -> T:
        """work() on every rank. Where it fails on one, all raise: that rank its error, the others one that names it."""
        error: Exception | None = None
        try:
            value = work()
        except Exception as raised:
            error = raised
        failed = [r for r, bad in enumerate(self.of_all("a failure", int(error is not None))) if bad]
        if error is not None:
            raise error
        if failed:
            raise LongcatCommError(f"from_pretrained: ranks {failed} failed and say why, so no rank has a model.")
        return value


def digest(value: object) -> int:
    """56 bits that tell values apart."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    text = json.dumps(plain, sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")


def _meet(group: Any, timeout_s: float | None) -> Communicator:
    """Raises LongcatShapeError where a rank did not come since it waits in an ep_group of other ranks."""
    own, client = dist.get_process_group_ranks(group), client_of(dist.distributed_c10d._get_default_store())
    store = client.store

    def key(rank: int) -> str:
        return f"longcat_ops/model/{rank}"

    def post(waits: bool) -> None:
        client.ask(lambda: store.set(key(dist.get_rank()), json.dumps([waits, own])))

    post(True)
    try:
        comm = Communicator(group, BYTES, backend="gloo", num_channels=1, timeout_s=timeout_s)
    except LongcatTimeoutError as error:
        for rank in (own[r] for r in error.missing):
            posted = client.ask(lambda rank=rank: store.check([key(rank)]) and store.get(key(rank)))
            waits, theirs = json.loads(posted) if posted else (False, own)
            if theirs == own:
                continue
            if waits:
                got = f"of ranks {own}, and of ranks {theirs} on rank {rank}, which did not come"
                expected = "the same on every rank of it"
                raise LongcatShapeError(message("from_pretrained", "ep_group", got, expected)) from error
            note = f"{error.note}\n  rank {rank} last made a model of ranks {theirs}".strip()
            raise LongcatTimeoutError(error.rank, error.op, error.slot, error.expected, error.seen, note) from None
        raise
    post(False)
    return comm

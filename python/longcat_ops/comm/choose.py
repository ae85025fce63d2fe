"""The ladder of rungs: which one all ranks take, decided once and together.

Every rank says for each rung why it cannot use it. A rung that nobody objects to is built, from the fastest down; then
the ranks vote again, and where one of them failed, all drop it and take the next.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .._environment import RUNGS
from ..errors import LongcatError, LongcatUnsupportedError
from .providers.exchange import of_ranks
from .rungs import connect
from .rungs.base import Rung, Session
from .watch import GivenUp


@dataclass(frozen=True)
class Ladder:
    """The ways that ranks have of reaching each other, from the fastest down.

    what: who takes one, for errors. objection(name, device, ranks): why this rank cannot use a way, "" if it can.
    build(name, session) makes it, on all ranks together. named_alone: ways that only a caller's name chooses.
    word: what a way is called.
    """

    what: str
    names: tuple[str, ...]
    objection: Callable[[str, torch.device, int], str]
    build: Callable[[str, Session], Any]
    named_alone: tuple[str, ...] = ()
    word: str = "rung"


_DEVICE = ("multimem", "p2p")
_GIVEN_UP = "gave up, since another rank failed"


def group_device(process_group: object) -> torch.device:
    """Where the process group computes: the current GPU if it has a backend for one, else the host."""
    types = {device.type for device in process_group._device_types}
    if "cuda" in types and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def objections(ladder: Ladder, device: torch.device, ranks: int) -> dict[str, str]:
    """For each way why this rank cannot use it; "" if it can. Calls no collective."""
    return {name: ladder.objection(name, device, ranks) for name in ladder.names}


def _objection(name: str, device: torch.device, ranks: int) -> str:
    if name not in _DEVICE:
        return connect.reason(name, device)
    return _device().objection(name, device)


def _device() -> Any:
    """The module of the device rungs, which other rungs do without."""
    return importlib.import_module(".rungs.device", __package__)


def _build(name: str, session: Session) -> Rung:
    if name in _DEVICE:
        return _device().build(name, session)
    return connect.build(name, session)


def choose(ladder: Ladder, session: Session, votes: list[dict[str, str]]) -> tuple[Any, str, dict[str, str]]:
    """The way, its name, and why each one above or below it is not used. Collective.

    votes: every rank's `objections`. Raises LongcatUnsupportedError on all ranks if a way is asked for by name and a
    rank cannot use it.
    """
    wanted, names = session.config.backend, ladder.names
    why_not = {name: _common([vote[name] for vote in votes]) for name in names}
    tried = [name for name in names if name not in ladder.named_alone] if wanted == "auto" else [wanted]
    for name in tried:
        if why_not[name]:
            continue
        rung, problem, vote = None, "", f"built {name}"
        session.watch.vote = vote
        try:
            rung = ladder.build(name, session)
        except GivenUp:
            problem = _GIVEN_UP
        except LongcatError as error:
            problem = str(error)
            if session.watch.failure is not None:
                raise
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        why_not[name] = _common(session.watch.gather(vote, problem))
        if not why_not[name]:
            below = names[names.index(name) + 1 :]
            why_not |= {other: why_not[other] or f"{name} comes first" for other in below}
            return rung, name, {other: why for other, why in why_not.items() if other != name}
        if rung is not None:
            rung.close()
    if wanted == "auto":
        reasons = "\n  ".join(f"{name}: {why}" for name, why in why_not.items())
        raise LongcatUnsupportedError(f"{ladder.what}: no {ladder.word} serves these ranks.\n  {reasons}")
    raise LongcatUnsupportedError(f"{ladder.what}: the {ladder.word} `{wanted}` is not available: {why_not[wanted]}.")


def _common(reasons: list[str]) -> str:
    """One text of every rank's reason, "" where nobody objects."""
    return of_ranks({r: why for r, why in enumerate(reasons) if why not in ("", _GIVEN_UP)}, len(reasons))


COLLECTIVES = Ladder("Communicator", RUNGS[1:], _objection, _build)  # multimem, p2p, nccl, gloo

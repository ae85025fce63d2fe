"""The ladder of rungs: which one all ranks take, decided once and together.

Every rank says for each rung why it cannot use it. A rung that nobody objects to is built, from the fastest down; then
the ranks vote again, and where one of them failed, all drop it and take the next.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from .._environment import RUNGS
from ..errors import LongcatError, LongcatUnsupportedError
from .providers.exchange import of_ranks
from .rungs import connect
from .rungs.base import Rung, Session
from .watch import GivenUp

LADDER = RUNGS[1:]  # multimem, p2p, nccl, gloo
_DEVICE = ("multimem", "p2p")
_GIVEN_UP = "gave up, since another rank failed"


def group_device(process_group: object) -> torch.device:
    """Where the process group computes: the current GPU if it has a backend for one, else the host."""
    types = {device.type for device in process_group._device_types}
    if "cuda" in types and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def objections(device: torch.device) -> dict[str, str]:
    """For each rung why this rank cannot use it; "" if it can. Calls no collective."""
    return {name: _objection(name, device) for name in LADDER}


def _objection(name: str, device: torch.device) -> str:
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


def choose(session: Session, votes: list[dict[str, str]]) -> tuple[Rung, str, dict[str, str]]:
    """The rung, its name, and why each rung above or below it is not used. Collective.

    votes: every rank's `objections`. Raises LongcatUnsupportedError on all ranks if a rung is asked for by name and a
    rank cannot use it.
    """
    wanted = session.config.backend
    why_not = {name: _common([vote[name] for vote in votes]) for name in LADDER}
    for name in LADDER if wanted == "auto" else (wanted,):
        if why_not[name]:
            continue
        rung, problem, vote = None, "", f"built {name}"
        session.watch.vote = vote
        try:
            rung = _build(name, session)
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
            below = LADDER[LADDER.index(name) + 1 :]
            why_not |= {other: why_not[other] or f"{name} comes first" for other in below}
            return rung, name, {other: why for other, why in why_not.items() if other != name}
        if rung is not None:
            rung.close()
    if wanted == "auto":
        reasons = "\n  ".join(f"{name}: {why}" for name, why in why_not.items())
        raise LongcatUnsupportedError(f"Communicator: no rung serves these ranks.\n  {reasons}")
    raise LongcatUnsupportedError(f"Communicator: the rung `{wanted}` is not available: {why_not[wanted]}.")


def _common(reasons: list[str]) -> str:
    """One text of every rank's reason, "" where nobody objects."""
    return of_ranks({r: why for r, why in enumerate(reasons) if why not in ("", _GIVEN_UP)}, len(reasons))

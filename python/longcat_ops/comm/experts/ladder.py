"""Which backend the ranks take, decided once and together: nvl, torch, and deepep where it is asked for by name."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from ..choose import Ladder
from ..rungs.base import Session

_MODULES = {"nvl": "nvl", "torch": "group", "deepep": "deepep"}
BACKENDS = ("auto", "local", *_MODULES)


def _module(name: str) -> Any:
    return importlib.import_module(f".{_MODULES[name]}", __package__)


def _objection(name: str, device: torch.device, ranks: int) -> str:
    if name == "local":
        return f"it serves one rank, and there are {ranks}"
    return _module(name).objection(device)


def _build(name: str, session: Session) -> Any:
    return _module(name).build(session)


LADDER = Ladder("ExpertParallel", BACKENDS[1:], _objection, _build, named_alone=("deepep",), word="backend")

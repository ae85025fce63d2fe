"""The interface that the bench needs of an implementation."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from products.problem import Problem


@dataclass
class Call:
    """The product of one copy of the operands.

    run: what is timed. outs: what it wrote last; it may replace them. rows: the result as bf16 [M, N], not timed.
    """

    run: Callable[[], object]
    outs: list[Tensor]
    rows: Callable[[], Tensor]


@dataclass(frozen=True)
class Peer:
    """available: why it cannot run on this machine, None if it can. prepare: one Call for each copy of the operands;
    work that a framework does once, when it loads weights, belongs here. rounding: see `Problem.disagreement`.
    """

    name: str
    available: Callable[[], str | None]
    prepare: Callable[[Problem], list[Call]]
    rounding: float = 0.0


@cache
def no_gpu() -> str | None:
    return None if torch.cuda.is_available() else "needs a GPU"


@cache
def not_importable(module: str, package: str) -> str | None:
    """Imports can be slow and have side effects: they wait until there is a GPU."""
    if reason := no_gpu():
        return reason
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a package does when it is imported
        return f"{package} cannot be imported: {type(error).__name__}: {error}"
    return None

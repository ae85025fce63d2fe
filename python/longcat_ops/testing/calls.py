"""Parts of the calls of `op_cases`: a call, its random numbers, and the groups of the products."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Call(NamedTuple):
    """Arguments of a public function."""

    args: tuple
    kwargs: dict[str, Any]


def seeded(function: Callable[..., Call]) -> Callable[..., Call]:
    @functools.wraps(function)
    def build(*args: Any, **kwargs: Any) -> Call:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return function(*args, **kwargs)

    return build


def call(*args: Any, **kwargs: Any) -> Call:
    return Call(args, kwargs)


def offsets_of(groups: int, rows: int) -> Tensor:
    """Unaligned offsets, with an empty group and rows left over at the end."""
    inner = [rows * g // (groups + 1) for g in range(1, groups)]
    if groups > 2:
        inner[1] = inner[0]
    return torch.tensor([0, *inner, max(rows - 1, 0)], dtype=torch.int32)


def masked_m_of(groups: int, rows: int) -> Tensor:
    return torch.tensor([(3 * g) % (rows + 1) for g in range(groups)], dtype=torch.int32)


def m_indices_of(groups: int, rows: int) -> Tensor:
    """Every fifth row is of no group."""
    indices = [-1 if i % 5 == 4 else i * groups // max(rows, 1) for i in range(rows)]
    return torch.tensor(indices, dtype=torch.int32)

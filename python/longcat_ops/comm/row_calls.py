"""The calls that move rows between ranks in the order of plans, for gradients: their checks, and the text that
describes each to other ranks. No graph of torch.compile holds them: what a rank sends is known on the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import LongcatUnsupportedError, message
from ..types import Plan
from . import checks
from .expert_calls import Given
from .experts.base import ExpertWay, Routes, RowWay
from .runner import Prepared

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def routes(given: Given, way: ExpertWay, plan: Any, found: list[Routes]) -> Prepared:
    moving = _moving("routes", way)
    experts = given.config.num_ffn_experts
    if not isinstance(plan, Plan):
        raise checks.refuse("routes", "plan", f"of type {type(plan).__name__}", "a Plan, from moe_plan")
    checks.tensor("routes", "plan.offsets", plan.offsets, given.limits, (torch.int32,))
    if list(plan.offsets.shape) != [experts + 1]:
        got, expected = f"of shape {list(plan.offsets.shape)}", f"[{experts + 1}], of all FFN experts"
        raise checks.refuse("routes", "plan.offsets", got, expected)
    _own_tokens(plan, given)

    def act() -> None:
        found.append(moving.routes(plan.offsets))

    return "routes", act


@checks.rank_local
def _own_tokens(plan: Plan, given: Given) -> None:
    tokens, most = len(plan.row_of), given.config.max_tokens
    if tokens > most:
        raise checks.refuse("routes", "plan", f"of {tokens} tokens", f"at most {most}, max_tokens")


def forth(given: Given, way: ExpertWay, rows: Any, known: Routes, found: list[Tensor]) -> Prepared:
    moving, text = _moving("forth", way), _rows("forth", rows, sum(known.sent), given)

    def act() -> None:
        found.append(moving.forth(rows, known))

    return text, act


def back(given: Given, way: ExpertWay, rows: Any, known: Routes, found: list[Tensor]) -> Prepared:
    moving, text = _moving("back", way), _rows("back", rows, sum(known.came), given)

    def act() -> None:
        found.append(moving.back(rows, known))

    return text, act


def _moving(op: str, way: ExpertWay) -> RowWay:
    if not isinstance(way, RowWay):
        fix = 'construct it with backend="torch"'
        raise LongcatUnsupportedError(message(op, "backend", f"{way.caps.backend}", "local or torch", fix=fix))
    return way


def _rows(op: str, rows: Any, least: int, given: Given) -> str:
    """The text of a call, the same on every rank."""
    checks.tensor(op, "rows", rows, given.limits, DTYPES)
    if rows.dim() != 2 or rows.shape[1] != given.config.hidden:
        got = f"of shape {list(rows.shape)}"
        raise checks.refuse(op, "rows", got, f"[.., {given.config.hidden}], hidden columns")
    _enough(op, rows, least)
    return f"{op} of {rows.dtype}"


@checks.rank_local
def _enough(op: str, rows: Tensor, least: int) -> None:
    if len(rows) < least:
        raise checks.refuse(op, "rows", f"{len(rows)} of them", f"at least {least}, those that this rank sends")


CALLS = {f.__name__: f for f in (routes, forth, back)}

"""Counts of the router's product, routing, plan, permute and combine at LongCat-Flash's sizes."""

from __future__ import annotations

from collections.abc import Callable

from .model import Counts
from .products import fp8_row

HIDDEN, EXPERTS, ZERO, CHOICES = 6144, 512, 256, 12  # columns; FFN experts; zero experts; choices of a token
REAL = 8  # of its choices that are FFN experts, in the mean
TERMS = 3  # bf16 ones of the router's weight, each of which is read and multiplied
# Instructions of a warp, from the machine code (nvcc 13.0.88, 768 experts): for a token; for a block that is alone.
ROUTE_INSTRUCTIONS, PLAN_INSTRUCTIONS = 2300, 920
ROUTE_ONE_LAUNCH, PLAN_ONE_LAUNCH = 1056, 65536  # up to so many tokens, and choices


def router_gemm(tokens: int, experts: int = EXPERTS + ZERO, hidden: int = HIDDEN) -> list[Counts]:
    """Counts for bf16 rows and a weight that is split already."""
    moved = TERMS * 2 * experts * hidden + 2 * tokens * hidden + 4 * tokens * experts
    return [Counts("router_gemm", moved, TERMS * 2.0 * tokens * experts * hidden, bf16=True)]


def launches_of_route(moved: float, launches: int, tokens: int) -> list[Counts]:
    """The last launch is the kernel; one before it zeroes the counts."""
    issued, serial = tokens * ROUTE_INSTRUCTIONS, ROUTE_INSTRUCTIONS
    route = Counts("moe_route", moved, issued=issued, serial=serial)
    return [Counts("moe_route_clear")] * (launches - 1) + [route]


def launches_of_plan(moved: float, launches: int) -> list[Counts]:
    """Where there are three launches, each has a part of the work."""
    return [Counts("moe_plan", moved / launches, serial=PLAN_INSTRUCTIONS / launches)] * launches


def moe_route(tokens: int) -> list[Counts]:
    """Counts for float32 logits."""
    experts = EXPERTS + ZERO
    read, written = 4 * (tokens + 1) * experts, tokens * (8 * CHOICES + 5) + 4 * (experts + 1)
    return launches_of_route(read + written, 1 + (tokens > ROUTE_ONE_LAUNCH), tokens)


def moe_plan(tokens: int) -> list[Counts]:
    """Counts for ids and weights, with all experts."""
    moved = tokens * 4 * (4 * CHOICES) + 4 * (EXPERTS + 1)
    return launches_of_plan(moved, 1 if tokens * CHOICES <= PLAN_ONE_LAUNCH else 3)


def moe_permute(tokens: float, rows: float | None = None, hidden: int = HIDDEN) -> list[Counts]:
    """Counts for bf16. rows: of all tokens together."""
    rows = REAL * tokens if rows is None else rows
    return [Counts("moe_permute", 2 * (tokens + rows) * hidden + 4 * tokens * CHOICES + 4 * rows)]


def moe_permute_quant(tokens: float, rows: float | None = None, hidden: int = HIDDEN) -> list[Counts]:
    """rows: of all tokens together."""
    rows = REAL * tokens if rows is None else rows
    return [Counts("moe_permute_quant", 2 * tokens * hidden + 4 * tokens * CHOICES + rows * (4 + fp8_row(hidden)))]


def moe_combine(tokens: float, rows: float | None = None, hidden: int = HIDDEN) -> list[Counts]:
    rows = REAL * tokens if rows is None else rows
    return [Counts("moe_combine", 2 * (2 * tokens + rows) * hidden + 2 * 4 * tokens * CHOICES + 4 * tokens)]


OPS: dict[str, Callable[[int], list[Counts]]] = {
    "router_gemm": router_gemm,
    "moe_route": moe_route,
    "moe_plan": moe_plan,
    "moe_permute": moe_permute,
    "moe_permute_quant": moe_permute_quant,
    "moe_combine": moe_combine,
}

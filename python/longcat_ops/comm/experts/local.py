"""Expert parallelism of one rank: nothing travels."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from ...errors import LongcatCommError, LongcatError
from ...types import Plan, Routing
from .base import COUNTERS, ExpertCaps, ExpertConfig, Routes
from .rows import permuted


class LocalRanks:
    """The calls of one rank that has all experts. Reads nothing on the host, so graphs can hold them."""

    why_not: dict[str, str]
    reduces = False

    def __init__(self, config: ExpertConfig) -> None:
        c = config
        self.rank, self.ranks, self.config = 0, 1, config
        rows = c.max_tokens * min(c.top_k, c.num_ffn_experts)
        self.caps = ExpertCaps("local", c.num_ffn_experts, rows, True, 0, c.buffers, 0)
        self.why_not = dict.fromkeys(("nvl", "torch", "deepep"), "one rank has all experts")
        self.counters = torch.zeros(len(COUNTERS), dtype=torch.int64)
        self._rows: list[tuple[Tensor, Tensor | None, Tensor] | None] = [None] * c.buffers
        self._returned: list[Tensor | None] = [None] * c.buffers
        self._failure = ""

    def require_open(self, op: str) -> None:
        if self._failure:
            raise LongcatCommError(f"{op}: {self._failure}")

    def refuse(self, op: str, error: LongcatError) -> NoReturn:
        self.require_open(op)
        raise error

    def rows(self, buffer: int, tokens: int) -> int:
        return tokens * min(self.config.top_k, self.config.num_ffn_experts)

    def dispatch_send(self, buffer: int, x: Tensor, routing: Routing, plan: Plan) -> None:
        self.require_open("dispatch")
        self._rows[buffer] = (*permuted(x, plan, self.config.payload), plan.offsets)

    def dispatch_recv(self, buffer: int) -> tuple[Tensor, Tensor | None, Tensor]:
        self.require_open("dispatch")
        return self._taken(self._rows, buffer)

    def combine_send(self, buffer: int, y: Tensor) -> None:
        self.require_open("combine")
        self._returned[buffer] = y

    def combine_recv(self, buffer: int) -> Tensor:
        self.require_open("combine")
        return self._taken(self._returned, buffer)

    def routes(self, plan: Plan) -> Routes:
        self.require_open("routes")
        return Routes(plan.offsets, [], [], None)

    def forth(self, rows: Tensor, routes: Routes) -> Tensor:
        self.require_open("forth")
        return rows

    def back(self, rows: Tensor, routes: Routes) -> Tensor:
        self.require_open("back")
        return rows

    @staticmethod
    def _taken(of_buffers: list, buffer: int) -> Tensor:
        found, of_buffers[buffer] = of_buffers[buffer], None
        return found

    def check(self) -> None:
        self.require_open("check")

    def abort(self, reason: str = "") -> None:
        text = "abort() was called on rank 0" + (f": {reason}" if reason else ".")
        self._failure = self._failure or f"this ExpertParallel is poisoned. {text}"

    def close(self) -> None:
        self._failure = self._failure or "this ExpertParallel is closed."

"""Expert parallelism of several ranks, by torch ops that a graph of torch.compile can hold."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from ...errors import LongcatError
from ...types import Plan, Routing
from .. import checks, expert_calls, row_calls
from ..expert_calls import CALLS, Given
from ..member import Member
from ..rungs.base import Session
from ..runner import Runner
from .base import ExpertConfig, ExpertWay, Routes


class GroupRanks(Member, Runner):
    """The same calls as `LocalRanks`, over a backend."""

    def __init__(self, session: Session, way: ExpertWay, why_not: dict[str, str]) -> None:
        config = session.config
        assert isinstance(config, ExpertConfig)
        limits = checks.Limits(session.rank, session.ranks, (session.device.type,), 0)
        super().__init__(session, way, CALLS | row_calls.CALLS, Given(config, limits))
        self.config, self.caps, self.counters, self.why_not = config, way.caps, way.counters, why_not
        self.given = self._given
        self._buffers, self.reduces = way.buffers, way.reduces
        self._open = True

    def close(self) -> None:
        super().close()
        if not self._open:  # not so in a forked process
            self._buffers[:] = [b.without_rows() for b in self._buffers]

    def require_open(self, op: str) -> None:
        self._session.watch.require_open(op)

    def refuse(self, op: str, error: LongcatError) -> NoReturn:
        self._refuse(op, error)

    def rows(self, buffer: int, tokens: int) -> int:
        """Rows of q of a dispatch that has been sent."""
        return len(self._buffers[buffer].q)

    def dispatch_send(self, buffer: int, x: Tensor, routing: Routing, plan: Plan) -> None:
        ops, ids = torch.ops.longcat_ops, routing.ids
        if self.reduces:
            ops.comm_dispatch_weighted(self._handle, buffer, x, ids, routing.weights, *plan, self._token)
        else:
            ops.comm_dispatch_send(self._handle, buffer, x, ids, *plan, self._token)

    def dispatch_recv(self, buffer: int) -> tuple[Tensor, Tensor | None, Tensor]:
        q, s, offsets, _ = self._buffers[buffer]
        torch.ops.longcat_ops.comm_dispatch_recv(self._handle, buffer, q, s, offsets, self._token)
        return q, s, offsets

    def combine_send(self, buffer: int, y: Tensor) -> None:
        torch.ops.longcat_ops.comm_combine_send(self._handle, buffer, y, self._token)

    def combine_reduced(self, buffer: int, tokens: int, routing: Routing, x: Tensor, add: Tensor | None) -> Tensor:
        """The output, of a way that reduces. tokens: of the dispatch."""
        try:
            expert_calls.summed("combine", x, routing, add, tokens, self.given)
        except LongcatError as error:
            self._refuse("combine", error)
        bias = (x.float() * routing.zero_weight[:, None]).to(x.dtype)
        out = torch.empty_like(x)
        torch.ops.longcat_ops.comm_combine_reduced(self._handle, buffer, bias, add, out, self._token)
        return out

    def combine_recv(self, buffer: int) -> Tensor:
        returned = self._buffers[buffer].returned
        torch.ops.longcat_ops.comm_combine_recv(self._handle, buffer, returned, self._token)
        return returned

    def routes(self, plan: Plan) -> Routes:
        """Collective. Only of a way that moves rows."""
        found: list[Routes] = []
        self.run("routes", plan, found)
        return found[0]

    def forth(self, rows: Tensor, routes: Routes) -> Tensor:
        found: list[Tensor] = []
        self.run("forth", rows, routes, found)
        return found[0]

    def back(self, rows: Tensor, routes: Routes) -> Tensor:
        found: list[Tensor] = []
        self.run("back", rows, routes, found)
        return found[0]

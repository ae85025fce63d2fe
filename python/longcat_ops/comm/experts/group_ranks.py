"""Expert parallelism of several ranks, by torch ops that a graph of torch.compile can hold."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from ...errors import LongcatError
from ...types import Plan
from .. import checks
from ..expert_calls import CALLS, Given
from ..member import Member
from ..rungs.base import Session
from ..runner import Runner
from .base import ExpertConfig, ExpertWay


class GroupRanks(Member, Runner):
    """The same calls as `LocalRanks`, over a backend."""

    def __init__(self, session: Session, way: ExpertWay, why_not: dict[str, str]) -> None:
        config = session.config
        assert isinstance(config, ExpertConfig)
        limits = checks.Limits(session.rank, session.ranks, (session.device.type,), 0)
        super().__init__(session, way, CALLS, Given(config, limits))
        self.config, self.caps, self.counters, self.why_not = config, way.caps, way.counters, why_not
        self.given = self._given
        self._buffers = way.buffers
        self._open = True

    def require_open(self, op: str) -> None:
        self._session.watch.require_open(op)

    def refuse(self, op: str, error: LongcatError) -> NoReturn:
        self._refuse(op, error)

    def dispatch_send(self, buffer: int, x: Tensor, ids: Tensor, plan: Plan) -> None:
        torch.ops.longcat_ops.comm_dispatch_send(self._handle, buffer, x, ids, *plan, self._token)

    def dispatch_recv(self, buffer: int) -> tuple[Tensor, Tensor | None, Tensor]:
        q, s, offsets, _ = self._buffers[buffer]
        torch.ops.longcat_ops.comm_dispatch_recv(self._handle, buffer, q, s, offsets, self._token)
        return q, s, offsets

    def combine_send(self, buffer: int, y: Tensor) -> None:
        torch.ops.longcat_ops.comm_combine_send(self._handle, buffer, y, self._token)

    def combine_recv(self, buffer: int) -> Tensor:
        returned = self._buffers[buffer].returned
        torch.ops.longcat_ops.comm_combine_recv(self._handle, buffer, returned, self._token)
        return returned

"""The backend `torch`: all-to-all of torch.distributed, over NCCL or gloo, on one machine or several.

A dispatch reads the counts of rows on the host, once, since an all-to-all takes its sizes there: no CUDA graph can hold
it. A row travels as bytes, codes and scales together. Rows arrive by source; one copy sorts them by expert.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import LongcatCommError
from ...types import BLOCK, Plan
from ..rungs import connect
from ..rungs.base import Session
from ..sizes import expert_bytes
from .base import COUNTERS, Buffer, ExpertCaps, ExpertConfig, Routes, RowWay
from .rows import permuted, row_bytes

LARGE = 1 << 30  # bytes of an exchange that no first frame holds


def rung_of(device: torch.device) -> str:
    """The rung of a Communicator that carries the rows."""
    return "nccl" if device.type == "cuda" and not connect.reason("nccl", device) else "gloo"


def objection(device: torch.device) -> str:
    return connect.reason(rung_of(device), device)


def build(session: Session) -> GroupExperts:
    """Collective."""
    return GroupExperts(session, connect.build(rung_of(session.device), session))


class GroupExperts(RowWay):
    """rung: whose exchanges carry rows."""

    no_graph = "the backend torch reads the counts of rows on the host"

    def __init__(self, session: Session, rung: Any) -> None:
        c, ranks, device = session.config, session.ranks, session.device
        assert isinstance(c, ExpertConfig)
        self.config, self.ranks, self.rank, self.rung, self.watch = c, ranks, session.rank, rung, rung.watch
        self.local = c.num_ffn_experts // ranks
        rows = ranks * c.max_tokens * min(c.top_k, self.local)
        back = c.max_tokens * min(c.top_k, c.num_ffn_experts)
        self.caps = ExpertCaps("torch", self.local, rows, False, 1, c.buffers, expert_bytes(ranks, **c.sizes()))
        self.counters = torch.zeros(len(COUNTERS), dtype=torch.int64, device=device)

        def made(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        fp8 = c.payload == "fp8"
        self.buffers = [
            Buffer(
                made(rows, c.hidden, dtype=torch.float8_e4m3fn if fp8 else torch.bfloat16),
                made(rows, -(-c.hidden // BLOCK), dtype=torch.float32) if fp8 else None,
                made(self.local + 1, dtype=torch.int32),
                made(back, c.hidden, dtype=torch.bfloat16),
            )
            for _ in range(c.buffers)
        ]
        self._arrived: list[Any] = [None] * c.buffers
        self._routes: list[Any] = [None] * c.buffers
        self._back: list[Any] = [None] * c.buffers

    def routes(self, offsets: Tensor) -> Routes:
        local, counts = self.local, offsets.diff()
        got = self.rung.exchange(list(counts.split(local)), [local] * self.ranks, local)
        matrix = torch.stack(got)  # [source, local expert]
        numbers = torch.cat([counts, matrix.flatten()]).tolist()  # the host read
        sent = [sum(numbers[r * local : (r + 1) * local]) for r in range(self.ranks)]
        came = [sum(numbers[(self.ranks + r) * local : (self.ranks + r + 1) * local]) for r in range(self.ranks)]
        self._require_capacity(sum(came))
        here = torch.zeros(local + 1, dtype=torch.int32, device=matrix.device)
        here[1:] = matrix.sum(0).cumsum(0)
        experts = torch.arange(local, device=matrix.device).repeat(self.ranks)
        of_row = torch.repeat_interleave(experts, matrix.flatten(), output_size=sum(came))
        return Routes(here, sent, came, of_row.sort(stable=True).indices)

    def forth(self, rows: Tensor, routes: Routes) -> Tensor:
        arrived = self._exchanged(rows[: sum(routes.sent)], routes.sent, routes.came)
        self._count_sent(routes, 0, rows.shape[1] * rows.dtype.itemsize)
        return arrived[routes.order]

    def back(self, rows: Tensor, routes: Routes) -> Tensor:
        by_source = torch.empty_like(rows[: sum(routes.came)])
        by_source[routes.order] = rows[: sum(routes.came)]
        remote = sum(routes.came) - routes.came[self.rank]
        self._count(0, 0, 0, remote * rows.shape[1] * rows.dtype.itemsize)
        return self._exchanged(by_source, routes.came, routes.sent)

    def _exchanged(self, rows: Tensor, sent: list[int], came: list[int]) -> Tensor:
        """[sum(came), width]: the rows of every rank for this one, by source; `rows` lie by where they go."""
        width = rows.shape[1]
        parts = list(rows.flatten().split([n * width for n in sent]))
        return torch.cat(self.rung.exchange(parts, [n * width for n in came], LARGE)).view(-1, width)

    def dispatch_send(self, buffer: int, x: Tensor, ids: Tensor, plan: Plan) -> None:
        self._back[buffer] = None  # of the buffer's last call
        routes = self.routes(plan.offsets)
        q, s = permuted(x, plan, self.config.payload)
        count = sum(routes.sent)
        packed = q[:count].view(torch.uint8)
        if s is not None:
            packed = torch.cat([packed, s[:count].view(torch.uint8)], 1)
        self.watch.advance("rows")
        self._arrived[buffer] = self._exchanged(packed, routes.sent, routes.came)
        self._routes[buffer] = routes
        self._count_sent(routes, ids.numel() - count, row_bytes(self.config.hidden, self.config.payload))

    def dispatch_recv(self, buffer: int, q: Tensor, s: Tensor | None, offsets: Tensor) -> None:
        routes, width = self._routes[buffer], self.config.hidden
        rows = self._arrived[buffer][routes.order]
        if s is None:
            q[: len(rows)] = rows.view(torch.bfloat16)
        else:
            q[: len(rows)].view(torch.uint8).copy_(rows[:, :width])
            s[: len(rows)] = rows[:, width:].contiguous().view(torch.float32)
        offsets.copy_(routes.offsets)

    def combine_send(self, buffer: int, y: Tensor) -> None:
        self._back[buffer] = self.back(y, self._routes[buffer])
        self._arrived[buffer] = None

    def combine_recv(self, buffer: int, returned: Tensor) -> None:
        rows = self._back[buffer]
        returned[: len(rows)] = rows

    def _require_capacity(self, rows: int) -> None:
        if rows > self.caps.rows:
            text = f"{rows} rows arrive, and no routing of different experts has more than {self.caps.rows}"
            error = LongcatCommError(f"{self.watch.op}: {text}: a token names an expert twice.")
            raise self.watch.watch.poison(error)

    def _count_sent(self, routes: Routes, saved: int, bytes_of_row: int) -> None:
        remote = sum(routes.sent) - routes.sent[self.rank]
        self._count(sum(routes.sent), remote, saved, remote * bytes_of_row)

    def _count(self, *values: int) -> None:
        self.counters += torch.tensor(values, dtype=torch.int64).to(self.counters.device, non_blocking=True)

    def refused(self, rank_local: bool) -> None:
        self.rung.refused(rank_local)

    def poll(self) -> None:
        self.rung.poll()

    def abort(self) -> None:
        self.rung.abort()

    def close(self) -> None:
        self.rung.close()
        for kept in (self._arrived, self._routes, self._back):
            kept[:] = [None] * len(kept)

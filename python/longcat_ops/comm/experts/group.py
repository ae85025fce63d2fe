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
from .base import COUNTERS, Buffer, ExpertCaps, ExpertConfig, ExpertWay
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


class GroupExperts(ExpertWay):
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
        self._came: list[Any] = [None] * c.buffers
        self._back: list[Any] = [None] * c.buffers

    def dispatch_send(self, buffer: int, x: Tensor, ids: Tensor, plan: Plan) -> None:
        size, local = row_bytes(self.config.hidden, self.config.payload), self.local
        self._back[buffer] = None  # of the buffer's last call
        counts = plan.offsets.diff()
        got = self.rung.exchange(list(counts.split(local)), [local] * self.ranks, local)
        matrix = torch.stack(got)  # [source, local expert]
        numbers = torch.cat([counts, matrix.flatten()]).tolist()  # the host read
        sent = [sum(numbers[r * local : (r + 1) * local]) for r in range(self.ranks)]
        came = [sum(numbers[(self.ranks + r) * local : (self.ranks + r + 1) * local]) for r in range(self.ranks)]
        self._require_capacity(sum(came))
        q, s = permuted(x, plan, self.config.payload)
        packed = q[: sum(sent)].view(torch.uint8)
        if s is not None:
            packed = torch.cat([packed, s[: sum(sent)].view(torch.uint8)], 1)
        self.watch.advance("rows")
        parts = list(packed.flatten().split([n * size for n in sent]))
        arrived = torch.cat(self.rung.exchange(parts, [n * size for n in came], LARGE)).view(-1, size)
        self._arrived[buffer], self._came[buffer] = arrived, (matrix, sent, came)
        remote = sum(sent) - sent[self.rank]
        self._count(sum(sent), remote, ids.numel() - sum(sent), remote * size)

    def dispatch_recv(self, buffer: int, q: Tensor, s: Tensor | None, offsets: Tensor) -> None:
        arrived, (matrix, _, _), width = self._arrived[buffer], self._came[buffer], self.config.hidden
        rows = arrived[self._order(matrix, len(arrived))]
        if s is None:
            q[: len(rows)] = rows.view(torch.bfloat16)
        else:
            q[: len(rows)].view(torch.uint8).copy_(rows[:, :width])
            s[: len(rows)] = rows[:, width:].contiguous().view(torch.float32)
        offsets[0] = 0
        offsets[1:] = matrix.sum(0).cumsum(0)

    def combine_send(self, buffer: int, y: Tensor) -> None:
        matrix, sent, came = self._came[buffer]
        width = self.config.hidden
        back = torch.empty(sum(came), width, dtype=torch.bfloat16, device=y.device)
        back[self._order(matrix, sum(came))] = y[: sum(came)]
        parts = list(back.flatten().split([n * width for n in came]))
        self._back[buffer] = self.rung.exchange(parts, [n * width for n in sent], LARGE)
        self._arrived[buffer] = None
        remote = sum(came) - came[self.rank]
        self._count(0, 0, 0, remote * 2 * width)

    def combine_recv(self, buffer: int, returned: Tensor) -> None:
        flat = torch.cat(self._back[buffer])
        returned.view(-1)[: len(flat)] = flat

    def _order(self, matrix: Tensor, rows: int) -> Tensor:
        """Which row that arrived each row by expert is: rows arrive by source, then by expert."""
        experts = torch.arange(self.local, device=matrix.device).repeat(self.ranks)
        of_row = torch.repeat_interleave(experts, matrix.flatten(), output_size=rows)
        return of_row.sort(stable=True).indices

    def _require_capacity(self, rows: int) -> None:
        if rows > self.caps.rows:
            text = f"{rows} rows arrive, and no routing of different experts has more than {self.caps.rows}"
            error = LongcatCommError(f"{self.watch.op}: {text}: a token names an expert twice.")
            raise self.watch.watch.poison(error)

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
        for kept in (self._arrived, self._came, self._back):
            kept[:] = [None] * len(kept)

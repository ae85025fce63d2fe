"""The rung `nccl`: NCCL's own collectives, and exchanges where rows differ. It has not run on a GPU yet."""

from __future__ import annotations

import time
from collections import deque
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .base import Session
from .group import GroupRung, as_bytes


class NcclRung(GroupRung):
    """CUDA streams. Sums are NCCL's own, unless the communicator is deterministic or rows differ. Nothing here waits on
    the host: late work is found by the next call, or by `check`. NCCL's own watchdog finds what has failed."""

    name = "nccl"
    devices = ("cuda",)

    def __init__(self, session: Session, index: int, group: Any) -> None:
        super().__init__(session, index, group)
        self._pending: deque[tuple[float, Any]] = deque()

    def fixed_order(self) -> bool:
        return self.session.config.deterministic

    def all_reduce(self, x: Tensor, out: Tensor) -> None:
        if self.fixed_order() or self.ranks == 1:
            return super().all_reduce(x, out)
        if out.data_ptr() != x.data_ptr():
            out.copy_(x)
        self._launch(self.group.allreduce([out], dist.AllreduceOptions()))

    def reduce_scatter(self, x: Tensor, out: Tensor, rows: list[int]) -> None:
        if self.fixed_order() or self.ranks == 1 or len(set(rows)) > 1:
            return super().reduce_scatter(x, out, rows)
        self._launch(self.group._reduce_scatter_base(out, x, dist.ReduceScatterOptions()))

    def all_gather(self, x: Tensor, out: Tensor, rows: list[int]) -> None:
        if self.ranks == 1 or len(set(rows)) > 1:
            return super().all_gather(x, out, rows)
        raw = as_bytes(out.view(-1)), as_bytes(x.view(-1))
        self._launch(self.group._allgather_base(*raw, dist.distributed_c10d.AllgatherOptions()))

    def broadcast_(self, x: Tensor, src: int) -> None:
        options = dist.BroadcastOptions()
        options.rootRank = src
        if self.ranks > 1:
            self._launch(self.group.broadcast([as_bytes(x.view(-1))], options))

    def exchange(self, parts: list[Tensor], counts: list[int], largest: int) -> list[Tensor]:
        mine, dtype = parts[self.rank], parts[0].dtype
        if self.ranks == 1:
            return [mine]
        sent = [as_bytes(part) for part in parts]
        sizes = [count * dtype.itemsize for count in counts]
        received = torch.empty(sum(sizes), dtype=torch.uint8, device=mine.device)
        lengths = [len(part) for part in sent]
        self._launch(self.group.alltoall_base(received, torch.cat(sent), sizes, lengths, dist.AllToAllOptions()))
        return [data.view(dtype) for data in received.split(sizes)]

    def _launch(self, work: Any) -> None:
        work.wait(timedelta(milliseconds=0))  # the current stream waits, the host does not
        self._pending.append((time.monotonic(), work))

    def poll(self) -> None:
        while self._pending and self._pending[0][1].is_completed():
            self._pending.popleft()
        if self._pending:
            waited = time.monotonic() - self._pending[0][0]
            if waited > self.session.config.timeout_s > 0 and (error := self.watch.find_cause(waited, None)):
                raise self.watch.watch.poison(error)

    def abort(self) -> None:
        for rung in self.siblings:
            if rung.group is not None:
                rung.group.abort()

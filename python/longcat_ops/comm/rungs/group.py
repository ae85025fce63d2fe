"""The rungs `gloo` and `nccl`: collectives of torch.distributed, over process groups of their own.

One exchange carries every operation: each rank sends each other rank a part, and none leaves before it has heard from
all. Sums are added in rank order in float32 and rounded once, by the rank that owns the element. With S bytes of the
whole tensor and N ranks, a rank sends S (N - 1) / N in a reduce-scatter, twice that in an all-reduce, (N - 1) times its
own rows in an all-gather, and the source (N - 1) S in a broadcast. Buffers of that size live as long as the call.
"""

from __future__ import annotations

import hashlib
import struct
import time
from abc import abstractmethod
from collections import deque
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import LongcatCommError
from ...ops.norm import rms_norm, rms_norm_quant_fp8
from ..background import Background
from .base import Caps, Rung, Session

# Up to here a sum takes one exchange of whole tensors, not two of shards. Its bits are the same.
ONE_SHOT_BYTES = 32 << 10
# How much longer than its communicator an operation of torch waits: who is missing is found by then.
MARGIN_S = 10.0
FRAME_BYTES, HEADER_BYTES = 2048, 16
NEVER_S = 86400.0


def even_rows(count: int, ranks: int) -> list[int]:
    """`count` in parts that differ by 1 at most, larger ones first."""
    return [count // ranks + (r < count % ranks) for r in range(ranks)]


def add_in_order(parts: list[Tensor], out: Tensor) -> None:
    """out = parts[0] + parts[1] + .. in float32, rounded once."""
    total = parts[0].to(torch.float32, copy=True)
    for part in parts[1:]:
        total += part
    out.copy_(total)


class GroupRung(Rung):
    """A rung over one process group per channel. group: None if there is one rank."""

    name: str

    def __init__(self, session: Session, index: int, group: Any) -> None:
        config = session.config
        self.session, self.index, self.group = session, index, group
        self.rank, self.ranks = session.rank, session.ranks
        self.watch = session.watch.channels[index]
        self.caps = Caps(
            self.name, self.devices, self.fixed_order(), False, False, 0, config.num_channels, config.max_bytes
        )
        self.siblings: list[GroupRung] = []

    devices: tuple[str, ...] = ("cpu", "cuda")

    def fixed_order(self) -> bool:
        return True

    @abstractmethod
    def exchange(self, parts: list[Tensor], counts: list[int], largest: int) -> list[Tensor]:
        """parts[r], flat, goes to rank r; returns what each rank sent, flat, counts[r] elements of the same dtype.
        largest: of all parts between any two ranks, the same on every rank."""

    def all_reduce(self, x: Tensor, out: Tensor) -> None:
        flat, total = x.view(-1), out.view(-1)
        if x.nbytes <= ONE_SHOT_BYTES or self.ranks == 1:
            add_in_order(self.exchange([flat] * self.ranks, [len(flat)] * self.ranks, len(flat)), total)
            return
        shards = even_rows(len(flat), self.ranks)
        own = torch.empty_like(total[: shards[self.rank]])
        self._add_own(flat, own, shards)
        self.watch.advance("gather")
        torch.cat(self.exchange([own] * self.ranks, shards, max(shards)), out=total)

    def reduce_scatter(self, x: Tensor, out: Tensor, rows: list[int]) -> None:
        columns = x[0].numel() if len(x) else 0
        self._add_own(x.view(-1), out.view(-1), [count * columns for count in rows])

    def _add_own(self, flat: Tensor, own: Tensor, shards: list[int]) -> None:
        parts = self.exchange(list(flat.split(shards)), [len(own)] * self.ranks, max(shards))
        add_in_order(parts, own)

    def all_gather(self, x: Tensor, out: Tensor, rows: list[int]) -> None:
        columns = out[0].numel() if len(out) else 0
        counts = [count * columns for count in rows]
        parts = self.exchange([x.view(-1)] * self.ranks, counts, max(counts))
        for r, place in enumerate(out.view(-1).split(counts)):
            if r != self.rank or place.data_ptr() != x.data_ptr():
                place.copy_(parts[r])

    def broadcast_(self, x: Tensor, src: int) -> None:
        flat = x.view(-1)
        here = self.rank == src
        counts = [len(flat) * (r == src) for r in range(self.ranks)]
        sent = self.exchange([flat if here else flat[:0]] * self.ranks, counts, len(flat))
        if not here:
            flat.copy_(sent[src])

    def all_reduce_residual_rmsnorm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float, out: Any, residual_out: Tensor
    ) -> None:
        total = torch.empty_like(x)
        self.all_reduce(x, total)
        if isinstance(out, Tensor):
            total += residual
            out.copy_(rms_norm(total, weight, eps))
        else:
            q, s, _, total = rms_norm_quant_fp8(total, weight, eps, residual)
            out[0].copy_(q)
            out[1].copy_(s)
        residual_out.copy_(total)

    def barrier(self) -> None:
        nothing = torch.empty(0, dtype=torch.uint8, device=self.session.device)
        self.exchange([nothing] * self.ranks, [0] * self.ranks, 0)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.session.device)

    def channel(self, index: int) -> Rung:
        return self.siblings[index]

    def poll(self) -> None: ...

    def abort(self) -> None:
        """Nothing: who waits reads the failure in the store within a slice."""

    def close(self) -> None:
        for rung in self.siblings:
            rung.release()
        self.siblings = []

    def release(self) -> None:
        """Drops the process group. Its destructor joins threads that may still wait for a peer, so where work is
        pending, a thread keeps the group until that has ended."""
        self.group = None


class GlooRung(GroupRung):
    """Host memory; tensors of a GPU are copied through it.

    gloo ends the process when more data comes than it expects, and takes data of another call for this one's. So a call
    begins with frames, which have one size whatever the call: a header that says which call it is, and the data if it
    is small. Only ranks that have seen the same header from all exchange larger data.
    """

    name = "gloo"
    _work: Any = None

    def exchange(self, parts: list[Tensor], counts: list[int], largest: int) -> list[Tensor]:
        mine, dtype, device = parts[self.rank], parts[0].dtype, parts[0].device
        if self.ranks == 1:
            return [mine]
        sent = [part.view(torch.uint8).cpu() for part in parts]
        sent[self.rank] = sent[self.rank][:0]
        sizes = [count * dtype.itemsize * (r != self.rank) for r, count in enumerate(counts)]
        inline = largest * dtype.itemsize <= FRAME_BYTES - HEADER_BYTES
        if self.watch.post.step == 0:
            got = self._frames(sent if inline else [], sizes)
        if self.watch.post.step or not inline:
            got = self._all_to_all(sent, sizes)
        return [mine if r == self.rank else data.view(dtype).to(device) for r, data in enumerate(got)]

    def _frames(self, sent: list[Tensor], sizes: list[int]) -> list[Tensor]:
        """One frame to and from each rank. Refuses the call if a header is not this call's."""
        frames = torch.zeros(self.ranks, FRAME_BYTES, dtype=torch.uint8)
        frames[:, :HEADER_BYTES] = head = self._header()
        for r, data in enumerate(sent):
            frames[r, HEADER_BYTES : HEADER_BYTES + len(data)] = data
        got = torch.cat(self._all_to_all([frames.view(-1)], [frames.numel()])).view(self.ranks, FRAME_BYTES)
        for r in range(self.ranks):
            if not torch.equal(got[r, :HEADER_BYTES], head):
                raise self.watch.disagree(f"rank {r} sent data of another call than {self.watch.post.call}.")
        return [got[r, HEADER_BYTES : HEADER_BYTES + sizes[r]] for r in range(self.ranks)]

    def _all_to_all(self, sent: list[Tensor], sizes: list[int]) -> list[Tensor]:
        """Flat bytes. One tensor: equal parts of it for each rank."""
        received = torch.empty(sum(sizes), dtype=torch.uint8)
        lengths = [] if len(sent) == 1 else [len(data) for data in sent]
        options = dist.AllToAllOptions()
        options.timeout = timedelta(seconds=self.session.config.timeout_s + MARGIN_S or NEVER_S)
        self._work = self.group.alltoall_base(received, torch.cat(sent), sizes if lengths else [], lengths, options)
        self.watch.wait(self._work)
        return list(received.split(sizes))

    def _header(self) -> Tensor:
        """uint8 [HEADER_BYTES]: number of the call, and a digest of its text."""
        post = self.watch.post
        digest = hashlib.blake2b(post.text.encode(), digest_size=8).digest()
        return torch.frombuffer(bytearray(struct.pack("<q", post.call) + digest), dtype=torch.uint8)

    def release(self) -> None:
        work, group, self._work, self.group = self._work, self.group, None, None
        if work is None or work.is_completed():
            return
        step = timedelta(seconds=1)

        def keep(group: Any = group) -> None:
            while not work.is_completed():
                with suppress(Exception):
                    work.wait(step)

        Background(keep)


class NcclRung(GroupRung):
    """CUDA streams. Sums are NCCL's own, unless the communicator is deterministic or rows differ. Nothing here waits on
    the host: failed or late work is found by the next call, or by `check`."""

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
        raw = (out.view(-1).view(torch.uint8), x.view(-1).view(torch.uint8))
        self._launch(self.group._allgather_base(*raw, dist.AllgatherOptions()))

    def broadcast_(self, x: Tensor, src: int) -> None:
        options = dist.BroadcastOptions()
        options.rootRank = src
        if self.ranks > 1:
            self._launch(self.group.broadcast([x.view(-1).view(torch.uint8)], options))

    def exchange(self, parts: list[Tensor], counts: list[int], largest: int) -> list[Tensor]:
        mine, dtype = parts[self.rank], parts[0].dtype
        if self.ranks == 1:
            return [mine]
        sent = [part.view(torch.uint8) for part in parts]
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
            _, work = self._pending.popleft()
            if (error := work.exception()) is not None:
                raise self.watch.disagree(f"NCCL failed: {error}")
        if self._pending:
            waited = time.monotonic() - self._pending[0][0]
            if waited > self.session.config.timeout_s > 0 and (error := self.watch.find_cause(waited, None)):
                raise self.watch.watch.poison(error)

    def abort(self) -> None:
        for rung in self.siblings:
            if rung.group is not None:
                rung.group.abort()


RUNGS: dict[str, type[GroupRung]] = {"gloo": GlooRung, "nccl": NcclRung}


def reason(name: str, device: torch.device) -> str:
    """Why this rank cannot use the rung `name`; "" if it can."""
    if name == "gloo":
        return "" if dist.is_gloo_available() else "this build of torch has no gloo"
    if device.type != "cuda":
        return "CUDA tensors only: this process group has no GPU"
    return "" if dist.is_nccl_available() else "this build of torch has no NCCL"


def build(name: str, session: Session) -> GroupRung:
    """The rung `name`, one process group per channel. Collective."""
    timeout = timedelta(seconds=session.config.timeout_s or NEVER_S)

    def connect() -> list[Any]:
        kind = dist.ProcessGroupGloo if name == "gloo" else dist.ProcessGroupNCCL
        stores = [dist.PrefixStore(f"{name}/{i}", session.watch.store) for i in range(session.config.num_channels)]
        return [kind(store, session.rank, session.ranks, timeout) for store in stores]

    alone = [None] * session.config.num_channels
    groups = session.watch.finish(name, Background(connect)) if session.ranks > 1 else alone
    rungs = [RUNGS[name](session, i, group) for i, group in enumerate(groups)]
    for rung in rungs:
        rung.siblings = rungs
    return rungs[0]


def store_keys(name: str, ranks: int, channels: int) -> list[str]:
    """What the process groups of the rung `name` leave in the store."""
    return [f"{name}/{i}/0/{r}" for i in range(channels) for r in range(ranks)]

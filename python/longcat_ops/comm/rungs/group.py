"""What the rungs `gloo` and `nccl` share: operations made of exchanges, over process groups of their own.

One exchange carries every operation: each rank sends each other rank a part, and none leaves before it has heard from
all. Sums are added in rank order in float32 and rounded once, by the rank that owns the element. With S bytes of the
whole tensor and N ranks, a rank sends S (N - 1) / N in a reduce-scatter, twice that in an all-reduce, (N - 1) times its
own rows in an all-gather, and the source (N - 1) S in a broadcast. Buffers of that size live as long as the call.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from ...ops.norm import rms_norm, rms_norm_quant_fp8
from .base import Caps, Rung, Session

# Up to here a sum takes one exchange of whole tensors, not two of shards. Its bits are the same.
ONE_SHOT_BYTES = 32 << 10


def even_rows(count: int, ranks: int) -> list[int]:
    """`count` in parts that differ by 1 at most, larger ones first."""
    return [count // ranks + (r < count % ranks) for r in range(ranks)]


def add_in_order(parts: list[Tensor], out: Tensor) -> None:
    """out = parts[0] + parts[1] + .. in float32, rounded once."""
    total = parts[0].to(torch.float32, copy=True)
    for part in parts[1:]:
        total += part
    out.copy_(total)


def as_bytes(flat: Tensor) -> Tensor:
    """The memory of a flat tensor as uint8. An empty one may have a stride of 0, which torch does not view."""
    return flat.view(torch.uint8) if len(flat) else torch.empty(0, dtype=torch.uint8, device=flat.device)


class GroupRung(Rung):
    """A rung over one process group per channel. group: None if there is one rank."""

    name: str

    def __init__(self, session: Session, index: int, group: Any) -> None:
        config = session.config
        self.no_graph = f"the rung {self.name} works on the host"
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

"""The rung `gloo`: host memory, and waits that the host can end."""

from __future__ import annotations

import hashlib
import struct
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..background import Background
from .group import GroupRung, as_bytes

# How much longer than its communicator an operation of torch waits: who is missing is found by then.
MARGIN_S = 10.0
NEVER_S = 86400.0
FRAME_BYTES, HEADER_BYTES = 2048, 16


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
        sent = [as_bytes(part).cpu() for part in parts]
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
        limit = self.session.config.timeout_s
        options = dist.AllToAllOptions()
        options.timeout = timedelta(seconds=limit + MARGIN_S if limit else NEVER_S)
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

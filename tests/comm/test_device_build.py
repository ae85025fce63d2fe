"""How a device rung is built: what it objects to, the parts of its memory, what it leaves in the store."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from longcat_ops.comm.providers.base import SymmetricMemory
from longcat_ops.comm.rungs import device
from longcat_ops.comm.rungs.base import Config
from longcat_ops.comm.sizes import communicator_bytes, parts
from longcat_ops.errors import LongcatCommError


def test_more_than_the_kernels_take_is_an_objection() -> None:
    """So all ranks take a rung below, and know why."""
    for blocks, channels, text in (
        (33, 2, "num_blocks is 33, .* at most 32"),
        (4, 5, "num_channels is 5, .* at most 4"),
    ):
        config = Config(1, "p2p", blocks, channels, False, 1.0, "auto")
        with pytest.raises(LongcatCommError, match=text):
            device.build("p2p", SimpleNamespace(config=config))


def test_the_parts_are_compared_and_the_store_is_left_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one rank, over memory of the host."""
    config, store = Config(4096, "p2p", 4, 2, False, 1.0, "auto"), dist.HashStore()
    tensor = torch.zeros(communicator_bytes(2, 4096, 2), dtype=torch.uint8)
    compared = []

    def memory(*_: object) -> SymmetricMemory:
        made = SymmetricMemory(rank=0, pointers=(tensor.data_ptr(),), multicast=0, tensor=tensor, provider="host",
                               holder=SimpleNamespace(release=lambda: []))  # fmt: skip
        monkeypatch.setattr(made, "compare_parts", lambda exchange: compared.append(list(made.allocations.parts)))
        return made

    monkeypatch.setattr(device, "_memory", memory)
    monkeypatch.setattr(device, "load", lambda: None)
    watch = SimpleNamespace(channels=[SimpleNamespace()] * 2)
    session = SimpleNamespace(rank=0, ranks=1, config=config, store=store, watch=watch)
    rung = device.build("p2p", session)
    assert compared == [list(parts(1, 4096, 2))]
    assert rung.caps.memory_bytes == len(tensor)
    assert store.num_keys() == 1  # the count of uses, by which a name may be used again
    rung.close()

"""How a device rung is built: what it objects to, the parts of its memory, what it leaves in the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
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
        (33, 2, "num_blocks is 33, .* 1 to 32"),
        (4, 5, "num_channels is 5, .* 1 to 4"),
    ):
        config = Config(1, "p2p", blocks, channels, False, 1.0, "auto")
        with pytest.raises(LongcatCommError, match=text):
            device.build("p2p", SimpleNamespace(config=config, ranks=2))


@pytest.mark.parametrize("ranks", [1, 9])
def test_the_number_of_ranks_may_be_an_objection(ranks: int) -> None:
    config = Config(1, "p2p", 4, 2, False, 1.0, "auto")
    with pytest.raises(LongcatCommError, match=f"ranks is {ranks}, and the kernels take 2 to 8"):
        device.build("p2p", SimpleNamespace(config=config, ranks=ranks))


def test_what_a_build_does_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are compared, every kernel is loaded, the store is left clean, and memory is given back if any of it fails.
    One rank of two, over memory of the host; nobody waits for the other."""
    config, store = Config(4096, "p2p", 4, 2, False, 1.0, "auto"), dist.HashStore()
    tensor = torch.zeros(communicator_bytes(2, 4096, 2), dtype=torch.uint8)
    compared, made, loaded = [], [], Counter()

    def memory(*_: object) -> SymmetricMemory:
        found = SymmetricMemory(rank=0, pointers=(tensor.data_ptr(),) * 2, multicast=0, tensor=tensor, provider="host",
                                holder=SimpleNamespace(release=lambda: [], synchronize=lambda: None))  # fmt: skip
        monkeypatch.setattr(found, "compare_parts", lambda exchange: compared.append(list(found.allocations.parts)))
        made.append(found)
        return found

    class Library:
        def __getattr__(self, name: str) -> Callable[..., int]:
            def function(args: object, stream: object) -> int:
                assert args._obj.comm.load_only == 1
                loaded[name] += 1
                return 0

            return function

    monkeypatch.setattr(device, "open_memory", memory)
    monkeypatch.setattr(device, "load", Library)
    watch = SimpleNamespace(channels=[None] * 2, failure=None)
    session = SimpleNamespace(rank=0, ranks=2, config=config, store=store, watch=watch)
    rung = device.build("p2p", session)
    assert compared == [list(parts(2, 4096, 2))]
    assert loaded == {"lc_all_reduce": 3, "lc_reduce_scatter": 3, "lc_all_reduce_low_latency": 3, "lc_all_gather": 1,
                      "lc_all_reduce_residual_rms_norm": 6, "lc_comm_abort": 1}  # fmt: skip
    assert rung.caps.memory_bytes == len(tensor)
    rung.close()
    monkeypatch.setattr(device, "load", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        device.build("p2p", session)
    assert all(memory.closed for memory in made) and len(made) == 2
    assert store.num_keys() == 3  # the count of uses, by which a name may be used again, and for each who has closed

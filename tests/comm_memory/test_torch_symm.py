"""The adapter to torch's symmetric memory, over a stand-in of torch's module: what it takes, when all ranks decline."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch.distributed import _symmetric_memory

from longcat_ops.comm.providers import torch_symm
from longcat_ops.comm.providers.base import ALIGNMENT, CONTROL_BYTES, SetUp
from longcat_ops.errors import LongcatShapeError
from support.rank_threads import Hub, Interrupted, ThreadExchange, on_each
from support.vmm_ranks import close_all, outcome

SIZE = CONTROL_BYTES + 512
MULTICAST = 1 << 40


@dataclass
class Handle:
    """torch's handle of one rank."""

    buffer_ptrs: list[int]
    multicast_ptr: int
    offset: int
    buffer_size: int
    rank: int
    world_size: int


class SymmMem:
    """torch's module for one rank of `ranks`. change: alters the handle, or raises; at: where the allocation starts,
    bytes past a multiple of ALIGNMENT."""

    def __init__(self, rank: int, ranks: int, change: Callable[[Handle], Handle], at: int, backend: str | None) -> None:
        self.rank, self.ranks, self.change, self.at, self.backend = rank, ranks, change, at, backend
        self.met = 0

    def get_backend(self, device: str) -> str | None:
        assert device == f"cuda:{self.rank}"
        return self.backend

    def empty(self, *size: int, dtype: torch.dtype, device: str) -> torch.Tensor:
        assert device == f"cuda:{self.rank}"
        (count,) = size
        room = torch.full((count + 2 * ALIGNMENT,), 0xA5, dtype=dtype)
        start = (-room.data_ptr() + self.at) % ALIGNMENT
        return room[start : start + count]

    def rendezvous(self, tensor: torch.Tensor, group: str) -> Handle:
        assert group == "the group"
        assert not tensor.any()
        self.met += 1
        others = [(rank + 2) << 32 for rank in range(self.ranks)]
        pointers = [tensor.data_ptr() if rank == self.rank else others[rank] + self.at for rank in range(self.ranks)]
        return self.change(Handle(pointers, MULTICAST + self.at, 0, tensor.numel(), self.rank, self.ranks))


def same(handle: Handle) -> Handle:
    return handle


def set_up(
    ranks: int,
    *,
    change: dict[int, Callable[[Handle], Handle]] | None = None,
    at: Callable[[int], int] = lambda rank: 0,
    backend: Callable[[int], str | None] = lambda rank: "CUDA",
    size: Callable[[int], int] = lambda rank: SIZE,
    **options: Any,
) -> tuple[list[SetUp | BaseException], list[SymmMem]]:
    exchanges = Hub(ranks, 20).exchanges()
    modules = [SymmMem(r, ranks, (change or {}).get(r, same), at(r), backend(r)) for r in range(ranks)]

    def one(rank: int) -> SetUp:
        device = f"cuda:{rank}"
        return torch_symm.open_memory(
            exchanges[rank], device, size(rank), group="the group", symm_mem=modules[rank], **options
        )

    return on_each(ranks, one), modules


@pytest.mark.parametrize("at", [0, 16, 240])
def test_addresses_are_torchs_aligned(at: int) -> None:
    answers, _ = set_up(4, at=lambda rank: at)
    assert outcome(answers) == "multicast"
    shift = -at % ALIGNMENT
    for rank, answer in enumerate(answers):
        memory = answer.memory
        assert (memory.provider, memory.bytes, memory.tensor.numel()) == ("torch", SIZE, SIZE)
        assert memory.pointers[rank] == memory.tensor.data_ptr()
        assert all(memory.pointers[other] == ((other + 2) << 32) + at + shift for other in range(4) if other != rank)
        assert memory.multicast == MULTICAST + at + shift
        assert not any(address % ALIGNMENT for address in (*memory.pointers, memory.multicast))
    close_all(answers)
    assert answers[0].memory.holder.tensor is None and answers[0].memory.holder.handle is None


def test_the_offset_belongs_to_the_addresses() -> None:
    """torch leaves the offset of the tensor out of buffer_ptrs; whether out of multicast_ptr depends on its version."""

    def inside(handle: Handle) -> Handle:
        return replace(handle, buffer_ptrs=[pointer - 4096 for pointer in handle.buffer_ptrs], offset=4096)

    answers, _ = set_up(3, change=dict.fromkeys(range(3), inside))
    assert outcome(answers) == "peers"
    assert answers[0].memory.pointers[1] == 3 << 32
    assert answers[0].why_not["multimem"] == "the tensor lies at offset 4096 of torch's buffer, expected 0"
    close_all(answers)


def no_multicast(handle: Handle) -> Handle:
    return replace(handle, multicast_ptr=0)


@pytest.mark.parametrize("who", [{1}, {0, 1, 2}])
def test_multicast_is_for_all_or_for_none(who: set[int]) -> None:
    answers, _ = set_up(3, change=dict.fromkeys(who, no_multicast))
    assert outcome(answers) == "peers"
    reason = "torch has mapped no multicast address"
    assert answers[2].why_not["multimem"] == (f"rank 1: {reason}" if len(who) == 1 else reason)
    close_all(answers)


def test_two_ranks_have_peer_memory_alone() -> None:
    answers, _ = set_up(2)
    assert outcome(answers) == "peers"
    assert "2 ranks: multicast needs 3 or more" in answers[0].why_not["multimem"]
    close_all(answers)


def broken(handle: Handle) -> Handle:
    raise RuntimeError("CUDA driver error: 401")


WRONG = {
    "rendezvous raises": (broken, "RuntimeError: CUDA driver error: 401"),
    "another rank": (lambda h: replace(h, rank=7), "torch's handle is of rank 7 of 3 with 3 addresses, expected rank"),
    "too few addresses": (lambda h: replace(h, buffer_ptrs=h.buffer_ptrs[:2]), "of 3 with 2 addresses"),
    "too small": (lambda h: replace(h, buffer_size=SIZE), f"has {SIZE} bytes, expected {SIZE + ALIGNMENT}"),
    "another own address": (lambda h: replace(h, offset=256), "torch's address of the own buffer is 0x"),
    "a null address": (
        lambda h: replace(h, buffer_ptrs=[p * (r in (1, h.rank)) for r, p in enumerate(h.buffer_ptrs)]),
        "torch has mapped no memory of rank",
    ),
    "no offset": (lambda h: type("Old", (), {k: v for k, v in vars(h).items() if k != "offset"})(), "has no offset"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("who", [0, 2])
def test_a_handle_that_is_not_sound_is_nobodys(name: str, who: int) -> None:
    change, text = WRONG[name]
    answers, modules = set_up(3, change={who: change})
    assert outcome(answers) == "nothing"
    assert answers[1].why_not["p2p"].startswith(f"rank {who}: ")
    assert text in answers[1].why_not["p2p"]
    assert [module.met for module in modules] == [1, 1, 1]


@pytest.mark.parametrize("backend", ["NVSHMEM", "NCCL", None])
def test_another_backend_is_refused_before_the_rendezvous(backend: str | None) -> None:
    answers, modules = set_up(3, backend=lambda rank: backend if rank == 1 else "CUDA")
    assert outcome(answers) == "nothing"
    assert (
        f"rank 1: LongcatUnsupportedError: torch's backend of symmetric memory is {backend}, expected CUDA"
        in (answers[0].why_not["p2p"])
    )
    assert [module.met for module in modules] == [0, 0, 0]


def test_allocations_that_start_differently_are_refused() -> None:
    answers, _ = set_up(3, at=lambda rank: 16 * rank)
    assert outcome(answers) == "nothing"
    assert "[0, 240, 224]" in answers[0].why_not["p2p"]


def test_sizes_that_differ_are_refused_by_all() -> None:
    answers, modules = set_up(3, size=lambda rank: SIZE + 256 * (rank == 1))
    assert all(isinstance(error, LongcatShapeError) for error in answers)
    assert f"`size` is {SIZE + 256} on rank 1, expected {SIZE} as on rank 0" in str(answers[2])
    assert [module.met for module in modules] == [0, 0, 0]
    answers, _ = set_up(3, size=lambda rank: CONTROL_BYTES - 1)
    assert "expected 65536 (the control region) or more" in str(answers[0])


def test_a_smoke_test_that_fails_on_one_rank_takes_multicast_from_all() -> None:
    def smoke(memory: Any, exchange: Any) -> None:
        memory.tensor.fill_(3)
        exchange.barrier("stores")
        if memory.multicast and memory.rank == 2:
            raise ValueError("0 is not 7")

    answers, _ = set_up(3, smoke=smoke)
    assert outcome(answers) == "peers"  # and zero again
    assert answers[0].why_not["multimem"] == "smoke test of multicast: rank 2: ValueError: 0 is not 7"
    close_all(answers)


def test_an_interrupt_between_two_votes_is_passed_on_and_the_others_hear_of_it_at_once() -> None:
    hub = Hub(2, 60)
    exchanges = [ThreadExchange(hub, 0), Interrupted(hub, 1, "rendezvous of torch")]
    modules = [SymmMem(rank, 2, same, 0, "CUDA") for rank in range(2)]
    given = {"group": "the group"}
    first, second = on_each(
        2, lambda r: torch_symm.open_memory(exchanges[r], f"cuda:{r}", SIZE, symm_mem=modules[r], **given)
    )
    assert isinstance(second, KeyboardInterrupt)
    assert str(first).endswith("missing is: rank 1: has left: KeyboardInterrupt.")


def test_the_installed_torch_has_what_the_adapter_uses() -> None:
    module = torch_symm._import()
    assert module is _symmetric_memory
    assert all(callable(getattr(module, name)) for name in torch_symm.FUNCTIONS)
    assert all(isinstance(getattr(module._SymmetricMemory, name), property) for name in torch_symm.HANDLE)


def test_the_installed_torch_declines_without_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("torch sees a CUDA device: this is about a machine without one")
    exchanges = Hub(2, 20).exchanges()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers = on_each(2, lambda r: torch_symm.open_memory(exchanges[r], f"cuda:{r}", SIZE, group="the group"))
    assert outcome(answers) == "nothing"
    # A build without CUDA has no backend; one with CUDA cannot allocate.
    reason = answers[0].why_not["p2p"]
    assert "torch's backend of symmetric memory is None, expected CUDA" in reason or "NVIDIA driver" in reason


def test_a_torch_below_the_floor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.10.1+cu126")
    exchanges = Hub(2, 20).exchanges()
    answers = on_each(2, lambda r: torch_symm.open_memory(exchanges[r], f"cuda:{r}", SIZE, group="the group"))
    assert outcome(answers) == "nothing"
    assert answers[0].why_not["p2p"] == "LongcatUnsupportedError: torch is 2.10.1+cu126, expected 2.11 or newer"

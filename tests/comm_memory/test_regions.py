"""Regions and their parts, without any device: offsets, refusals, prediction, agreement between ranks."""

from __future__ import annotations

import pytest
import torch

from longcat_ops.comm.providers.base import (
    ALIGNMENT,
    CONTROL_BYTES,
    GRANULARITY,
    Allocations,
    Part,
    SymmetricMemory,
    close_together,
    symmetric_bytes,
)
from longcat_ops.errors import LongcatShapeError, LongcatTimeoutError
from support.rank_threads import Hub, on_each


class Holder:
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    def clear(self) -> None:
        self.calls.append("clear")

    def release_multicast(self) -> list[str]:
        self.calls.append("release_multicast")
        return []

    def release(self) -> list[str]:
        self.calls.append("release")
        return []


def region(rank: int = 0, size: int = CONTROL_BYTES + 1024) -> SymmetricMemory:
    tensor = torch.zeros(size, dtype=torch.uint8)
    return SymmetricMemory(
        rank=rank, pointers=(1 << 20, 2 << 20), multicast=3 << 20, tensor=tensor, provider="test", holder=Holder()
    )


def test_parts_follow_the_control_region_in_order_and_aligned() -> None:
    plan = Allocations(None)
    sizes = {"a": 1, "b": 256, "c": 257, "d": 1000}
    assert [plan.allocate(name, size) - CONTROL_BYTES for name, size in sizes.items()] == [0, 256, 512, 1024]
    assert CONTROL_BYTES == 65536
    assert all(part.offset % ALIGNMENT == 0 for part in plan.parts.values())
    assert (plan.parts["c"], plan.end) == (Part(CONTROL_BYTES + 512, 257), CONTROL_BYTES + 2024)


def test_a_region_may_be_filled_to_its_last_byte_and_not_further() -> None:
    memory = region()
    assert memory.allocate("all", 1024) == CONTROL_BYTES
    assert memory.part("all").numel() == 1024
    memory.close()
    plan = Allocations(CONTROL_BYTES + 1024)
    plan.allocate("a", 300)
    with pytest.raises(LongcatShapeError) as error:
        plan.allocate("b", 513)
    assert str(error.value) == (
        "SymmetricMemory: argument `size` is 513 bytes for 'b', expected at most 512.\n"
        "  region: 66560 bytes, 65536 of them control; parts (bytes): a 300\n"
        "  fix: ask for a larger region when it is made"
    )
    assert list(plan.parts) == ["a"]
    plan.allocate("b", 512)
    with pytest.raises(LongcatShapeError, match="expected at most 0"):
        plan.allocate("c", 1)


@pytest.mark.parametrize("size", [0, -1])
def test_a_part_has_at_least_one_byte(size: int) -> None:
    with pytest.raises(LongcatShapeError, match=f"`size` is {size}, expected 1 byte or more"):
        Allocations(None).allocate("a", size)
    with pytest.raises(LongcatShapeError, match="part: 'a'"):
        symmetric_bytes({"a": size})


def test_a_name_is_used_once() -> None:
    plan = Allocations(None)
    plan.allocate("rows", 8)
    with pytest.raises(LongcatShapeError, match="`name` is 'rows', which has 8 bytes at offset 65536, expected a name"):
        plan.allocate("rows", 8)


@pytest.mark.parametrize(
    ("parts", "granularity", "expected"),
    [
        ({}, GRANULARITY, 2 << 20),
        ({}, 1, 65536),
        ({"a": 1}, 1, 65537),
        ({"a": 1, "b": 1}, 1, 65536 + 257),
        ({"a": (2 << 20) - 65536}, GRANULARITY, 2 << 20),
        ({"a": (2 << 20) - 65535}, GRANULARITY, 4 << 20),
        ({"all_reduce": 96 << 20}, GRANULARITY, 98 << 20),
        ({"all_reduce": 96 << 20}, 512 << 20, 512 << 20),
    ],
)
def test_prediction(parts: dict[str, int], granularity: int, expected: int) -> None:
    assert symmetric_bytes(parts, granularity) == expected


LISTS = {
    "another size": ([("a", 8), ("b", 8)], [("a", 8), ("b", 9)], "'b' of 9 bytes on rank 1, expected 'b' of 8 bytes"),
    "another order": ([("a", 8), ("b", 8)], [("b", 8), ("a", 8)], "'b' of 8 bytes on rank 1, expected 'a' of 8 bytes"),
    "one less": ([("a", 8)], [], "no part on rank 1, expected 'a' of 8 bytes as on rank 0"),
    "one more": ([], [("a", 8)], "'a' of 8 bytes on rank 1, expected no part as on rank 0"),
}


@pytest.mark.parametrize("name", LISTS)
def test_ranks_that_allocate_differently_all_hear_of_it(name: str) -> None:
    own, other, text = LISTS[name]
    exchanges = Hub(3, 10).exchanges()

    def one(rank: int) -> None:
        memory = region(rank)
        try:
            for part, size in other if rank == 1 else own:
                memory.allocate(part, size)
            memory.compare_parts(exchanges[rank])
        finally:
            memory.close()

    for error in on_each(3, one):
        assert isinstance(error, LongcatShapeError)
        assert text in str(error)


def test_ranks_that_allocate_alike_agree() -> None:
    exchanges = Hub(3, 10).exchanges()

    def one(rank: int) -> None:
        memory = region(rank)
        memory.allocate("a", 8)
        memory.compare_parts(exchanges[rank])
        memory.close()

    assert on_each(3, one) == [None] * 3


def test_closing_together_waits_for_the_device_then_for_all_ranks() -> None:
    exchanges = Hub(2, 10).exchanges()
    memories = [region(rank) for rank in range(2)]
    assert on_each(2, lambda rank: close_together(memories[rank], exchanges[rank])) == [None] * 2
    assert [memory.holder.calls for memory in memories] == [["synchronize", "release"]] * 2
    assert memories[0].pointers == () and memories[0].tensor is None and memories[0].multicast == 0


def test_closing_without_a_peer_closes_and_raises() -> None:
    memory, hub = region(), Hub(2)
    hub.silence(1)
    with pytest.raises(LongcatTimeoutError, match="step `before memory is closed` for call 1, and missing is: rank 1"):
        close_together(memory, hub.exchanges()[0])
    assert memory.closed
    assert memory.holder.calls == ["synchronize", "release"]


def test_a_device_that_fails_before_closing_is_told_to_the_others() -> None:
    exchanges = Hub(2, 60).exchanges()
    memories = [region(rank) for rank in range(2)]

    def broken() -> None:
        raise RuntimeError("the device is gone")

    memories[1].holder.synchronize = broken
    first, second = on_each(2, lambda rank: close_together(memories[rank], exchanges[rank]))
    assert str(second) == "the device is gone"
    assert str(first).endswith("missing is: rank 1: has left: RuntimeError: the device is gone.")
    assert memories[0].closed and memories[1].closed


def test_dropping_multicast_keeps_the_rest() -> None:
    memory = region()
    memory.drop_multicast()
    assert (memory.multicast, memory.pointers) == (0, (1 << 20, 2 << 20))
    assert memory.holder.calls == ["release_multicast"]
    memory.close()

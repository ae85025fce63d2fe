"""The VMM provider on a simulated machine: what it maps, in which order it takes and gives back, when it declines."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from longcat_ops.comm.providers import capabilities
from longcat_ops.comm.providers.base import CONTROL_BYTES, GRANULARITY, symmetric_bytes
from longcat_ops.comm.providers.capabilities import Capabilities, choose
from longcat_ops.comm.providers.driver import FABRIC, POSIX_FD
from longcat_ops.comm.providers.faults import CONTEXT_IS_DESTROYED, INVALID_HANDLE, NOT_SUPPORTED, DriverError
from longcat_ops.errors import LongcatShapeError
from support.fake_driver import driver_of
from support.fake_machine import MEMORY_GRANULE, Group, Machine
from support.vmm_ranks import GRANULE, SIZE, assert_sound, close_all, outcome, set_up


@pytest.mark.parametrize("ranks", [3, 4, 8])
@pytest.mark.parametrize("fabric", [False, True])
def test_every_rank_maps_every_region_and_the_group(ranks: int, fabric: bool) -> None:
    machine = Machine(ranks, fabric=fabric)
    answers = set_up(machine)
    assert outcome(answers) == "multicast"
    own = {rank: machine.ranges[answers[rank].memory.pointers[rank]].target for rank in range(ranks)}
    groups = set()
    for rank, answer in enumerate(answers):
        memory = answer.memory
        assert memory.bytes == GRANULE * math.ceil(SIZE / GRANULE) == memory.tensor.numel()
        assert memory.tensor.data_ptr() == own[rank].data.data_ptr()
        there = [machine.ranges[pointer] for pointer in memory.pointers]
        assert [one.target for one in there] == [own[peer] for peer in range(ranks)]
        assert all(one.rank == rank and one.access for one in there)
        groups.add(machine.ranges[memory.multicast].target)
    (group,) = groups
    assert isinstance(group, Group)
    assert group.bound == own
    assert group.added == set(range(ranks))
    imports = {method for _, method, _ in machine.log if method.startswith("import")}
    assert imports == {"import_fabric" if fabric else "import_fd"}
    close_all(answers)
    assert_sound(machine)


def test_memory_is_what_the_prediction_says() -> None:
    parts = {"all_reduce": 50_000, "tokens": 1, "counts": 300}
    expected = symmetric_bytes(parts, GRANULE)
    machine = Machine(3)
    answers = set_up(machine, size=lambda rank: symmetric_bytes(parts, 1))
    created = [thing.size for _, thing in machine.handles.values() if not isinstance(thing, Group)]
    assert set(created) == {expected} == {answer.memory.bytes for answer in answers}
    for answer in answers:
        offsets = [answer.memory.allocate(name, size) for name, size in parts.items()]
        assert offsets == [CONTROL_BYTES, CONTROL_BYTES + 50_176, CONTROL_BYTES + 50_176 + 256]
    close_all(answers)
    assert_sound(machine)


def test_two_ranks_have_peer_memory_alone() -> None:
    machine = Machine(2)
    answers = set_up(machine)
    assert outcome(answers) == "peers"
    assert answers[0].why_not["multimem"].startswith("2 ranks: multicast needs 3 or more")
    assert answers[0].memory.bytes == MEMORY_GRANULE * math.ceil(SIZE / MEMORY_GRANULE)
    assert not any("multicast" in method for _, method, _ in machine.log)
    close_all(answers)
    assert_sound(machine)


def test_one_rank_has_nothing() -> None:
    machine = Machine(1)
    (answer,) = set_up(machine)
    assert (answer.memory, answer.why_not["p2p"]) == (None, "1 rank: there is no peer")
    assert_sound(machine)


def test_without_nvswitch_there_is_peer_memory() -> None:
    machine = Machine(3, multicast=False)
    answers = set_up(machine)
    assert outcome(answers) == "peers"
    assert answers[0].why_not["multimem"].startswith("the device does not support multicast")
    close_all(answers)
    assert_sound(machine)


def test_order_of_taking_and_giving_back() -> None:
    machine = Machine(3)
    answers = set_up(machine)
    taken = len(machine.log)
    close_all(answers)
    assert_sound(machine)
    for rank in range(3):
        took = [(method, kind) for who, method, kind in machine.log[:taken] if who == rank]
        gave = [(method, kind) for who, method, kind in machine.log[taken:] if who == rank]
        mapping = [("reserve", ""), ("map", "multicast"), ("set_access", "multicast")]
        start = took.index(("multicast_add_device", ""))
        assert took[start:] == [
            ("multicast_add_device", ""),
            ("multicast_bind", ""),
            *mapping,
            ("tensor", ""),
            ("zero", ""),
        ]
        peer = [("unmap", "peer"), ("release", "peer")]
        assert gave == [
            ("unmap", "multicast"),
            ("multicast_unbind", ""),
            ("release", "multicast"),
            *peer,
            *peer,
            ("unmap", "own"),
            ("release", "own"),
            *[("free", "")] * 4,
            ("close", ""),
        ]
    adds = [i for i, (_, method, _) in enumerate(machine.log) if method == "multicast_add_device"]
    binds = [i for i, (_, method, _) in enumerate(machine.log) if method == "multicast_bind"]
    imports = [i for i, one in enumerate(machine.log) if one[1:] == ("import_fd", "multicast")]
    released = [i for i, one in enumerate(machine.log) if one == (0, "release", "multicast")]
    assert max(adds) < min(binds)
    assert max(imports) < min(released)


def test_every_descriptor_is_closed_once_it_is_imported() -> None:
    machine = Machine(3)
    answers = set_up(machine)
    assert machine.leaks()["descriptors"] == 0
    close_all(answers)


def test_two_hundred_regions_leak_nothing() -> None:
    machine = Machine(3)
    for _ in range(200):
        answers = set_up(machine)
        assert outcome(answers) == "multicast"
        close_all(answers)
        machine.log.clear()
    assert_sound(machine)


def test_closing_twice_is_closing_once() -> None:
    machine = Machine(3)
    answers = set_up(machine)
    close_all(answers)
    count = len(machine.log)
    close_all(answers)
    assert len(machine.log) == count
    with pytest.raises(LongcatShapeError, match=r"`memory` is closed, expected open"):
        answers[0].memory.allocate("late", 1)


@pytest.mark.parametrize("method", ["unmap", "multicast_unbind", "release", "free", "close"])
def test_what_fails_while_giving_back_stops_nothing_and_warns_once(method: str) -> None:
    machine = Machine(3)
    answers = set_up(machine)
    taken = len(machine.log)
    machine.methods[1, method] = [DriverError("cuAny", INVALID_HANDLE, "X")]
    for rank in (0, 2):
        answers[rank].memory.close()
    with pytest.warns(UserWarning, match=r"^symmetric memory was not given back cleanly: cuAny returned 400 \(X\)$"):
        answers[1].memory.close()
    gave = [[one[1] for one in machine.log[taken:] if one[0] == rank] for rank in range(3)]
    gave[1].insert(gave[0].index(method), method)
    assert gave[1] == gave[0]


def test_a_context_that_is_gone_is_no_news() -> None:
    machine = Machine(3)
    answers = set_up(machine)
    for method in ("unmap", "multicast_unbind", "release", "free", "close"):
        machine.methods[0, method] = [DriverError("cuAny", CONTEXT_IS_DESTROYED)] * 9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        close_all(answers)


def test_a_region_that_is_dropped_says_so_and_gives_nothing_back() -> None:
    machine = Machine(2)
    answers = set_up(machine)
    count = len(machine.log)
    with pytest.warns(ResourceWarning, match="dropped without close"):
        answers[0].memory.__del__()
    assert len(machine.log) == count
    close_all(answers)


@pytest.mark.parametrize("rank", [0, 2])
def test_fabric_is_dropped_where_it_is_refused(rank: int) -> None:
    machine = Machine(3, fabric=True)
    create = driver_of(machine, rank)

    def picky(device: int) -> object:
        driver = create(device)
        real = driver.create

        def without_fabric(size: int, types: int) -> int:
            if types & FABRIC:
                raise DriverError("cuMemCreate", NOT_SUPPORTED)
            return real(size, types)

        driver.create = without_fabric
        return driver

    answers = set_up(machine, options=lambda who: {"driver": picky} if who == rank else {})
    assert outcome(answers) == "multicast"
    types = {one.owner: one.handle_types for _, one in machine.handles.values() if not isinstance(one, Group)}
    assert types == {who: POSIX_FD | (FABRIC if who != rank else 0) for who in range(3)}
    assert not any(method == "import_fabric" for _, method, _ in machine.log)
    close_all(answers)
    assert_sound(machine)


def test_sizes_that_differ_are_refused_by_all() -> None:
    machine = Machine(3)
    for error in set_up(machine, size=lambda rank: SIZE + (rank == 2)):
        assert isinstance(error, LongcatShapeError)
        assert f"`size` is {SIZE + 1} on rank 2, expected {SIZE} as on rank 0" in str(error)
    assert_sound(machine)
    for error in set_up(machine, size=lambda rank: CONTROL_BYTES - 1):
        assert f"is {CONTROL_BYTES - 1}, expected {CONTROL_BYTES} (the control region) or more" in str(error)
    assert_sound(machine)


GOOD = Capabilities("host", "0", 1 << 20, True, True, True, 2 << 20, 6 << 20, "")


def _with(**changes: object) -> Capabilities:
    return Capabilities(**(vars(GOOD) | changes))


def test_choice_from_capabilities() -> None:
    ranks = [_with(device=str(rank)) for rank in range(3)]
    assert vars(choose(ranks)) == {
        "size": 6 << 20,
        "handle_types": POSIX_FD | FABRIC,
        "no_peers": "",
        "no_multicast": "",
    }
    ranks[2] = _with(device="2", fabric=False, no_multicast="no switch")
    assert choose(ranks).handle_types == POSIX_FD
    assert choose(ranks).no_multicast == "rank 2: no switch"
    assert choose(ranks).size == GRANULARITY
    ranks[1] = _with(device="1", machine="other")
    assert choose(ranks).no_peers == "the ranks are on 2 machines, expected 1"
    ranks[1] = _with(device="2")
    assert choose(ranks).no_peers == "ranks 1 and 2 share a device, expected one each"
    ranks[1] = _with(device="1", posix_fd=False)
    assert choose(ranks).no_peers.startswith("rank 1: the device supports neither")
    lonely = [_with(device=str(rank), no_multicast="off") for rank in range(3)]
    assert choose(lonely).no_multicast == "off"  # once, since all ranks say so


def test_the_machine_has_a_name() -> None:
    driver = driver_of(Machine(3), 0)(0)
    one = capabilities.probe(driver, 3, SIZE)
    assert Capabilities.decode(one.encode()) == one
    assert len(one.machine) == 36  # the id of the boot, a UUID
    assert (one.granularity, one.multicast_granularity) == (4096, 30720)


def test_parts_are_views_of_the_own_region() -> None:
    machine = Machine(2)
    answers = set_up(machine)
    memory = answers[1].memory
    offset = memory.allocate("rows", 100)
    memory.part("rows").fill_(7)
    assert torch.equal(memory.tensor.nonzero().flatten(), torch.arange(offset, offset + 100))
    with pytest.raises(LongcatShapeError, match="`name` is 'row', expected one of: rows"):
        memory.part("row")
    close_all(answers)

"""Set-ups of the VMM provider on the fake machine, and what must be true after each."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

from longcat_ops.comm.providers import base, vmm
from longcat_ops.comm.providers.base import SetUp
from support.fake_driver import driver_of
from support.fake_machine import MEMORY_GRANULE, MULTICAST_GRANULES, Group, Machine
from support.rank_threads import Hub, on_each

SIZE = base.CONTROL_BYTES + 1000
GRANULE = math.lcm(MEMORY_GRANULE, *MULTICAST_GRANULES)


def set_up(
    machine: Machine,
    *,
    timeout_s: float = 20,
    size: Callable[[int], int] = lambda rank: SIZE,
    options: Callable[[int], dict[str, Any]] = lambda rank: {},
) -> list[SetUp | BaseException]:
    """One set-up by all ranks: what each got, or what it raised."""
    hub = Hub(machine.ranks, timeout_s)
    machine.when_dead = hub.silence
    exchanges = hub.exchanges()

    def one(rank: int) -> SetUp:
        given = {"driver": driver_of(machine, rank), "retry_wait_s": 0} | options(rank)
        return vmm.open_memory(exchanges[rank], rank, size(rank), **given)

    return on_each(machine.ranks, one)


def outcome(answers: list[SetUp | BaseException]) -> str:
    """ "multicast", "peers" or "nothing", after checking that all ranks have it, for the same reasons."""
    assert all(isinstance(answer, SetUp) for answer in answers), answers
    assert len({tuple(sorted(answer.why_not.items())) for answer in answers}) == 1
    kinds = set()
    for rank, answer in enumerate(answers):
        memory, why_not = answer.memory, answer.why_not
        if memory is None:
            kinds.add("nothing")
            assert set(why_not) == {"p2p", "multimem"}
            continue
        kinds.add("multicast" if memory.multicast else "peers")
        assert set(why_not) == (set() if memory.multicast else {"multimem"})
        assert (memory.rank, memory.ranks, len(memory.pointers)) == (rank, len(answers), len(answers))
        assert all(memory.pointers)
        assert not memory.tensor.any()
    assert len(kinds) == 1, answers
    return kinds.pop()


def assert_holds_no_more_than(machine: Machine, kind: str) -> None:
    """While the regions are open: no descriptor, and no multicast object unless that is the outcome."""
    leaks = machine.leaks()
    assert leaks["descriptors"] == 0
    groups = sum(isinstance(thing, Group) for _, thing in machine.handles.values())
    assert groups == leaks["bound"] / machine.ranks == (machine.ranks if kind == "multicast" else 0)
    if kind == "nothing":
        assert set(leaks.values()) == {0}, leaks


def assert_sound(machine: Machine) -> None:
    """No rule was broken; and nothing of the machine is in use any more."""
    assert machine.misuse == [], machine.misuse
    assert set(machine.leaks().values()) == {0}, machine.leaks()


def close_all(answers: list[SetUp | BaseException]) -> None:
    for answer in answers:
        if isinstance(answer, SetUp) and answer.memory is not None:
            answer.memory.close()


@cache
def calls_without_errors(ranks: int, fabric: bool) -> list[list[str]]:
    """The methods of the driver that each rank calls until it has its region, in order."""
    machine = Machine(ranks, fabric=fabric)
    answers = set_up(machine)
    calls = [[method for who, method, _ in machine.log if who == rank] for rank in range(ranks)]
    close_all(answers)
    return calls

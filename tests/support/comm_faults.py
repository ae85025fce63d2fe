"""Jobs of ranks: one of them does not come, stalls, fails, aborts or dies. Each returns what this rank has raised."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from longcat_ops.comm import Communicator
from longcat_ops.comm.rungs import gloo, group
from longcat_ops.errors import LongcatError, LongcatTimeoutError
from support.comm_pool import World

SMALL, LARGE = 8, 60000

OPS: dict[str, Callable[[Any], Any]] = {
    "all_reduce": lambda c: c.all_reduce(torch.ones(SMALL)),
    "reduce_scatter": lambda c: c.reduce_scatter(torch.ones(c.ranks * LARGE)),
    "all_gather": lambda c: c.all_gather(torch.ones(LARGE)),
    "broadcast_": lambda c: c.broadcast_(torch.ones(SMALL), 0),
    "all_reduce_residual_rmsnorm": lambda c: c.all_reduce_residual_rmsnorm(
        torch.ones(2, 8), torch.ones(2, 8), torch.ones(8), 0.0
    ),
    "barrier": lambda c: c.barrier(),
}


def attempt(call: Callable[[], Any]) -> dict[str, Any]:
    """What a call raised, and the seconds it took."""
    start = time.monotonic()
    found: dict[str, Any] = {"kind": "none", "text": ""}
    try:
        call()
    except LongcatError as error:
        found = {"kind": type(error).__name__, "text": str(error)}
        if isinstance(error, LongcatTimeoutError):
            found |= {"missing": error.missing, "op": error.op, "slot": error.slot, "rank": error.rank}
            found |= {"expected": error.expected, "seen": error.seen}
    except BaseException as error:
        found = {"kind": type(error).__name__, "text": str(error)}
    return found | {"seconds": time.monotonic() - start}


def works(world: World, ranks: int, backend: str) -> bool:
    """Whether a new communicator over the same group serves."""
    with world.new(ranks, backend, timeout_s=20.0) as comm:
        return comm.all_reduce(torch.full((2,), comm.rank + 1.0)).tolist() == [ranks * (ranks + 1) / 2] * 2


def absent(world: World, ranks: int, backend: str, op: str, missing: int, timeout_s: float) -> Any:
    """Rank `missing` comes to its second call when the others have given up."""
    with world.new(ranks, backend, timeout_s=timeout_s) as comm:
        comm.barrier()
        if world.rank == missing:
            time.sleep(timeout_s + 0.3)
        found = attempt(lambda: OPS[op](comm))
        again = attempt(lambda: comm.all_reduce(torch.ones(2)))
    return found, again, works(world, ranks, backend)


class Sleeping:
    """Replaces a function of a module by one that calls `before` first."""

    def __init__(self, owner: Any, name: str, before: Callable[[], Any]) -> None:
        self.owner, self.name, self.real = owner, name, getattr(owner, name)

        def replaced(*args: Any, **kwargs: Any) -> Any:
            before()
            return self.real(*args, **kwargs)

        setattr(owner, name, replaced)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        setattr(self.owner, self.name, self.real)


def stalls(world: World, ranks: int, backend: str, where: str, bad: int, timeout_s: float) -> Any:
    """Rank `bad` stalls inside an all_reduce of two exchanges: before it sends, or between the two."""
    owner, name = {"entry": (gloo.GlooRung, "_frames"), "middle": (group, "add_in_order")}[where]
    seconds = timeout_s + 0.3 if world.rank == bad else 0.0
    with world.new(ranks, backend, timeout_s=timeout_s) as comm, Sleeping(owner, name, lambda: time.sleep(seconds)):
        found = attempt(lambda: comm.all_reduce(torch.ones(LARGE)))
    return found, works(world, ranks, backend)


def fails(world: World, ranks: int, backend: str, bad: int) -> Any:
    """Rank `bad` runs out of memory in the middle of an all_reduce."""

    def fail() -> None:
        if world.rank == bad:
            raise MemoryError("no memory for the sum")

    with world.new(ranks, backend, timeout_s=20.0) as comm, Sleeping(group, "add_in_order", fail):
        found = attempt(lambda: comm.all_reduce(torch.ones(LARGE)))
        again = attempt(comm.barrier)
    return found, again, works(world, ranks, backend)


def aborts(world: World, ranks: int, backend: str) -> Any:
    """The last rank does not come; a thread of rank 0 aborts. The last rank then asks how things are."""
    with world.new(ranks, backend, timeout_s=20.0) as comm:
        comm.barrier()
        if world.rank == 0:
            threading.Timer(0.3, comm.abort, ["the operator"]).start()
        if world.rank == ranks - 1:
            time.sleep(0.6)
            found = attempt(comm.check)
        else:
            found = attempt(lambda: comm.all_reduce(torch.ones(LARGE)))
    return found, works(world, ranks, backend)


def closes(world: World, ranks: int, backend: str) -> Any:
    """The last rank closes, the others call once more."""
    comm = world.new(ranks, backend, timeout_s=20.0)
    comm.barrier()
    if world.rank == ranks - 1:
        comm.close()
    found = attempt(comm.barrier)
    comm.close()
    return found, works(world, ranks, backend)


def not_constructed(world: World, ranks: int, backend: str, missing: int) -> Any:
    """Rank `missing` does not construct in time; afterwards all do."""
    if world.rank == missing:
        time.sleep(0.8)
    found = attempt(lambda: world.new(ranks, backend, timeout_s=0.5))
    return found, works(world, ranks, backend)


def survive(world: World, ranks: int, backend: str, op: str, dies: int, limit_s: float, idle: float) -> Any:
    """Rank `dies` is killed 0.4 s after all have constructed. The others call after `idle` seconds, then go on."""
    comm = world.new(ranks, backend, timeout_s=limit_s)
    comm.barrier()
    if world.rank == dies:
        time.sleep(0.4)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(idle)
    found = attempt(lambda: OPS[op](comm))
    comm.close()
    left = [r for r in range(ranks) if r != dies]
    if len(left) > 1:
        smaller = dist.new_group(left, use_local_synchronization=True, timeout=timedelta(seconds=20))
        with Communicator(smaller, backend=backend) as after:
            found["sum"] = after.all_reduce(torch.full((1,), world.rank + 1.0)).item()
    return found


def die(world: World, ranks: int, backend: str) -> Any:
    """A construction that rank 1 does not live to see."""
    if world.rank == 1:
        os._exit(3)
    return attempt(lambda: world.new(ranks, backend, timeout_s=0.6))


def forked(world: World, ranks: int, backend: str) -> Any:
    """A forked process uses the communicator of its parent, and ends; then the parent uses it."""
    comm = world.new(ranks, backend, timeout_s=20.0)
    comm.barrier()
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(there, attempt(comm.barrier)["text"].encode())
        comm.close()
        os._exit(0)
    os.waitpid(child, 0)
    text = os.read(here, 4096).decode()
    os.close(here)
    os.close(there)
    total = comm.all_reduce(torch.ones(1)).item()
    comm.close()
    return text, total


def threads(world: World, ranks: int, backend: str) -> Any:
    """One channel from two threads at once is refused; two channels from two threads serve."""
    comm = world.new(ranks, backend, timeout_s=20.0)
    other = comm.channel(1)
    sums: list[float] = []

    def use() -> None:
        for i in range(20):
            sums.append(other.all_reduce(torch.full((LARGE,), float(i)))[0].item())

    thread = threading.Thread(target=use)
    thread.start()
    mine = [comm.all_reduce(torch.full((3,), float(i)))[0].item() for i in range(20)]
    thread.join()
    started = threading.Event()
    found = {}
    if world.rank == 0:  # rank 0 waits in channel 0 for the others, and calls it again meanwhile
        with Sleeping(gloo.GlooRung, "_frames", started.set):
            waits = threading.Thread(target=comm.barrier)
            waits.start()
            started.wait(10)
            found = attempt(comm.barrier)
            other.barrier()
            waits.join()
    else:
        other.barrier()
        comm.barrier()
    comm.close()
    return mine, sums, found


def closes_within(world: World, ranks: int, backend: str) -> Any:
    """The last rank does not come; a thread of rank 0 closes while its call waits."""
    comm = world.new(ranks, backend, timeout_s=20.0)
    comm.barrier()
    found = {}
    if world.rank < ranks - 1:
        if world.rank == 0:
            threading.Timer(0.2, comm.close).start()
        found = attempt(comm.barrier)
    comm.close()
    return found, works(world, ranks, backend)

"""Jobs of ranks: how communicators are made, chosen and given back."""

from __future__ import annotations

import gc
import os
import time
from typing import Any

import torch
import torch.distributed as dist

from longcat_ops import _environment
from longcat_ops.comm import Communicator, choose
from longcat_ops.comm.rungs import connect
from longcat_ops.errors import LongcatError
from support.comm_faults import attempt
from support.comm_pool import World


def cycles(world: World, ranks: int, backend: str, count: int) -> Any:
    """What `count` communicators leave: descriptors, threads, keys of the store. Each ends in another way."""
    store = world.group(ranks).get_group_store()

    def cycle(i: int) -> None:
        comm = world.new(ranks, backend, timeout_s=20.0)
        x = torch.full((3 + i,), float(i))
        total = comm.channel(i % 2).all_reduce(x)
        assert total[0] == ranks * i
        if i % 3 == 0:
            comm.close()
        elif i % 3 == 1:
            with comm:
                comm.barrier()
        del comm

    def measure() -> tuple[int, int, int]:
        """Descriptors, threads and keys between two barriers, so that no rank makes the next communicator."""
        world.comm(ranks, backend).barrier()
        gc.collect()
        found = count_all()
        for _ in range(20):  # threads of what was closed before may still end
            time.sleep(0.5)
            last, found = found, count_all()
            if last == found:
                break
        world.comm(ranks, backend).barrier()
        return found

    def count_all() -> tuple[int, int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), store.num_keys()

    for i in range(3):
        cycle(i)
    before = measure()
    for i in range(count):
        cycle(i)
    return before, measure()


def states(world: World, ranks: int, backend: str) -> dict[str, Any]:
    """Attributes, and what a closed communicator says."""
    comm = world.new(ranks, backend, max_bytes=4096, num_channels=3)
    found: dict[str, Any] = {"rank": comm.rank, "ranks": comm.ranks, "backend": comm.backend, "why_not": comm.why_not}
    found["caps"] = comm.caps
    found["check"] = attempt(comm.check)["kind"]
    empty = comm.empty((3, 4), torch.float16)
    found["empty"] = (list(empty.shape), empty.dtype, empty.device.type)
    found["too large"] = attempt(lambda: comm.empty((4097,), torch.int8))["text"]
    found["channel"] = attempt(lambda: comm.channel(3))["text"]
    found["same"] = comm.channel(0) is comm and comm.channel(2) is comm.channel(2)
    other = comm.channel(1)
    comm.close()
    comm.close()
    calls = {
        "all_reduce": lambda: comm.all_reduce(torch.ones(1)),
        "barrier": comm.barrier,
        "check": comm.check,
        "empty": lambda: comm.empty(1, torch.int8),
        "channel": lambda: comm.channel(1),
        "channel 1": lambda: other.barrier(),
        "bad call": lambda: comm.all_reduce(3),
    }
    found["closed"] = {name: attempt(call)["text"] for name, call in calls.items()}
    comm.abort()
    return found


def aborted(world: World, ranks: int, backend: str) -> list[str]:
    """Texts of calls after this rank has aborted."""
    comm = world.new(ranks, backend)
    comm.barrier()
    comm.abort("a test")
    texts = [attempt(call)["text"] for call in (comm.barrier, comm.check, lambda: comm.all_reduce(torch.ones(2)))]
    comm.close()
    return texts


def constructs(world: World, ranks: int, backend: str, options: dict[str, Any], last: dict[str, Any]) -> Any:
    """Constructs with `options`, the last rank with `last` over them; then all do it right."""
    mine = options | (last if world.rank == ranks - 1 else {})
    found = attempt(lambda: Communicator(world.group(ranks), **mine).close())
    with world.new(ranks, backend) as comm:
        comm.barrier()
    return found


def ladder(world: World, ranks: int, backend: str, objections: dict[str, str], fails: str, wanted: str) -> Any:
    """The choice where the last rank has objections of its own, or cannot build the rung `fails`; all others can use
    `nccl`, which stands for gloo here."""
    real_objections, real_build = choose.objections, connect.build
    last = world.rank == ranks - 1

    def build(name: str, session: Any) -> Any:
        if name == fails and last:
            raise RuntimeError("the driver said no")
        return real_build("gloo", session)

    free = {"multimem": "no switch", "p2p": "no peers", "nccl": "", "gloo": ""}
    choose.objections = lambda ladder, device, ranks: free | (objections if last else {})
    connect.build = build
    try:
        comm = Communicator(world.group(ranks), backend=wanted)
    except LongcatError as error:
        return f"{type(error).__name__}: {error}", {}
    finally:
        choose.objections, connect.build = real_objections, real_build
    total = comm.all_reduce(torch.ones(1)).item()
    comm.close()
    return comm.backend, comm.why_not, total


def environment(world: World, ranks: int, backend: str, values: dict[str, str]) -> Any:
    """What a communicator takes from the environment."""
    before = dict(_environment.values)
    _environment.values.update(values)
    try:
        comm = Communicator(world.group(ranks))
        found = comm.backend, comm._session.config.timeout_s
        comm.close()
        return found
    except LongcatError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        _environment.values.clear()
        _environment.values.update(before)


kept: list[Any] = []  # what the interpreter finds when it ends


def leave_open() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    comm = Communicator(num_channels=2)
    assert comm.channel(1).all_reduce(torch.ones(2)).tolist() == [1.0, 1.0]
    kept.extend([comm, comm.channel(1)])

"""Processes that are the ranks of communicators, with the store in the process of the tests.

A server process imports torch once; each rank is forked from it, in milliseconds. A rank runs the jobs that it is sent,
"comm_values.all_reduces" for example: a function of a module of `support`, called with its `World`.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

# A TCPStore looks the names of its peers up, and a resolver that drops a question costs its whole patience, else 5 s.
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["torch", "numpy", "longcat_ops.comm", "torch.library"])


class World:
    """What a job sees: its rank, groups of the first n ranks, communicators over them that stay open."""

    def __init__(self, rank: int, ranks: int, subgroups: bool) -> None:
        self.rank, self.ranks = rank, ranks
        self._groups = {n: dist.new_group(list(range(n))) for n in range(1, ranks) if subgroups}
        self._groups[ranks] = dist.group.WORLD
        pairs = [(r, r + 1) for r in range(2, ranks - 1, 2) if subgroups]
        self._pairs = [self._groups.get(2), *map(dist.new_group, pairs)]
        self._open: dict[Any, Any] = {}

    def group(self, ranks: int) -> Any:
        return self._groups[ranks]

    def pair(self) -> Any:
        """The group of ranks 0 and 1, 2 and 3, .. that this rank is in."""
        return self._pairs[self.rank // 2]

    def comm(self, ranks: int, backend: str, **options: Any) -> Any:
        """A communicator that jobs share. A job that may poison one makes its own."""
        key = (ranks, backend, *options.items())
        if key not in self._open:
            self._open[key] = self.new(ranks, backend, **options)
        return self._open[key]

    def new(self, ranks: int, backend: str, **options: Any) -> Any:
        """A communicator. "nccl code": the code of the rung `nccl`, with gloo in the place of NCCL, on the host."""
        from longcat_ops.comm import Communicator
        from longcat_ops.comm.rungs import connect

        name, _, code = backend.partition("+")
        real = dict(connect.RUNGS)
        if code == "nccl code":
            connect.RUNGS[name] = type("HostNccl", (connect.RUNGS["nccl"],), {"devices": ("cpu",)})
        try:
            return Communicator(self.group(ranks), backend=name, **options)
        finally:
            connect.RUNGS.update(real)


def serve(rank: int, ranks: int, subgroups: bool, pipe: Connection) -> None:
    """Runs jobs until the pipe ends. The port of the store comes first; for 0 this rank has the store."""
    torch.set_num_threads(1)
    port = pipe.recv()
    store = dist.TCPStore(
        "127.0.0.1", port, is_master=port == 0, wait_for_workers=False, timeout=timedelta(seconds=60)
    )  # fmt: skip
    pipe.send((True, store.port))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    world = World(rank, ranks, subgroups)
    pipe.send((True, "ready"))
    while True:
        try:
            job, arguments = pipe.recv()
        except (EOFError, ConnectionError):
            os._exit(0)
        try:
            module, _, function = job.partition(".")
            act = getattr(importlib.import_module(f"support.{module}"), function)
            dist.barrier(world.group(arguments.get("ranks", ranks)))  # deadlines begin when all have imported it
            reply = (True, act(world, **arguments))
        except BaseException:
            reply = (False, traceback.format_exc())
        pipe.send(reply)


class Pool:
    """`ranks` processes. A context manager that ends them.

    subgroups: there are groups of the first 1, 2, .. ranks, too. torch names a group that survivors form after the
    number of groups that each of them is in, so they must be in as many. store_in_rank: rank 0 has the store, not this
    process.
    """

    def __init__(self, ranks: int, subgroups: bool = False, store_in_rank: bool = False) -> None:
        self.ranks = ranks
        self.store = None if store_in_rank else dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.pipes, self.processes = [], []
        for rank in range(ranks):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(rank, ranks, subgroups, there), daemon=True)
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)
        port = 0 if self.store is None else self.store.port
        for rank, pipe in enumerate(self.pipes):
            pipe.send(port)
            port = self.result(rank)
        for rank in range(ranks):
            self.result(rank)

    def start(self, rank: int, job: str, /, **arguments: Any) -> None:
        self.pipes[rank].send((job, arguments))

    def result(self, rank: int, timeout: float = 60.0) -> Any:
        """What the job of `rank` returned; AssertionError with its traceback, or if it does not end."""
        assert self.pipes[rank].poll(timeout), f"rank {rank} has not ended its job after {timeout} s"
        good, value = self.pipes[rank].recv()
        assert good, f"rank {rank}:\n{value}"
        return value

    def run(self, count: int, job: str, /, **arguments: Any) -> list[Any]:
        """The job on the first `count` ranks; what each returned."""
        for rank in range(count):
            self.start(rank, job, **arguments)
        return [self.result(rank) for rank in range(count)]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(2.0)
            if process.is_alive():
                process.kill()
                process.join()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""Ranks of one machine as processes that live for one function, over gloo."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import threading
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

from ..errors import LongcatError

START_S = 120.0  # to start, to run and to answer


def run_ranks(ranks: int, function: str, *arguments: Any) -> list[Any]:
    """What function(rank, ranks, *arguments) returned on each rank. function: "module.of.it:name", imported there.

    A server imports torch once; the ranks are forked from it. Raises LongcatError with a rank's traceback, or if one
    does not answer.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "longcat_ops.comm"])
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipes, processes = [], []
    try:
        for rank in range(ranks):
            here, there = context.Pipe()
            given = (rank, ranks, store.port, torch.get_num_threads(), function, arguments, there)
            process = context.Process(target=_serve, args=given, daemon=True)
            process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
        return _answers(pipes)
    finally:
        until = time.monotonic() + 2.0
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()


def _answers(pipes: list[Connection]) -> list[Any]:
    """Every rank's value. Raises the first failure: others may only have waited for that rank."""
    values: dict[int, Any] = {}
    until = time.monotonic() + START_S
    while len(values) < len(pipes):
        left = {pipe: rank for rank, pipe in enumerate(pipes) if rank not in values}
        ready = wait(left, max(0.0, until - time.monotonic()))
        if not ready:
            raise LongcatError(f"ranks {sorted(left.values())}: no answer within {START_S:.0f} s")
        for pipe in ready:
            try:
                good, value = pipe.recv()
            except EOFError:
                good, value = False, "its process ended"
            if not good:
                raise LongcatError(f"rank {left[pipe]}: {value}")
            values[left[pipe]] = value
    return [values[rank] for rank in range(len(pipes))]


def _follow(caller: Any) -> None:
    """Ends this rank with the process that asked for it, which may be killed."""
    caller.join()
    os._exit(1)


def _serve(rank: int, ranks: int, port: int, threads: int, function: str, arguments: tuple, pipe: Connection) -> None:
    threading.Thread(target=_follow, args=(multiprocessing.parent_process(),), daemon=True).start()
    try:
        torch.set_num_threads(max(1, threads // ranks))
        store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=START_S))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
        module, _, name = function.partition(":")
        reply = True, getattr(importlib.import_module(module), name)(rank, ranks, *arguments)
        dist.barrier()
    except BaseException:
        reply = False, traceback.format_exc()
    pipe.send(reply)
    pipe.close()

"""Jobs of a node: a rank that does not come, an abort from the host, communicators made and closed again."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from longcat_ops.comm import Communicator
from longcat_ops.errors import LongcatCommError, LongcatError, LongcatTimeoutError
from support.node import Node

LIMIT_S = 1.5
SLACK_S = 8.0
POLL_S = 0.02
LEAK_BYTES = 8 << 20
ROWS = 600  # in all: more than the low-latency form takes

OPS: dict[str, Callable[[Node, Communicator], Any]] = {
    "low latency": lambda n, c: c.all_reduce(torch.ones(8, device=n.device)),
    "all_reduce": lambda n, c: c.all_reduce(torch.ones(ROWS, 128, device=n.device)),
    "reduce_scatter": lambda n, c: c.reduce_scatter(torch.ones(n.ranks * 64, 128, device=n.device)),
    "all_gather": lambda n, c: c.all_gather(torch.ones(64, 128, device=n.device)),
    "broadcast_": lambda n, c: c.broadcast_(torch.ones(ROWS, 128, device=n.device), 0),
    "all_reduce_residual_rmsnorm": lambda n, c: c.all_reduce_residual_rmsnorm(
        *(torch.ones(9, 128, device=n.device) for _ in range(2)), torch.ones(128, device=n.device), 1e-5
    ),
    "barrier": lambda n, c: c.barrier(),
}


def outcome(comm: Communicator, call: Callable[[], Any], patience: float) -> dict[str, Any]:
    """What a call raised, at once or when its communicator was asked later, and after how many seconds. Never waits for
    a stream: work that hangs would take this process along."""
    start = time.monotonic()
    found: dict[str, Any] = {"kind": "none", "text": "", "missing": ()}
    try:
        call()
        while time.monotonic() - start < patience:
            comm.check()
            time.sleep(POLL_S)
    except LongcatError as error:
        found = {"kind": type(error).__name__, "text": str(error), "missing": getattr(error, "missing", ())}
    return found | {"seconds": time.monotonic() - start}


def works(node: Node, rung: str) -> list[str]:
    """Whether a new communicator over the same ranks serves."""
    with node.new(rung, max_bytes=1 << 20) as comm:
        got = comm.all_reduce(torch.full((64,), node.rank + 1.0, device=node.device)).tolist()
    right = node.ranks * (node.ranks + 1) / 2
    return [] if got == [right] * 64 else [f"a new communicator gave {got[:4]}, expected {right}"]


def absent(node: Node, rung: str, op: str) -> list[str]:
    """The last rank comes when the others have given up. They name it, in time, and refuse every later call."""
    missing, wrong = node.ranks - 1, []
    comm = node.new(rung, max_bytes=1 << 20, timeout_s=LIMIT_S)
    comm.barrier()
    node.fleet.align()
    if node.rank == missing:
        time.sleep(2 * LIMIT_S)
    found = outcome(comm, lambda: OPS[op](node, comm), LIMIT_S + SLACK_S)
    again = outcome(comm, comm.barrier, 0.0)
    if found["kind"] == "none":
        wrong.append(f"no error after {found['seconds']:.1f} s")
    if found["kind"] == LongcatTimeoutError.__name__ and found["missing"] != (missing,):
        wrong.append(f"it names ranks {found['missing']}: {found['text']}")
    if node.rank != missing and found["seconds"] > LIMIT_S + SLACK_S:
        wrong.append(f"it took {found['seconds']:.1f} s")
    if "this communicator is poisoned" not in again["text"]:
        wrong.append(f"the next call: {again}")
    named = node.fleet.gather(found["missing"])
    if (missing,) not in named[:missing]:
        wrong.append(f"no rank names rank {missing}: {found['text']}")
    comm.abort()
    comm.close()
    return wrong + works(node, rung)


def aborted(node: Node, rung: str) -> list[str]:
    """The last rank does not come; a thread of rank 0 ends the others' calls."""
    wrong, last = [], node.ranks - 1
    comm = node.new(rung, max_bytes=1 << 20, timeout_s=60.0)
    comm.barrier()
    node.fleet.align()
    if node.rank == 0:
        threading.Timer(0.3, comm.abort, ["the operator"]).start()
    call = (lambda: None) if node.rank == last else lambda: OPS["all_reduce"](node, comm)
    found = outcome(comm, call, SLACK_S)
    if found["kind"] != LongcatCommError.__name__ or found["seconds"] > SLACK_S:
        wrong.append(f"{found}")
    comm.close()
    return wrong + works(node, rung)


def _in_use() -> tuple[int, int]:
    """Bytes of the GPU, and open files of this process."""
    free, most = torch.cuda.mem_get_info() if torch.cuda.is_available() else (0, 0)
    return most - free, len(os.listdir("/proc/self/fd"))


def cycles(node: Node, rung: str, count: int) -> list[str]:
    """Communicators made and closed: they serve, and nothing stays behind."""
    wrong = works(node, rung) + works(node, rung)
    node.fleet.align()
    before = _in_use()
    for _ in range(count):
        wrong += works(node, rung)
    node.synchronize()
    node.fleet.align()
    after = _in_use()
    if after[0] - before[0] > LEAK_BYTES:
        wrong.append(f"{after[0] - before[0]} bytes of the GPU are still in use after {count} communicators")
    if after[1] > before[1] + 2:
        wrong.append(f"{after[1] - before[1]} more files are open after {count} communicators")
    return wrong

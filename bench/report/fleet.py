"""The ranks that torchrun started, for benches and tests: what they tell each other beside what they measure."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

WAIT_S = 120.0  # for a rank that compiles or captures


def ranks_here() -> int:
    """How many ranks torchrun started; 0 if this process is none of them."""
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() else 0


def is_first_rank() -> bool:
    """Whether this process is the one that reports."""
    return ranks_here() == 0 or os.environ["RANK"] == "0"


_shared: Fleet | None = None
_users = 0
_first_pid = 0


def first_lives() -> bool:
    """Whether the process of rank 0 still runs, as far as this one knows it."""
    if not _first_pid:
        return False
    try:
        os.kill(_first_pid, 0)
    except OSError:
        return False
    return True


@dataclass
class Fleet:
    """One rank's view. device: of the tensors; a GPU for each rank if there are enough, else the host. control: a gloo
    group beside the one that is measured. After a control call has failed, every later one raises at once."""

    rank: int
    ranks: int
    device: torch.device
    control: Any
    lost: str = ""

    @classmethod
    def start(cls) -> Fleet:
        """Joins the ranks of torchrun. Collective. Each call needs a `close`; all of a process share one."""
        global _shared, _users, _first_pid
        if _shared is None:
            _shared = cls._join()
            _first_pid = _shared.first(os.getpid())
        _users += 1
        return _shared

    @classmethod
    def _join(cls) -> Fleet:
        rank, ranks, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        on_gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
        wait = timedelta(seconds=WAIT_S)
        if on_gpus:
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
            dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device, timeout=wait)
        else:
            device = torch.device("cpu")
            dist.init_process_group("gloo", timeout=wait)
        return cls(rank, ranks, device, dist.new_group(backend="gloo", timeout=wait))

    @property
    def on_gpus(self) -> bool:
        return self.device.type == "cuda"

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order. Collective, as is all that follows."""
        found = [None] * self.ranks
        self._ask(lambda: dist.all_gather_object(found, value, group=self.control))
        return found

    def first(self, value: Any) -> Any:
        """The value of rank 0."""
        found = [value]
        self._ask(lambda: dist.broadcast_object_list(found, src=0, group=self.control))
        return found[0]

    def longest(self, times: Sequence[float]) -> list[float]:
        """The largest of all ranks, place by place."""
        found = torch.tensor(times, dtype=torch.float64)
        self._ask(lambda: dist.all_reduce(found, dist.ReduceOp.MAX, group=self.control))
        return found.tolist()

    def agree(self, problem: str) -> str:
        """The problems of all ranks in one text, the same on each; "" if no rank has one."""
        problems = self.gather(problem)
        if len(set(problems)) == 1:
            return problems[0]
        return "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(problems) if text)

    def attempt(self, act: Callable[[], Any]) -> tuple[Any, str]:
        """What `act` returned on this rank, and the problems of all: the error of each rank where it raised."""
        value, problem = None, ""
        try:
            value = act()
        except Exception as error:
            problem = f"{type(error).__name__}: {str(error).strip()[:400]}"
        return value, self.agree(problem)

    def align(self) -> None:
        """Lets all ranks begin together: the hosts, then the streams of the GPUs."""
        self._ask(lambda: dist.barrier(group=self.control))
        if self.on_gpus:
            dist.all_reduce(torch.zeros(1, device=self.device))

    def close(self) -> None:
        global _shared, _users
        _users -= 1
        if _users == 0:
            _shared = None
            dist.destroy_process_group()

    def _ask(self, question: Callable[[], Any]) -> None:
        if self.lost:
            raise RuntimeError(f"the ranks are out of step since: {self.lost}")
        try:
            question()
        except Exception as error:
            self.lost = f"{type(error).__name__}: {error}"
            raise

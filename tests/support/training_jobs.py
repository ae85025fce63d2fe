"""What ranks do for the tests of training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longcat_ops.errors import LongcatShapeError
from longcat_ops.training import BiasController
from support.comm_pool import World

EXPERTS, ZERO, TOP_K, STEPS = 6, 2, 3, 9


def counts_of(rank: int, step: int) -> Tensor:
    """Counts of this rank's tokens; every third step it has none."""
    drawn = torch.randint(0, 100, (EXPERTS + ZERO,), generator=torch.Generator().manual_seed(100 * step + rank))
    drawn[0] += -int(drawn.sum()) % TOP_K
    drawn *= (step + rank) % 3 > 0
    return drawn if step % 2 else drawn.int()


def controller(group: Any = None) -> BiasController:
    return BiasController(EXPERTS, ZERO, TOP_K, 2.0, mu=0.3, kp=0.1, group=group)


def biases(world: World, ranks: int, backend: str) -> list[list[float]]:
    """The bias after each step, of a controller that sums the counts of all ranks."""
    control, found = controller(world.group(ranks)), []
    for step in range(STEPS):
        mine = counts_of(world.rank, step)
        before = mine.clone()
        found.append(control.update(mine).tolist())
        assert torch.equal(mine, before), "the counts are the caller's"
    return found


def refused(world: World, ranks: int, backend: str) -> str:
    """The error of counts that are wrong on the last rank alone: all ranks raise it, and none waits for another."""
    counts = torch.full((EXPERTS + ZERO,), 3 * ranks)
    counts[0] += world.rank == ranks - 1
    control = controller(world.group(ranks))
    try:
        control.update(counts)
    except LongcatShapeError as error:
        return str(error)
    return "none"

"""Do whole ScMoE layers of several ranks compute what one rank with all experts does? Each rank has rows of its own and
its part of the FFN experts, and rows travel by the kernels of the backend `nvl`, in this GPU's memory. This shows
streams, events, order and bits, and nothing of links."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from device_check.layer_ranks import open_layer_ranks
from device_check.machine import Machine
from longcat_ops.engine.rank_alone import random_rank
from longcat_ops.model import LongcatFlashForCausalLM
from longcat_ops.model.scmoe import ScMoELayer
from longcat_ops.model.stages import any_order

ROUNDS = 5  # of two streams, on a GPU


def values(machine: Machine, layers: int, sequences: Sequence[Sequence[int]], rows: int, context: int,
           sizes: dict[str, int]) -> dict[str, Any]:  # fmt: skip
    """Decode passes, stage by stage: in the order of the list, in drawn ones, and on two streams a rank. sequences: of
    each rank, turn by turn, with `rows` rows each. A rehearsal has no streams."""
    model, passes = _model(machine, layers, sizes), 0
    with torch.inference_mode():
        for turn, counts in enumerate(sequences):
            draw = random.Random(turn)
            orders = {"in turn": list(ScMoELayer.PARALLEL)}
            orders |= {f"drawn {i}": any_order(ScMoELayer.PARALLEL, ("x",), draw) for i in range(2)}
            with open_layer_ranks(machine, model, counts, rows, context, 100 * turn) as ranks:
                right = ranks.alone(model.layers)
                for name, order in orders.items():
                    for lanes in (1, *([2] * ROUNDS if machine.real else ())):
                        found = ranks.together(order, overlaps=lanes == 2)
                        compare(f"{counts} sequences, {name}, lanes {lanes}", found, right)
                        passes += 1
    return {"sequences": list(sequences), "passes": passes} | ({} if machine.real else {"rehearsed": "one stream"})


def graphs(machine: Machine, layers: int, sequences: Sequence[int], rows: int, context: int, replays: int,
           sizes: dict[str, int]) -> dict[str, Any]:  # fmt: skip
    """The pass of each rank as a graph, all of them replayed with other rows and another past."""
    model = _model(machine, layers, sizes)
    with torch.inference_mode(), open_layer_ranks(machine, model, sequences, rows, context, 0) as ranks:
        ways = {name: ranks.captured(overlaps) for name, overlaps in (("serial", False), ("overlapped", True))}
        for turn in range(replays):
            for rank, one in enumerate(ranks.passes):
                one.draw(100 * turn + rank)
            right = ranks.alone(model.layers)
            for name, replay in ways.items():
                compare(f"captured, {name}, replay {turn}", replay(), right)
    return {"sequences": list(sequences), "replays": replays} | ({} if machine.real else {"rehearsed": "threads"})


def compare(name: str, found: Sequence[Sequence[Tensor]], right: Sequence[Sequence[Tensor]]) -> None:
    """Raises AssertionError unless every rank has what it must have, bit for bit."""
    for rank, (got, expected) in enumerate(zip(found, right, strict=True)):
        for index, (one, other) in enumerate(zip(got, expected, strict=True)):
            what = "out" if index == 0 else "the cache" if index == len(expected) - 1 else f"num_real {index - 1}"
            same = one.shape == other.shape and torch.equal(one.view(torch.uint8), other.view(torch.uint8))
            assert same, f"{name}, rank {rank} of {len(right)}: {what} differs"


def _model(machine: Machine, layers: int, sizes: dict[str, int]) -> LongcatFlashForCausalLM:
    return random_rank(machine.device, layers, num_nextn_predict_layers=0, **sizes)

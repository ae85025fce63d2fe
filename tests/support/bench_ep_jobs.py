"""Jobs of ranks: cells of bench_ep.py over gloo, with the stand-in for DeepEP among the peers."""

from __future__ import annotations

from typing import Any

import torch

from comm.ep_field import ExpertField
from comm.ep_problem import Cell, Problem
from report.fleet import Fleet
from support import fake_deep_ep
from support.comm_pool import World
from support.deepep_jobs import stand_in


def measured(world: World, ranks: int, cells: list[tuple[str, int]], wrong: str) -> list[dict[str, Any]]:
    """What there is to say of each cell. wrong: what computes something else, "DeepEP" or "all"."""
    fleet, found = Fleet(world.rank, ranks, torch.device("cpu"), world.group(ranks)), []
    combine, right = fake_deep_ep.ElasticBuffer.combine, Problem.combined
    try:
        if wrong == "DeepEP":
            fake_deep_ep.ElasticBuffer.combine = lambda *a, **b: (combine(*a, **b)[0] * 1.1, None, None)
        if wrong == "all":
            Problem.combined = lambda *a: right(*a) + 1
        with stand_in():
            field = ExpertField(fleet)
            try:
                for cell in cells:
                    try:
                        found.append(field.measure(Cell(*cell), None))
                    except AssertionError as error:
                        found.append({"error": str(error)})
            finally:
                field.close()
    finally:
        fake_deep_ep.ElasticBuffer.combine, Problem.combined = combine, right
    return found

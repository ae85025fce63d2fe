"""Calls of the moe_plan kernels in the host emulator, and checks of their results."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat_ops import Plan
from longcat_ops.testing.op_results import bits
from support.emulated_kernels import apart, run
from support.plan_oracle import experts, sorted_plan, weighted


def plan(ids: Tensor, groups: int, weights: Tensor | None = None) -> Plan:
    """The kernels' plan, in outputs that held FILLER."""
    (tokens, top_k), rows = ids.shape, len(ids) * min(ids.shape[1], groups)
    made = Plan(
        offsets=apart(1, groups + 1, torch.int32)[0],
        row_of=apart(tokens, top_k, torch.int32),
        src_of=apart(1, rows, torch.int32)[0],
    )
    run("moe_plan", ids, groups, weights, *made)
    return made


def check(tokens: int, groups: int, top_k: int, seed: int) -> None:
    ids = experts(tokens, groups, top_k, seed)
    assert bits(plan(ids, groups)) == bits(sorted_plan(ids, groups))


def check_weighted(tokens: int, groups: int, top_k: int, seed: int) -> None:
    ids, weights = weighted(experts(tokens, groups, top_k, seed), seed)
    assert bits(plan(ids, groups, weights)) == bits(sorted_plan(ids, groups, weights))


def check_no_choice_at_all() -> None:
    """Either no expert has any of the ids, or every weight is 0."""
    for tokens in (9, 300):
        ids, weights = torch.full((tokens, 32), -1, dtype=torch.int32), torch.zeros(tokens, 32)
        weights[:, ::2] = -0.0
        for made in (plan(ids, 6), plan(torch.zeros_like(ids), 6, weights)):
            assert not made.offsets.any() and (made.row_of == -1).all() and (made.src_of == -1).all()


def check_repeated_ids_write_nothing_outside(tokens: int) -> None:
    """Illegal ids with more choices than rows: the first choices get the rows, and both tables agree."""
    ids = torch.full((tokens, 32), 2, dtype=torch.int32)
    made = plan(ids, 3)
    rows = 3 * tokens
    assert made.offsets.tolist() == [0, 0, 0, rows]
    assert made.src_of.tolist() == list(range(rows))
    assert made.row_of.flatten().tolist() == [*range(rows), *[-1] * (29 * tokens)]

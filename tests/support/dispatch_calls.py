"""Calls of the place, permute and combine kernels in the host emulator, and checks of their results."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from longcat_ops import Placement, Plan, Routing, reference
from support import place_oracle
from support.build_oracle import assert_same_bits, hostile_input
from support.emulated_kernels import DTYPES, LAYOUTS, apart, assert_gaps_untouched, copied, run, scales

# (T, K, H): no token, one, more than a block has warps; up to 32 choices; half groups, odd chunks, a row of 24 warps.
SHAPES = [(0, 4, 128), (1, 1, 8), (2, 4, 160), (7, 12, 576), (31, 8, 128), (33, 12, 136), (96, 32, 8), (1, 12, 6144)]


def choices(tokens: int, k: int, seed: int = 0) -> Plan:
    """A plan with 0 to k rows per token; the first token has all k, the second none."""
    g = torch.Generator().manual_seed(100 * tokens + k + seed)
    ids = torch.rand(tokens, 2 * k, generator=g).argsort(1)[:, :k].to(torch.int32)
    ids.masked_fill_(ids >= k + k // 2, -1)
    ids[:1] = torch.arange(k, dtype=torch.int32)
    ids[1:2] = -1
    return reference.moe_plan(ids, 2 * k)


def place(ids: Tensor, placement: Placement, layer: int) -> Tensor:
    """The kernel's slots, in an output that held FILLER."""
    slots, replicas = copied(placement.slots, 0, 0), copied(placement.replicas[None], 0, 0)[0]
    out = apart(*ids.shape, torch.int32)
    run("moe_place", copied(ids, 0, 0), slots, replicas, layer, out)
    assert_gaps_untouched(out)
    return out


def check_place(tokens: int, k: int, experts: int, most: int) -> None:
    """Every fourth choice is of no expert; half of the tables hold numbers that they must not."""
    for layer in (0, 27, 2**31 - 1):
        ids = place_oracle.random_ids(tokens, k, experts, layer)
        for placement in (
            place_oracle.random_placement(experts, most),
            place_oracle.hostile_placement(experts, most),
        ):
            assert place(ids, placement, layer).tolist() == place_oracle.placed(ids, placement, layer)


def permute(x: Tensor, plan: Plan, layout: tuple[int, ...] = LAYOUTS[0]) -> Tensor:
    """The kernel's rows, in an output that held FILLER."""
    gap, offset, out_gap, out_offset = layout
    out = apart(len(plan.src_of), x.shape[1], x.dtype, out_gap, out_offset)
    run("moe_permute", copied(x, gap, offset), plan.row_of, plan.src_of, out)
    assert_gaps_untouched(out)
    return out


def permute_quant(x: Tensor, plan: Plan, layout: tuple[int, ...] = LAYOUTS[0],
                  column_major: bool = False) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The kernel's (q, s), in outputs that held FILLER."""
    gap, offset, q_gap, q_offset = layout
    rows, width = len(plan.src_of), x.shape[1]
    q = apart(rows, width, torch.float8_e4m3fn, q_gap, q_offset)
    s = scales(rows, -(-width // 128), column_major)
    run("moe_permute_quant", copied(x, gap, offset), plan.row_of, plan.src_of, q, s)
    assert_gaps_untouched(q, s)
    return q, s


def assert_permuted(actual: Tensor, rows: Tensor, plan: Plan) -> None:
    """Each row that the plan uses equals its token's row; the other rows still hold FILLER."""
    expected = apart(*actual.shape, actual.dtype)
    used = plan.src_of >= 0
    token = plan.src_of[used].long() // plan.row_of.shape[1]
    raw = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[actual.element_size()]
    expected.view(raw)[used] = rows.view(raw)[token]
    assert_same_bits(actual, expected)


def check_permute(x: Tensor, plan: Plan, layout: tuple[int, ...] = LAYOUTS[0], written: Plan | None = None) -> None:
    """written: the plan of the rows that must be written, where it is not `plan`."""
    assert_permuted(permute(x, plan, layout), x, written or plan)


def check_permute_quant(x: Tensor, plan: Plan, layout: tuple[int, ...] = LAYOUTS[0], column_major: bool = False,
                        written: Plan | None = None) -> None:  # fmt: skip
    q, s = permute_quant(x, plan, layout, column_major)
    expected_q, expected_s = reference.per_token_group_quant_fp8(x)
    assert_permuted(q, expected_q, written or plan)
    assert_permuted(s, expected_s, written or plan)


def check_a_plan_that_disagrees_with_itself_is_safe(check: Callable[..., None]) -> None:
    """Row indices out of range, one row claimed by several choices, sources out of range: nothing is written there, and
    a contested row goes to the choice that src_of names for it. check: check_permute or check_permute_quant."""
    x, plan = hostile_input(7, 160, torch.bfloat16), choices(7, 4)
    rows = len(plan.src_of)
    garbage = torch.tensor([rows, 2**31 - 1, -2, -(2**31)], dtype=torch.int32)
    last = int(plan.offsets[-1]) - 1
    at_garbage = plan.row_of[0].clone()
    plan.row_of[0] = garbage
    plan.row_of[1] = last
    written = plan._replace(src_of=plan.src_of.clone())
    plan.src_of[at_garbage.long()] = garbage.neg()
    written.src_of[at_garbage.long()] = -1
    check(x, plan, written=written)


def combine_case(tokens: int, k: int, width: int, y_dtype: torch.dtype, dtype: torch.dtype) -> tuple:
    """(y, plan, routing, x, add), all with hostile values; zero_weight has a NaN, and unused rows of y are NaN."""
    plan, g = choices(tokens, k), torch.Generator().manual_seed(width)
    y = hostile_input(len(plan.src_of), width, y_dtype, seed=1)
    y[int(plan.offsets[-1]) :] = torch.nan
    weights, zero_weight = torch.rand(tokens, k, generator=g) * 4, torch.rand(tokens, generator=g)
    weights[::5, 0] *= -1e30
    zero_weight[6:7] = torch.nan
    unused = torch.zeros(1, dtype=torch.int32)
    routing = Routing(unused, weights, zero_weight, unused, unused, unused)
    return y, plan, routing, hostile_input(tokens, width, dtype, 2), hostile_input(tokens, width, dtype, 3)


def combine(y: Tensor, plan: Plan, routing: Routing, x: Tensor, add: Tensor | None = None,
            layout: tuple[int, ...] = LAYOUTS[0]) -> Tensor:  # fmt: skip
    gap, offset, *_ = layout
    out = apart(*x.shape, x.dtype, gap, offset)
    operands = (t if t is None else copied(t, gap, offset) for t in (y, x, add))
    y, x, add = operands
    run("moe_combine", y, plan.row_of, routing.weights, routing.zero_weight, x, add, out)
    assert_gaps_untouched(out)
    return out


def check_combine(tokens: int, k: int, width: int, dtype: torch.dtype) -> None:
    y, plan, routing, x, add = combine_case(tokens, k, width, dtype, dtype)
    for added in (None, add):
        assert_same_bits(combine(y, plan, routing, x, added), reference.moe_combine(y, plan, routing, x, added))


def check_a_sum_of_negative_zeros() -> None:
    """The sum is -0 only if every choice has a row and every term is -0: a choice without a row adds +0, as in the
    reference."""
    unused = torch.zeros(1, dtype=torch.int32)
    row_of = torch.tensor([[0, 1], [0, -1], [-1, 1], [-1, -1]], dtype=torch.int32)
    plan, y, x = Plan(unused, row_of, unused), torch.full((2, 8), -0.0), torch.full((4, 8), -0.0)
    routing = Routing(unused, torch.ones(4, 2), torch.ones(4), unused, unused, unused)
    for dtype in DTYPES:
        out = combine(y.to(dtype), plan, routing, x.to(dtype))
        assert_same_bits(out, reference.moe_combine(y.to(dtype), plan, routing, x.to(dtype)))
        assert [bool(row.signbit().all()) for row in out] == [True, False, False, False]
        assert not out[1:].signbit().any()

"""One rule for every op that takes ids or weights of choices: a choice of id -1 or of weight 0 is not sent, not
computed and not counted. So all ways to write an absent choice have the same results, bit for bit.

tests/kernels/test_emu_backend.py runs this file on the emulated kernels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import longcat_ops
from longcat_ops import Plan, Routing, reference
from longcat_ops.testing.op_results import bits
from support.fused_moe_cases import BF16, F32, dense_weights, fp8_weights, make

EXPERTS, HIDDEN, WIDTH = 6, 128, 64
POISONED = EXPERTS - 1  # only absent choices name it; running it on a token gives NaN
BACKENDS = [longcat_ops, reference]
SIZES = [(0, 4), (1, 1), (1, 4), (8, 5), (9, 4), (33, 3)]  # (tokens, top_k)
SEEDS = [0] if os.environ.get("LONGCAT_OPS_BACKEND") == "emu" else [0, 1, 2]


class Choices(NamedTuple):
    """A random routing: which choices are present, their experts and weights. Entries of absent choices are unused."""

    present: Tensor
    ids: Tensor
    weights: Tensor
    zero_weight: Tensor

    def routing(self, ids: Tensor, weights: Tensor) -> Routing:
        rest = torch.zeros(1, dtype=torch.int32)
        weights = torch.where(self.present, self.weights, weights)
        return Routing(torch.where(self.present, self.ids, ids), weights, self.zero_weight, rest, rest, rest)


def choices(tokens: int, top_k: int, seed: int) -> Choices:
    """Token 0 has all of its choices, token 1 none, the others some. Weights have both signs; one is subnormal."""
    g = torch.Generator().manual_seed(1000 * seed + 10 * tokens + top_k)
    present = torch.rand(tokens, top_k, generator=g) < 0.6
    present[:1], present[1:2] = True, False
    ids = torch.rand(tokens, POISONED, generator=g).argsort(1)[:, :top_k].to(torch.int32)
    weights = torch.rand(tokens, top_k, generator=g) * 4 - 1 + 1e-3
    weights[:1, :1] = 1e-45
    return Choices(present, ids, weights, torch.rand(tokens, generator=g))


def forms(c: Choices) -> Iterator[tuple[str, Routing]]:
    """Ways to write the same routing. The first is what `moe_route` writes."""
    minus_one, zero = torch.full_like(c.ids, -1), torch.zeros_like(c.weights)
    yield "id -1, weight 0", c.routing(minus_one, zero)
    yield "id -1, weight -0", c.routing(minus_one, -zero)
    yield "id -1, weight 1000", c.routing(minus_one, zero + 1000)
    yield "id -1, weight NaN", c.routing(minus_one, zero + torch.nan)
    yield "id 0, weight 0", c.routing(torch.zeros_like(c.ids), zero)
    yield "id 0, weight -0", c.routing(torch.zeros_like(c.ids), -zero)
    yield "an expert, weight 0", c.routing(torch.full_like(c.ids, POISONED), zero)
    yield "an expert of the token's own, weight -0", c.routing(c.ids[:, :1].expand_as(c.ids).contiguous(), -zero)


def plan_of(ops: ModuleType, routing: Routing) -> Plan:
    return ops.moe_plan(routing.ids, EXPERTS, routing.weights)


@pytest.fixture(params=BACKENDS, ids=["op", "reference"])
def ops(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


@pytest.fixture(params=[(*size, seed) for size in SIZES for seed in SEEDS], ids=str)
def c(request: pytest.FixtureRequest) -> Choices:
    return choices(*request.param)


def test_the_plan_has_a_row_for_every_choice_that_is_there(ops: ModuleType, c: Choices) -> None:
    """Offsets equal a count by hand, and exactly the present choices have rows."""
    counts = [int((c.ids[c.present] == expert).sum()) for expert in range(EXPERTS)]
    assert counts[POISONED] == 0
    expected = None
    for name, routing in forms(c):
        plan = plan_of(ops, routing)
        assert plan.offsets.diff().tolist() == counts, name
        assert torch.equal(plan.row_of >= 0, c.present), name
        assert int((plan.src_of >= 0).sum()) == int(c.present.sum()), name
        expected = expected or bits(plan)
        assert bits(plan) == expected, name
        if (routing.ids[~c.present] == -1).all():  # the ids alone suffice
            assert bits(ops.moe_plan(routing.ids, EXPERTS)) == expected, name


def test_nothing_is_sent_for_the_others(ops: ModuleType, c: Choices) -> None:
    """Rows past the last one stay unwritten; a token without a choice, here NaN, is in no row."""
    x = torch.randn(len(c.ids), HIDDEN, generator=torch.Generator().manual_seed(1)).bfloat16()
    x[~c.present.any(1)] = torch.nan
    expected = None
    for name, routing in forms(c):
        plan = plan_of(ops, routing)
        used = int(plan.offsets[-1])
        q = torch.full((len(plan.src_of), HIDDEN), 0x2A, dtype=torch.uint8).view(torch.float8_e4m3fn)
        s, rows = torch.full((len(q), 1), 12345.0), torch.full(q.shape, 12352.0, dtype=BF16)
        if ops is reference:
            ops.moe_permute_quant(x, plan, out=(q, s))
            ops.moe_permute(x, plan, out=rows)
        else:
            torch.ops.longcat_ops.moe_permute_quant(x, plan.row_of, plan.src_of, q, s)
            torch.ops.longcat_ops.moe_permute(x, plan.row_of, plan.src_of, rows)
        assert (q[used:].view(torch.uint8) == 0x2A).all() and (s[used:] == 12345).all(), name
        assert (rows[used:] == 12352).all() and not s.isnan().any() and not rows.isnan().any(), name
        expected = expected or bits((q, s, rows))
        assert bits((q, s, rows)) == expected, name


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_no_row_of_y_is_read_for_them(ops: ModuleType, c: Choices, dtype: torch.dtype) -> None:
    """Rows of y that no choice has are NaN, and the output is finite."""
    g = torch.Generator().manual_seed(2)
    x = torch.randn(len(c.ids), HIDDEN, generator=g).to(dtype)
    expected = None
    for name, routing in forms(c):
        plan = plan_of(ops, routing)
        y = torch.randn(len(plan.src_of), HIDDEN, generator=g.manual_seed(3)).to(dtype)
        y[int(plan.offsets[-1]) :] = torch.nan
        out = ops.moe_combine(y, plan, routing, x)
        assert out.isfinite().all(), name
        expected = expected or bits(out)
        assert bits(out) == expected, name
        alone = (x.float() * c.zero_weight[:, None]).to(dtype)
        assert torch.equal(out[~c.present.any(1)], alone[~c.present.any(1)]), name


def poisoned_weights(fp8: str) -> tuple:
    """FP8 pairs for the parts that `fp8` names, dense weights for the others; all weights of one expert are NaN."""
    _, _, *plain = make(1, HIDDEN, WIDTH, experts=EXPERTS)
    pairs, dense = fp8_weights(*plain), dense_weights(*plain)
    weights = tuple(pair if part in fp8 else w for part, pair, w in zip(("up", "down"), pairs, dense, strict=True))
    for w in weights:
        (w[1] if isinstance(w, tuple) else w)[POISONED] = torch.nan
    return weights


@pytest.mark.parametrize("how", ["up down", "up down, planned", "up", "down", "dense"])
def test_no_expert_runs_for_them(ops: ModuleType, c: Choices, how: str) -> None:
    """The NaN expert never runs: with FP8 weights and the op's or the caller's plan, one dense weight, or two."""
    weights = poisoned_weights(how)
    x = torch.randn(len(c.ids), HIDDEN, generator=torch.Generator().manual_seed(4)).bfloat16()
    expected = None
    for name, routing in forms(c):
        plan = {"plan": plan_of(ops, routing)} if "planned" in how else {}
        out = ops.fused_moe(x, routing, *weights, **plan)
        assert out.isfinite().all(), name
        expected = expected or bits(out)
        assert bits(out) == expected, name
    if "planned" in how:
        assert bits(ops.fused_moe(x, routing, *weights)) == expected


def routed(tokens: int, **options: object) -> Routing:
    """A routing by `moe_route` over 6 FFN and 3 zero experts; one row has a NaN."""
    logits = torch.randn(tokens, EXPERTS + 3, generator=torch.Generator().manual_seed(tokens))
    logits[2:3, 1] = torch.nan
    return longcat_ops.moe_route(
        logits, torch.zeros(EXPERTS + 3), top_k=4, num_experts=EXPERTS + 3, num_zero_experts=3, scale=6.0, **options
    )


@pytest.mark.parametrize("fp8", ["up down", "dense"])
@pytest.mark.parametrize("tokens", [5, 20])
def test_what_the_router_leaves_may_be_written_as_expert_0(tokens: int, fp8: str) -> None:
    """Zero experts, padding and a bad row, at weight 0, give the same bits with id -1 and, as in engines, with id 0."""
    routing = routed(tokens, num_valid=tokens - 1)
    absent = routing.ids < 0
    assert absent[[2, tokens - 1]].all() and absent[0].any() and not absent.all()
    assert not routing.weights[absent].any()
    engine = routing._replace(ids=routing.ids.clamp(min=0))
    plan = plan_of(longcat_ops, engine)
    assert bits(plan) == bits(longcat_ops.moe_plan(routing.ids, EXPERTS))
    assert int(plan.offsets[-1]) == int(routing.num_real.sum())
    x, _, *weights = make(tokens, HIDDEN, WIDTH, experts=EXPERTS, dtype=BF16)
    weights = (fp8_weights if fp8 == "up down" else dense_weights)(*weights)
    out = longcat_ops.fused_moe(x, engine, *weights)
    assert bits(out) == bits(longcat_ops.fused_moe(x, routing, *weights))
    assert out[2].isnan().all() and not out[-1].any()


def underflowed(tokens: int) -> Routing:
    """FFN experts 3 and 4 are among the chosen, though their weights are 0."""
    logits = torch.randn(tokens, EXPERTS, generator=torch.Generator().manual_seed(tokens))
    logits[:, 3:] = -200.0
    bias = torch.tensor([0.0, 0.0, 0.0, 2.0, 3.0, 0.0])
    return longcat_ops.moe_route(logits, bias, top_k=4, num_experts=EXPERTS, num_zero_experts=0, scale=6.0)


@pytest.mark.parametrize("tokens", [8, 20])
def test_an_ffn_expert_whose_weight_underflowed_is_chosen_and_not_computed(tokens: int) -> None:
    """The router counts it. Its row, which a plan without weights has, adds 0 * y, which only a NaN in y shows."""
    routing = underflowed(tokens)
    gone = routing.weights == 0
    assert gone.sum() == 2 * tokens and (routing.ids[gone] >= 3).all()
    assert (routing.num_real == 4).all() and routing.counts.tolist()[3:5] == [tokens] * 2
    x, _, *weights = make(tokens, HIDDEN, WIDTH, experts=EXPERTS, dtype=BF16)
    weights = fp8_weights(*weights)
    with_rows = longcat_ops.moe_plan(routing.ids, EXPERTS)
    without = plan_of(longcat_ops, routing)
    assert int(with_rows.offsets[-1]) - int(without.offsets[-1]) == 2 * tokens
    out = longcat_ops.fused_moe(x, routing, *weights)
    assert torch.equal(out, longcat_ops.fused_moe(x, routing, *weights, plan=with_rows))  # up to the sign of 0
    assert bits(out) == bits(longcat_ops.fused_moe(x, routing, *weights, plan=without))
    for _, s in weights:
        s[3:5] = torch.nan
    assert bits(longcat_ops.fused_moe(x, routing, *weights)) == bits(out)
    assert longcat_ops.fused_moe(x, routing, *weights, plan=with_rows).isnan().all()


def test_a_row_of_weight_0_still_shows_a_nan_in_combine(ops: ModuleType) -> None:
    """Only the plan says which choices are present: 0 * y is NaN where y is NaN or inf, else a zero of its sign."""
    routing = Choices(torch.ones(3, 1, dtype=torch.bool), torch.zeros(3, 1).int(), torch.zeros(3, 1), torch.zeros(3))
    routing = routing.routing(routing.ids, routing.weights)
    y = torch.tensor([torch.nan, -torch.inf, 2.0])[:, None].repeat(1, 8)
    x = torch.ones(3, 8)
    assert ops.moe_combine(y, ops.moe_plan(routing.ids, 1), routing, x).isnan().all(1).tolist() == [True, True, False]
    assert not ops.moe_combine(y, ops.moe_plan(routing.ids, 1, routing.weights), routing, x).any()

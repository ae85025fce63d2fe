"""The ops with a gradient: finite differences in fp64, fp64 loops, the bits of the ops without one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import longcat_ops
from longcat_ops import LongcatShapeError, Routing, reference
from longcat_ops.testing.op_results import bits
from longcat_ops.training import functional
from support import fused_moe_cases
from support.gradient_cases import (
    BF16,
    F32,
    F64,
    SMALL,
    Problem,
    Shape,
    gapped,
    holes,
    leaf,
    loop_gradients,
    make,
    pieces,
    relative,
)

# The norm of an error over that of the value. One rounding to bf16 is 1.7e-3 rms, and a gradient meets so many of them,
# one behind the other; 1.3: few elements scatter. float32 sums of some 100 terms are below 1e-6.
BF16_RMS = 1.7e-3
ROUNDINGS = {"x": 3, "weights": 0, "zero_weight": 0, "gate_up": 2, "down": 2}


def limit(name: str, dtype: torch.dtype) -> float:
    return 1e-6 + (1.3 * BF16_RMS * ROUNDINGS[name] ** 0.5 if dtype == BF16 else 0)


def gradients(p: Problem, routing: Routing, names: tuple[str, ...] = tuple(ROUNDINGS), **options) -> dict[str, Tensor]:
    given = {"x": p.x, "weights": routing.weights, "zero_weight": routing.zero_weight, "gate_up": p.gate_up,
             "down": p.down}  # fmt: skip
    leaves = {name: leaf(t) if name in names else t.detach() for name, t in given.items()}
    moved = routing._replace(weights=leaves["weights"], zero_weight=leaves["zero_weight"])
    out = functional.fused_moe(leaves["x"], moved, leaves["gate_up"], leaves["down"], **options)
    out.backward(p.up)
    return {"out": out.detach()} | {name: leaves[name].grad for name in names}


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 9, 33])
def test_chain_has_the_gradients_of_fp64_loops(tokens, dtype):
    p = make(tokens, dtype)
    routing = holes(p) if tokens > 2 else p.routing()
    found, right = gradients(p, routing), loop_gradients(p, routing)
    absent = (routing.ids < 0) | (routing.weights == 0)  # a choice of weight 0 is none: its gradient is 0
    right["weights"] = right["weights"].masked_fill(absent, 0)
    assert bits(found["out"]) == bits(longcat_ops.fused_moe(p.x, routing, p.gate_up, p.down))
    for name, want in right.items():
        assert found[name].shape == want.shape
        assert relative(found[name], want) <= limit(name, dtype), name
    if tokens == 33:
        assert not found["gate_up"][2].any() and found["gate_up"][1].any()
        assert not found["weights"][absent].any() and not found["x"][-1].any()


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_tokens_with_zero_experts_only_and_with_none(dtype):
    p = make(10, dtype, Shape(zero=4))
    p.logits[::2, :-4] -= 40
    p.logits[1::2, :-4] += 40
    routing = p.routing()
    assert routing.num_real.tolist() == [0, 4] * 5
    found, right = gradients(p, routing), loop_gradients(p, routing)
    for name, want in right.items():
        assert relative(found[name], want) <= limit(name, dtype), name
    zero_part = (p.up.float() * routing.zero_weight[:, None]).to(dtype)
    assert torch.equal(found["x"][::2], zero_part[::2])


def test_mixed_dtypes_of_x_and_weights():
    p, routing = make(9, F32), make(9, F32).routing()
    p.gate_up, p.down = p.gate_up.to(BF16), p.down.to(BF16)
    found, right = gradients(p, routing), loop_gradients(p, routing)
    assert found["x"].dtype == F32 and found["down"].dtype == BF16
    # x, and dout, are rounded to the dtype of the weights on their way in: one rounding more than in bf16 each.
    for name, want in right.items():
        assert relative(found[name], want) <= 1e-6 + 1.3 * BF16_RMS * 4**0.5, name


def test_each_gradient_alone_has_the_bits_that_it_has_among_others():
    p = make(9, BF16)
    routing = p.routing()
    everything = gradients(p, routing)
    for name in ROUNDINGS:
        assert bits(gradients(p, routing, (name,))[name]) == bits(everything[name]), name


def test_a_plan_and_two_runs_have_the_same_bits():
    p = make(33, BF16)
    routing = p.routing()
    first, again = gradients(p, routing), gradients(p, routing)
    plan = longcat_ops.moe_plan(routing.ids, p.shape.experts, routing.weights)
    planned = gradients(p, routing, plan=plan)
    for name, value in first.items():
        assert bits(value) == bits(again[name]) == bits(planned[name]), name


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_fp8_forward_with_a_straight_through_backward(dtype):
    p = make(17, dtype, Shape(hidden=256, width=136))
    routing = p.routing()
    halves = reference.gemm.halves_of(p.gate_up)
    pairs = functional.quantise_experts(leaf(p.gate_up), leaf(p.down))
    for got, want in zip(pairs, fused_moe_cases.fp8_weights(halves, p.down), strict=True):
        assert bits(list(got)) == bits(list(want))
    quantised, dense = gradients(p, routing, fp8=pairs), gradients(p, routing)
    assert bits(quantised.pop("out")) == bits(longcat_ops.fused_moe(p.x, routing, *pairs)) != bits(dense.pop("out"))
    for name, value in quantised.items():
        assert bits(value) == bits(dense[name]), name


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_pieces_beside_the_chain_and_the_loops(dtype):
    """Permute, expert_rows and combine one by one: the chain's bits forward; dy and its rows are rounded besides."""
    p = make(33, dtype)
    routing = holes(p)
    leaves = {"x": leaf(p.x), "weights": leaf(routing.weights), "zero_weight": leaf(routing.zero_weight),
              "gate_up": leaf(p.gate_up), "down": leaf(p.down)}  # fmt: skip
    add = leaf(p.up)
    moved = routing._replace(weights=leaves["weights"], zero_weight=leaves["zero_weight"])
    out = pieces(leaves["x"], moved, leaves["gate_up"], leaves["down"], add)
    plan = longcat_ops.moe_plan(routing.ids, p.shape.experts, routing.weights)
    rows = longcat_ops.moe_permute(p.x, plan)
    y = torch.zeros_like(rows)
    h = longcat_ops.m_grouped_bf16_swiglu_gemm_nt_offset(rows, p.gate_up, plan.offsets)
    longcat_ops.m_grouped_bf16_gemm_nt_offset(h, p.down, y, plan.offsets)
    assert bits(out.detach()) == bits(longcat_ops.moe_combine(y, plan, routing, p.x, p.up))
    out.backward(p.up)
    assert torch.equal(add.grad, p.up)
    right = loop_gradients(p, routing)
    right["weights"] = right["weights"].masked_fill((routing.ids < 0) | (routing.weights == 0), 0)
    # weights: y was rounded twice, h and y. The others: dy is rounded before the products read it, and x's dot besides.
    roundings = {"x": 5, "weights": 2, "zero_weight": 0, "gate_up": 3, "down": 3}
    for name, want in right.items():
        most = 1e-6 + (1.3 * BF16_RMS * roundings[name] ** 0.5 if dtype == BF16 else 0)
        assert relative(leaves[name].grad, want) <= most, name


def test_rows_behind_the_last_are_zero_whatever_lay_there():
    p = make(9, BF16)
    routing = holes(p)
    plan = longcat_ops.moe_plan(routing.ids, p.shape.experts, routing.weights)
    used = int(plan.offsets[-1])
    assert used < len(plan.src_of)
    rows = functional.moe_permute(p.x, plan)
    assert not rows[used:].any() and bits(rows[:used]) == bits(longcat_ops.moe_permute(p.x, plan)[:used])
    dirty = rows.clone()
    dirty[used:] = torch.nan
    results = []
    for given in (rows, dirty):
        given = leaf(given)
        y = functional.expert_rows(given, plan.offsets, leaf(p.gate_up), p.down)
        behind = torch.full_like(y, torch.nan)
        behind[:used] = torch.ones_like(y)[:used]
        y.backward(behind)
        assert not y[used:].any() and not given.grad[used:].any() and given.grad[:used].any()
        results.append(bits([y.detach(), given.grad]))
    assert results[0] == results[1]
    y = leaf(dirty)
    functional.moe_combine(y, plan, routing, p.x).backward(p.up)
    assert not y.grad[used:].any() and y.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_route_has_the_gradient_of_its_formula(dtype):
    """Against torch's own softmax, gather and sum in fp64; every seventh row is beyond num_valid or has no softmax."""
    g = torch.Generator().manual_seed(3)
    tokens, total, zero = 21, 96, 32
    logits = gapped(tokens, total, g).to(dtype)
    bias, scale, valid = torch.randn(total, generator=g) * 1e-3, 2.5, 18
    logits[5, 7], logits[6] = torch.nan, -torch.inf
    given = leaf(logits)
    sizes = {"top_k": 12, "num_experts": total, "num_zero_experts": zero, "scale": scale, "num_valid": valid}
    routing, probs = functional.moe_route(given, bias, **sizes)
    plain = longcat_ops.moe_route(logits, bias, **sizes)
    for got, want in zip(routing, plain, strict=True):
        assert bits(got.detach()) == bits(want)
    up = [torch.randn(t.shape, generator=g) for t in (routing.weights, routing.zero_weight, probs)]
    torch.autograd.backward((routing.weights, routing.zero_weight, probs), up)

    wide = leaf(logits.double())
    p = wide.softmax(-1)
    chosen = torch.sort(p.detach() + bias, dim=-1, descending=True, stable=True).indices[:, :12]
    is_zero = chosen >= total - zero
    picked = p.gather(1, chosen) * scale
    loss = (picked.masked_fill(is_zero, 0) * up[0]).sum(1) + (picked * is_zero).sum(1) * up[1] + (p * up[2]).sum(1)
    good = torch.ones(tokens, dtype=torch.bool)
    good[[5, 6, 18, 19, 20]] = False
    (want,) = torch.autograd.grad(loss[good].sum(), wide)
    # float32 logits, exps and sums: some 1e-6; a bf16 gradient is rounded once besides.
    assert relative(given.grad[good], want[good]) <= 1e-6 + (1.3 * BF16_RMS if dtype == BF16 else 0)
    assert given.grad.dtype == dtype
    assert given.grad[5:7].isnan().all() and not given.grad[18:].any() and not probs[18:].any()
    assert torch.allclose(probs[good].double(), p[good], rtol=1e-5, atol=1e-9)


def test_route_of_one_kind_of_experts():
    """Zero experts alone, and none of them: the gradient then passes through one of the two outputs."""
    for zero, name in ((9, "zero_weight"), (0, "weights")):
        logits = leaf(gapped(4, 9, torch.Generator().manual_seed(zero)).float())
        sizes = {"top_k": 3, "num_experts": 9, "num_zero_experts": zero, "scale": 1.0}
        routing, _ = functional.moe_route(logits, torch.zeros(9), **sizes)
        (got,) = torch.autograd.grad(getattr(routing, name).sum(), logits)
        wide = leaf(logits.double())
        (want,) = torch.autograd.grad(wide.softmax(-1).topk(3).values.sum(), wide)
        assert relative(got, want) <= 1e-6


def test_gradcheck_of_the_route():
    p = make(5, F64, SMALL)

    def route(logits: Tensor) -> tuple[Tensor, ...]:
        routing, probs = functional.moe_route(logits, p.bias, num_valid=4, **p.sizes)
        return routing.weights, routing.zero_weight, probs

    assert torch.autograd.gradcheck(route, (leaf(p.logits),))


@pytest.mark.parametrize("way", ["chain", "pieces"])
def test_gradcheck_of_the_chain(way):
    """From the logits on: route, permute, experts, combine. Every element of the logits and of x; the weights, and all
    together, by random directions (fast mode)."""
    p = make(4, F64, SMALL)

    def run(logits: Tensor, x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        routing, _ = functional.moe_route(logits, p.bias, **p.sizes)
        return functional.fused_moe(x, routing, gate_up, down) if way == "chain" else pieces(
            x, routing, gate_up, down, x * x
        )  # fmt: skip

    assert p.routing().num_real.unique().numel() > 1
    given = [leaf(t) for t in (p.logits, p.x, p.gate_up * 10, p.down * 10)]
    assert torch.autograd.gradcheck(lambda a, b: run(a, b, *given[2:]), given[:2])
    assert torch.autograd.gradcheck(run, given, fast_mode=True)


def test_gradcheck_of_holes():
    """Permute, experts and combine where choices are absent, by a plan made with the weights."""
    p = make(4, F64, SMALL)
    routing = holes(p)

    def run(x: Tensor, weights: Tensor, zero_weight: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        absent = (routing.weights == 0).double()  # else a moved weight would make a choice of none
        moved = routing._replace(weights=weights * (1 - absent), zero_weight=zero_weight)
        return functional.fused_moe(x, moved, gate_up, down) + pieces(x, moved, gate_up, down)

    given = [leaf(t) for t in (p.x, routing.weights.double(), routing.zero_weight.double(), p.gate_up, p.down)]
    assert torch.autograd.gradcheck(run, given, fast_mode=True)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"down": lambda t: t.float()}, "argument `w_gate_up` is torch.bfloat16, expected torch.float32, as `w_down`"),
        ({"x": lambda t: t.double()}, "argument `w_down` is torch.bfloat16, expected float64 beside float64 alone"),
        ({"x": lambda t: t[:, :32]}, r"argument `\w+` is of shape"),
        ({"x": lambda t: 3}, "fused_moe: argument `x` is of type int, expected a torch.Tensor"),
        ({"gate_up": lambda t: t[:, :48]}, "fused_moe: argument `w_gate_up` is of strides"),
        ({"gate_up": lambda t: t[:, :48].clone()}, "fused_moe: argument `w_down` is of shape"),
    ],
    ids=["dtype", "fp64", "shape", "type", "strides", "width"],
)  # fmt: skip
def test_wrong_arguments(change, text):
    p = make(5, BF16)
    given = {"x": p.x, "gate_up": p.gate_up, "down": p.down}
    given |= {name: act(given[name]) for name, act in change.items()}
    with pytest.raises(LongcatShapeError, match=text):
        functional.fused_moe(given["x"], p.routing(), given["gate_up"], given["down"])


def test_wrong_ids_rows_and_pairs():
    p = make(5, BF16)
    routing = p.routing()
    routing.ids[0, 0] = p.shape.experts
    with pytest.raises(LongcatShapeError, match=r"routing.ids` is up to 6, expected -1 .. 5"):
        functional.fused_moe(p.x, routing, p.gate_up, p.down)
    plan = longcat_ops.moe_plan(routing.ids, p.shape.experts, routing.weights)
    with pytest.raises(
        LongcatShapeError, match="moe_combine: argument `y` is of 3 rows, expected 20, those of the plan"
    ):
        functional.moe_combine(torch.zeros(3, 64), plan, routing, p.x)
    with pytest.raises(LongcatShapeError, match=r"expert_rows: argument `rows` is torch\.float32, expected torch\.bf"):
        functional.expert_rows(p.x.float(), plan.offsets, p.gate_up, p.down)
    wide = make(5, F64)
    with pytest.raises(LongcatShapeError, match="fp8` is given, expected None for float64"):
        functional.fused_moe(wide.x, wide.routing(), wide.gate_up, wide.down, fp8=((p.x, p.x), (p.x, p.x)))
    with pytest.raises(LongcatShapeError, match="num_valid"):
        functional.moe_route(p.logits, p.bias, num_valid=6, **p.sizes)

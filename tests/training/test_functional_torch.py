"""The ops with a gradient beside torch: opcheck, one compiled graph, what a forward keeps, what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks

import longcat_ops
from longcat_ops import LongcatUnsupportedError
from longcat_ops.ops import tensors
from longcat_ops.testing.op_results import bits
from longcat_ops.training import functional
from support.gradient_cases import BF16, F32, Problem, leaf, make

TRAINING = torch.ops.longcat_training
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def op_calls(dtype: torch.dtype) -> dict[str, tuple]:
    """Arguments of each op, and of each that is the backward of one, which need gradients wherever they can."""
    p = make(7, dtype)
    routing = p.routing()
    plan = longcat_ops.moe_plan(routing.ids, p.shape.experts, routing.weights)
    weights, zero_weight, x, gate_up, down = map(
        leaf, (routing.weights, routing.zero_weight, p.x, p.gate_up, p.down)
    )  # fmt: skip
    y, up = leaf(longcat_ops.moe_permute(p.x, plan).nan_to_num(0)), leaf(p.up)
    _, probs = functional.moe_route(p.logits, p.bias, **p.sizes)
    (gate_up_pair, down_pair), none = functional.quantise_experts(gate_up, down), (None,) * 4
    k, total, zero, scale = p.sizes.values()
    every = longcat_ops.moe_route(p.logits, p.bias, top_k=k, num_experts=total, num_zero_experts=0, scale=scale).ids
    return {
        "moe_route": (leaf(p.logits), p.bias, torch.tensor([6], dtype=torch.int32), k, total, zero, scale, True),
        "moe_permute": (x, *plan),
        "moe_combine": (y, plan.row_of, plan.src_of, weights, zero_weight, x, up),
        "fused_moe": (x, weights, zero_weight, *plan, gate_up, down, *none),
        "fused_moe, FP8": (x, weights, zero_weight, *plan, gate_up, down, *gate_up_pair, *down_pair),
        "expert_rows": (y, plan.offsets, gate_up, down, 5, *none),
        "moe_route_backward": (weights, zero_weight, probs, probs, every, total - zero, scale, F32),
        "moe_permute_backward": (y, plan.row_of),
        "moe_combine_backward": (up, y, plan.row_of, plan.src_of, weights, zero_weight, x, dtype, dtype, [True] * 4),
        "fused_moe_backward": (up, x, weights, zero_weight, *plan, gate_up, down, [True, False, True, True, True]),
        "expert_rows_backward": (y, y, plan.offsets, gate_up, down, None, [True, True, False]),
    }


OPS = tuple(op_calls(F32))


def overload(call: str) -> Callable:
    return getattr(TRAINING, call.split(",")[0]).default


@pytest.mark.parametrize("call", OPS)
def test_opcheck(call):
    """Those that are a backward refuse to be differentiated, as aot_dispatch would. torch has no comparison of e4m3,
    which the check of the schema needs."""
    arguments, checks = op_calls(BF16)[call], CHECKS["FP8" in call :]
    if call.endswith("_backward"):
        checks = CHECKS[:3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert set(torch.library.opcheck(overload(call), arguments, test_utils=checks).values()) == {"SUCCESS"}


def test_every_op_is_checked():
    names = {
        name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("longcat_training")
    }
    assert names == {call.split(",")[0] for call in OPS}


@pytest.mark.parametrize("call", OPS)
def test_outputs_share_no_memory(call):
    arguments = op_calls(F32)[call]
    with torch.no_grad():
        out = overload(call)(*arguments)
    made = [t for t in (out if isinstance(out, tuple | list) else (out,)) if t.numel()]
    given = [a for a in arguments if isinstance(a, Tensor)]
    places = [t.untyped_storage().data_ptr() for t in (*made, *given)]
    assert all(places.count(place) == 1 for place in places[: len(made)])


def step(p: Problem, logits: Tensor, x: Tensor, gate_up: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """A loss of the chain, of its pieces one by one, and of the probabilities."""
    routing, probs = functional.moe_route(logits, p.bias, **p.sizes)
    plan = longcat_ops.moe_plan(routing.ids, len(down), routing.weights.detach())
    y = functional.expert_rows(functional.moe_permute(x, plan), plan.offsets, gate_up, down)
    out = functional.fused_moe(x, routing, gate_up, down) + functional.moe_combine(y, plan, routing, x, x)
    return (out.float() * up.float()).sum() + (probs * probs).sum()


def gradients(run: Callable[..., Tensor], p: Problem) -> list[Tensor]:
    leaves = [leaf(t) for t in (p.logits, p.x, p.gate_up, p.down)]
    loss = run(p, *leaves, p.up)
    loss.backward()
    return [loss.detach(), *(t.grad for t in leaves)]


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_one_training_graph(compiler):
    """Forward and backward, without a break, for any number of tokens: the bits of the eager step, but for sums that
    the compiler fuses itself."""
    torch.compiler.reset()
    compiled = torch.compile(step, backend=compiler, fullgraph=True, dynamic=True)
    for tokens in (5, 33):
        p = make(tokens, BF16, seed=tokens)
        found, eager = gradients(compiled, p), gradients(step, p)
        if compiler == "aot_eager":
            assert bits(found) == bits(eager)
        for got, want in zip(found[1:], eager[1:], strict=True):
            # inductor leaves out roundings to bf16 between fused operations: each below 2^-8
            assert (got.float() - want.float()).norm() <= 2**-7 * want.float().norm()


def saved(run: Callable[[], object]) -> list[Tensor]:
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        run()
    return kept


def test_a_forward_keeps_its_arguments_alone():
    for call in ("fused_moe", "fused_moe, FP8", "expert_rows", "moe_permute", "moe_combine"):
        arguments = op_calls(BF16)[call]
        kept = saved(lambda a=arguments, name=call: overload(name)(*a))
        given = {a.data_ptr() for a in arguments if isinstance(a, Tensor)}
        assert kept and {t.data_ptr() for t in kept} <= given, call
    arguments = op_calls(BF16)["moe_permute"]
    assert [t.dtype for t in saved(lambda: TRAINING.moe_permute(*arguments))] == [torch.int32]  # row_of: no activation
    p = make(7, BF16)
    kept = saved(lambda: functional.moe_route(leaf(p.logits), p.bias, **p.sizes))
    assert [(t.dtype, list(t.shape)) for t in kept] == [(F32, [7, 9]), (torch.int32, [7, 4])]


def test_combine_keeps_y_only_for_the_gradient_of_the_weights():
    y, row_of, src_of, weights, zero_weight, x, add = op_calls(BF16)["moe_combine"]
    kept = saved(lambda: TRAINING.moe_combine(y, row_of, src_of, weights.detach(), zero_weight.detach(), x, add))
    assert not {y.data_ptr(), x.data_ptr()} & {t.data_ptr() for t in kept}


@pytest.mark.parametrize("mode", ["no gradient needed", "no_grad", "inference_mode"])
def test_nothing_is_kept_where_no_gradient_is_needed(mode):
    p = make(7, BF16)
    needs = mode != "no gradient needed"
    given = [leaf(t) if needs else t for t in (p.logits, p.x, p.gate_up, p.down)]
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(mode, torch.enable_grad)
    results: list[Tensor] = []

    def run() -> None:
        with context():
            routing, _ = functional.moe_route(given[0], p.bias, **p.sizes)
            results.append(functional.fused_moe(given[1], routing, *given[2:]))

    assert saved(run) == []
    assert not results[0].requires_grad
    assert bits(results[0]) == bits(longcat_ops.fused_moe(p.x, p.routing(), p.gate_up, p.down))


@pytest.mark.parametrize("call", [call for call in OPS if not call.endswith("_backward")])
def test_a_second_derivative_is_refused(call):
    arguments = op_calls(F32)[call]
    out = overload(call)(*arguments)
    out = next(t for t in (out if isinstance(out, tuple | list) else (out,)) if t.requires_grad)
    needed = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
    loss = (out * out).sum()
    first = torch.autograd.grad(loss, needed, create_graph=True, materialize_grads=True)
    name = call.split(",")[0]
    with pytest.raises(
        LongcatUnsupportedError, match=f"^{name}: argument `gradient` is differentiated again"
    ) as caught:
        sum(g.sum() for g in first).backward()
    assert "fix: leave create_graph out" in str(caught.value)


def public_calls(p: Problem) -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """By the argument that a call takes: the call, and a value."""
    routing = p.routing()
    plan = longcat_ops.moe_plan(routing.ids, p.shape.experts, routing.weights)
    rows = functional.moe_permute(p.x, plan)
    return {
        "moe_permute: argument `x`": (lambda x: functional.moe_permute(x, plan), p.x),
        "moe_combine: argument `x`": (lambda x: functional.moe_combine(rows, plan, routing, x), p.x),
        "fused_moe: argument `x`": (lambda x: functional.fused_moe(x, routing, p.gate_up, p.down), p.x),
        "expert_rows: argument `rows`": (
            lambda x: functional.expert_rows(x, plan.offsets, p.gate_up, p.down), rows
        ),
        "moe_route: argument `logits`": (lambda x: functional.moe_route(x, p.bias, **p.sizes)[0].weights, p.logits),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", public_calls(make(3, F32)))
def test_transforms_and_tangents_are_refused(name):
    """torch would drop a tangent without a word."""
    p = make(3, F32)
    call, x = public_calls(p)[name]
    with pytest.raises(LongcatUnsupportedError, match=f"^{name} is a tensor of a transform of torch.func"):
        torch.func.grad(lambda x: call(x).sum())(x)
    with pytest.raises(LongcatUnsupportedError, match=f"^{name} is a tensor with a tangent"), forward_ad.dual_level():
        call(forward_ad.make_dual(x, torch.ones_like(x)))
    with pytest.raises(LongcatUnsupportedError, match=f"^{name} is a tensor under torch.vmap"):
        torch.func.vmap(call)(torch.stack([x, x]))
    with pytest.raises(longcat_ops.LongcatShapeError, match=f"^{name} is of layout torch.sparse_coo"):
        call(x.to_sparse())


def test_the_refusal_of_an_op_names_the_one_with_a_gradient():
    assert {name for name in OPS if not name.endswith("_backward")} & set(
        longcat_ops.ops.__all__
    ) == tensors.WITH_GRADIENT
    p = make(5, F32)
    with pytest.raises(LongcatUnsupportedError, match=r"; longcat_ops\.training\.functional\.fused_moe, where it is$"):
        longcat_ops.fused_moe(leaf(p.x), p.routing(), p.gate_up, p.down)
    routing, _ = functional.moe_route(p.logits, p.bias, **p.sizes)
    assert functional.fused_moe(leaf(p.x), routing, p.gate_up, p.down).requires_grad


def test_a_weight_written_between_forward_and_backward_is_noticed():
    p = make(5, F32)
    down = leaf(p.down)
    out = functional.fused_moe(p.x, p.routing(), p.gate_up, down)
    with torch.no_grad():
        down.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()

"""moe_route against a loop in Python floats, and its edge rows."""

from __future__ import annotations

import itertools
import math
import os
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longcat_ops import LongcatShapeError, Routing, moe_route, reference
from support.route_oracle import BIASES, EXPERTS, TOKENS, TOP_K, assert_routed, batch, biases

N, Z, K = 8, 4, 5
SHAPES = [(12, 4, 5), (12, 0, 3), (12, 12, 4), (96, 32, 8), (768, 256, 12), (5, 2, 1), (1, 0, 1), (40, 8, 32)]


def route(logits: Tensor, bias: Tensor | None = None, *, top_k: int = K, zero: int = Z, scale: float = 6.0,
          num_valid: Tensor | int | None = None, errors: Tensor | None = None) -> Routing:  # fmt: skip
    experts = logits.shape[1]
    bias = torch.zeros(experts) if bias is None else bias
    return moe_route(
        logits, bias, top_k=top_k, num_experts=experts, num_zero_experts=zero, scale=scale, num_valid=num_valid,
        errors=errors,
    )  # fmt: skip


def probabilities(logits: Tensor) -> list[float]:
    """Softmax of one row in Python floats."""
    row = [float(v) for v in logits.double()]
    top = max(row)
    e = [math.exp(v - top) for v in row]
    total = math.fsum(e)
    return [v / total for v in e]


def loop(logits: Tensor, bias: Tensor, top_k: int, zero: int, scale: float) -> tuple[list[int], list[float], float]:
    """One row: (ids, weights, zero weight)."""
    p = probabilities(logits)
    order = sorted(range(len(p)), key=lambda i: (-(p[i] + float(bias[i])), i))[:top_k]
    real = len(p) - zero
    ids = [i if i < real else -1 for i in order]
    weights = [p[i] * scale if i < real else 0.0 for i in order]
    return ids, weights, sum(p[i] * scale for i in order if i >= real)


def picked(ids: list[int], choice: list[float], zero: int) -> list[int]:
    """The experts behind the ids of one row: each zero slot stands for the best zero expert left.

    Fails unless they are the best in descending order, up to 2e-7 of the largest score, which float32 softmax and
    adding the bias may lose. Of two closer experts, either is right.
    """
    experts = len(choice)
    zeros = iter(sorted(range(experts - zero, experts), key=lambda i: -choice[i]))
    chosen = [i if i >= 0 else next(zeros) for i in ids]
    slack = 2e-7 * max(abs(s) for s in choice)
    assert len(set(chosen)) == len(ids)
    assert all(choice[a] >= choice[b] - slack for a, b in pairwise(chosen))
    assert all(choice[i] <= choice[chosen[-1]] + slack for i in set(range(experts)) - set(chosen))
    return chosen


def random_case(tokens: int = 64, experts: int = N + Z, seed: int = 0, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, experts, generator=g) * spread, torch.randn(experts, generator=g) * 0.05


@pytest.mark.parametrize(("experts", "zero", "top_k"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_the_loop(experts, zero, top_k, dtype):
    logits, bias = random_case(experts=experts)
    logits = logits.to(dtype)
    got = route(logits, bias, top_k=top_k, zero=zero)
    counts = [0] * experts
    for t in range(len(logits)):
        p = probabilities(logits[t])
        chosen = picked(got.ids[t].tolist(), [v + float(b) for v, b in zip(p, bias, strict=True)], zero)
        want = [6 * p[i] if i < experts - zero else 0 for i in chosen]
        # exp of a difference of up to 8 whose last bit is 2^-21, and two roundings more
        assert got.weights[t].tolist() == pytest.approx(want, rel=2e-6)
        assert got.zero_weight[t].item() == pytest.approx(
            6 * sum(p[i] for i in chosen if i >= experts - zero), rel=2e-6
        )
        assert got.num_real[t] == sum(i < experts - zero for i in chosen)
        for i in chosen:
            counts[i] += 1
    assert got.counts.tolist() == counts  # zero experts too
    assert [t.dtype for t in got] == [torch.int32, torch.float32, torch.float32, torch.uint8, torch.int32, torch.int32]
    assert got.errors.tolist() == [0]


@pytest.mark.parametrize(("experts", "zero", "top_k"), SHAPES)
def test_the_reference_routes_float64_logits_in_float64(experts, zero, top_k):
    """An fp64 model runs on the reference; the op itself refuses fp64."""
    logits, bias = (t.double() for t in random_case(tokens=16, experts=experts))
    got = reference.moe_route(logits, bias, top_k=top_k, num_experts=experts, num_zero_experts=zero, scale=6.0)
    assert got.weights.dtype == got.zero_weight.dtype == torch.float64
    for t in range(len(logits)):
        ids, weights, zero_weight = loop(logits[t], bias, top_k, zero, 6.0)
        assert got.ids[t].tolist() == ids
        assert got.weights[t].tolist() == pytest.approx(weights, rel=1e-14, abs=0)
        assert got.zero_weight[t].item() == pytest.approx(zero_weight, rel=1e-14, abs=0)


@pytest.mark.parametrize("experts", EXPERTS)
def test_all_sizes_and_kinds_of_rows(experts):
    few = os.environ.get("LONGCAT_OPS_BACKEND") == "emu"  # slow; test_moe_route_emu.py has more
    zero = experts // 3
    for seed, (tokens, top_k) in enumerate(itertools.product(TOKENS[:4] if few else TOKENS, TOP_K)):
        if top_k > experts:
            continue
        logits, _ = batch(tokens, experts, zero, seed)
        bias = biases(BIASES[seed % len(BIASES)], experts)
        for function in (moe_route, reference.moe_route):
            got = function(logits, bias, top_k=top_k, num_experts=experts, num_zero_experts=zero, scale=6.0)
            assert_routed(got, logits, bias, top_k=top_k, zero=zero, scale=6.0)


def test_bias_chooses_and_never_weighs():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    bias = torch.tensor([0.0, 0.0, 0.0, 2.0])
    got = route(logits, bias, top_k=2, zero=1)
    score = logits[0].double().softmax(-1)
    assert got.ids.tolist() == [[-1, 0]]  # the zero expert, number 3, comes first by its bias
    assert got.weights[0].tolist() == pytest.approx([0, 6 * score[0].item()], rel=1e-6)
    assert got.zero_weight[0].item() == pytest.approx(6 * score[3].item(), rel=1e-6)


@pytest.mark.parametrize("scale", [-2.0, 0.0, 1.0, 2.5])
def test_any_finite_scale(scale):
    logits, bias = random_case()
    one, got = route(logits, bias, scale=1.0), route(logits, bias, scale=scale)
    assert torch.equal(got.ids, one.ids)
    assert torch.equal(got.weights, one.weights * scale)
    assert torch.allclose(got.zero_weight, one.zero_weight * scale, rtol=1e-6, atol=0)  # scaled before it is summed


def test_rows_without_real_and_with_only_real_experts():
    logits = torch.zeros(2, N + Z)
    logits[0, N:] = 9.0
    logits[1, :N] = 9.0
    got = route(logits, top_k=4)
    assert got.ids.tolist() == [[-1] * 4, [0, 1, 2, 3]]
    assert got.num_real.tolist() == [0, 4]
    assert got.weights[0].tolist() == [0] * 4
    assert got.zero_weight[1] == 0
    assert got.zero_weight[0].item() == pytest.approx(6 * logits[0].double().softmax(-1)[N:].sum().item(), rel=1e-6)


def test_ties_go_to_the_lower_id():
    logits = torch.tensor([[1.0, 5.0, 1.0, 5.0, 1.0, 1.0]])
    assert route(logits, top_k=4, zero=0).ids.tolist() == [[1, 3, 0, 2]]
    assert route(logits, top_k=5, zero=2).ids.tolist() == [[1, 3, 0, 2, -1]]  # a zero expert has the higher id


@settings(max_examples=60)
@given(st.data())
def test_quantised_logits_tie_often_and_still_follow_the_loop(data):
    experts = data.draw(st.integers(2, 24))
    zero = data.draw(st.integers(0, experts))
    top_k = data.draw(st.integers(1, experts))
    values = st.sampled_from([-2.0, -0.5, 0.0, 1.0, 3.0])
    logits = torch.tensor([data.draw(st.lists(values, min_size=experts, max_size=experts))])
    got = route(logits, top_k=top_k, zero=zero)
    ids, weights, zero_weight = loop(logits[0], torch.zeros(experts), top_k, zero, 6.0)
    assert got.ids[0].tolist() == ids
    assert got.weights[0].tolist() == pytest.approx(weights, rel=2e-6)
    assert got.zero_weight[0].item() == pytest.approx(zero_weight, rel=2e-6)


BAD_ROWS = {
    "nan": [torch.nan, 0.0],
    "nan_and_minus_inf": [torch.nan, -torch.inf],
    "plus_inf": [torch.inf, 1.0],
    "two_plus_inf": [torch.inf, torch.inf],
    "all_minus_inf": [-torch.inf] * (N + Z),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_marked_and_leaves_its_neighbours_alone(name, dtype):
    logits, bias = random_case(tokens=5)
    logits = logits.to(dtype)
    clean = route(logits, bias)
    logits[2, -len(BAD_ROWS[name]) :] = torch.tensor(BAD_ROWS[name], dtype=dtype)
    got = route(logits, bias)
    assert got.errors.tolist() == [1]
    assert got.ids[2].tolist() == [-1] * K
    assert got.weights[2].tolist() == [0] * K
    assert got.zero_weight[2].isnan()
    assert got.num_real[2] == 0
    assert got.counts.sum() == 4 * K
    others = [0, 1, 3, 4]
    for ours, expected in zip(got[:4], clean[:4], strict=True):
        assert torch.equal(ours[others], expected[others])


def test_a_nan_in_bias_makes_every_row_bad():
    logits, bias = random_case(tokens=5)
    bias[3] = torch.nan
    got = route(logits, bias, num_valid=4)
    assert (got.ids == -1).all()
    assert got.zero_weight[:4].isnan().all()
    assert got.zero_weight[4] == 0
    assert got.errors.tolist() == [4]
    assert not got.weights.any()
    assert not got.counts.any()


def test_minus_inf_logits_are_legal():
    logits, bias = random_case(tokens=3)
    logits[:, 1] = -torch.inf
    got = route(logits, bias.zero_(), top_k=N + Z)
    assert got.errors.tolist() == [0]
    assert (got.ids == 1).sum() == 3  # chosen last, with weight 0
    assert (got.ids[:, -1] == 1).all()
    assert (got.weights[:, -1] == 0).all()
    assert got.zero_weight.isfinite().all()


def test_errors_accumulate_in_the_tensor_that_is_passed():
    logits, bias = random_case(tokens=6)
    logits[1:4, 0] = torch.nan
    errors = torch.tensor([5], dtype=torch.int32)
    assert route(logits, bias, errors=errors).errors is errors
    assert errors.tolist() == [8]
    route(logits, bias, errors=errors, num_valid=2)  # only one of the bad rows is not padding
    assert errors.tolist() == [9]
    route(logits[4:], bias, errors=errors)
    assert errors.tolist() == [9]
    assert route(logits, bias).errors.tolist() == [3]  # starts at 0 without one


@pytest.mark.parametrize("as_tensor", [False, True], ids=["int", "tensor"])
@pytest.mark.parametrize("valid", [0, 1, 3, 5])
@pytest.mark.parametrize("stale", [1.0, torch.nan])
def test_rows_from_num_valid_on_are_padding(stale, valid, as_tensor):
    logits, bias = random_case(tokens=5)
    whole = route(logits[:valid], bias)
    logits[valid:] *= stale
    got = route(logits, bias, num_valid=torch.tensor([valid], dtype=torch.int32) if as_tensor else valid)
    for ours, expected in zip(got[:4], whole[:4], strict=True):
        assert torch.equal(ours[:valid], expected)
    assert (got.ids[valid:] == -1).all()
    assert not got.weights[valid:].any()
    assert not got.zero_weight[valid:].any()
    assert not got.num_real[valid:].any()
    assert torch.equal(got.counts, whole.counts)
    assert got.errors.tolist() == [0]


@pytest.mark.parametrize(("count", "valid"), [(9, 5), (-1, 0)])
def test_a_count_on_the_device_beyond_the_rows_is_safe(count, valid):
    """The host cannot check a count on the device before the launch, so the op clamps it; it refuses a bad int."""
    logits, bias = random_case(tokens=5)
    got = route(logits, bias, num_valid=torch.tensor([count], dtype=torch.int32))
    want = route(logits, bias, num_valid=valid)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    if count < 0:
        with pytest.raises(LongcatShapeError, match=r"moe_route: argument `num_valid` is -1, expected 0 \.\. 5"):
            route(logits, bias, num_valid=count)


def test_no_tokens():
    errors = torch.tensor([2], dtype=torch.int32)
    for got in (route(torch.zeros(0, N + Z)), route(torch.zeros(0, N + Z), num_valid=0, errors=errors)):
        assert [list(t.shape) for t in got] == [[0, K], [0, K], [0], [0], [N + Z], [1]]
        assert not got.counts.any()
    assert errors.tolist() == [2]


def test_bf16_logits_are_widened_first():
    logits, bias = random_case()
    narrow = logits.bfloat16()
    got, want = route(narrow, bias), route(narrow.float(), bias)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_row_does_not_depend_on_its_batch():
    logits, bias = random_case(tokens=33, experts=96)
    whole = route(logits, bias, zero=32, top_k=8)
    for t in range(33):
        alone = route(logits[t : t + 1], bias, zero=32, top_k=8)
        for ours, expected in zip(alone[:4], whole[:4], strict=True):
            assert torch.equal(ours[0], expected[t])

"""moe_route against HF's router, an fp64 loop, and its edge rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashTopkRouter

import hf
from longcat_ops import LongcatShapeError, moe_route

N, Z, K = 8, 4, 5


def route(logits, bias=None, *, top_k=K, zero=Z, scale=6.0, num_valid=None):
    experts = logits.shape[1]
    bias = torch.zeros(experts) if bias is None else bias
    return moe_route(
        logits, bias, top_k=top_k, num_experts=experts, num_zero_experts=zero, scale=scale, num_valid=num_valid
    )


def loop(logits, bias, top_k, zero, scale):
    """One row, in Python floats: (ids, weights, zero weight)."""
    row = [float(v) for v in logits.double()]
    top = max(row)
    e = [2.718281828459045 ** (v - top) for v in row]
    scores = [v / sum(e) for v in e]
    order = sorted(range(len(row)), key=lambda i: (-(scores[i] + float(bias[i])), i))[:top_k]
    real = len(row) - zero
    ids = [i if i < real else -1 for i in order]
    weights = [scores[i] * scale if i < real else 0.0 for i in order]
    return ids, weights, sum(scores[i] * scale for i in order if i >= real)


def random_case(tokens=64, experts=N + Z, seed=0, spread=1.0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, experts, generator=g) * spread, torch.randn(experts, generator=g) * 0.05


@pytest.mark.parametrize(
    ("experts", "zero", "top_k"), [(12, 4, 5), (12, 0, 3), (12, 12, 4), (96, 32, 8), (768, 256, 12), (5, 2, 1)]
)
def test_against_the_fp64_loop(experts, zero, top_k):
    logits, bias = random_case(experts=experts)
    got = route(logits, bias, top_k=top_k, zero=zero)
    counts = torch.zeros(experts, dtype=torch.int32)
    for t in range(len(logits)):
        ids, weights, zero_weight = loop(logits[t], bias, top_k, zero, 6.0)
        assert got.ids[t].tolist() == ids
        assert got.weights[t].tolist() == pytest.approx(weights, rel=2e-6, abs=1e-7)
        assert got.zero_weight[t].item() == pytest.approx(zero_weight, rel=3e-6, abs=1e-6)
        assert got.num_real[t] == sum(i >= 0 for i in ids)
        for i in ids:
            counts[i] += i >= 0
    assert torch.equal(got.counts[: experts - zero], counts[: experts - zero])
    assert got.counts.sum() == len(logits) * top_k  # zero experts are counted too
    dtypes = [t.dtype for t in got]
    assert dtypes == [torch.int32, torch.float32, torch.float32, torch.uint8, torch.int32, torch.int32]
    assert got.errors.tolist() == [0]


def test_against_the_hf_router():
    reference, _ = hf.build(n_routed_experts=N, zero_expert_num=Z, moe_topk=K)
    router = reference.model.layers[0].mlp.router
    assert isinstance(router, LongcatFlashTopkRouter)
    with torch.inference_mode():
        logits, weights, chosen = router(torch.randn(128, 64, generator=torch.Generator().manual_seed(3)))
    got = route(logits, router.e_score_correction_bias)
    for t in range(128):
        want = dict(zip(chosen[t].tolist(), weights[t].tolist(), strict=True))
        ours = dict(zip(got.ids[t].tolist(), got.weights[t].tolist(), strict=True))
        ours.pop(-1, None)
        assert ours == pytest.approx({e: w for e, w in want.items() if e < N}, rel=1e-6)
        assert got.zero_weight[t].item() == pytest.approx(sum(w for e, w in want.items() if e >= N), rel=2e-6, abs=1e-7)


def test_bias_chooses_and_never_weighs():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    bias = torch.tensor([0.0, 0.0, 0.0, 2.0])
    got = route(logits, bias, top_k=2, zero=1)
    score = logits[0].double().softmax(-1)
    assert got.ids.tolist() == [[-1, 0]]  # the zero expert, number 3, comes first by its bias
    assert got.weights[0].tolist() == pytest.approx([0, 6 * score[0].item()], rel=1e-6)
    assert got.zero_weight[0].item() == pytest.approx(6 * score[3].item(), rel=1e-6)


def test_weights_are_scaled_scores_and_not_renormalised():
    logits = torch.zeros(1, 8)
    got = route(logits, top_k=2, zero=0, scale=6.0)
    assert got.weights.tolist() == [[0.75, 0.75]]  # 6 / 8 each: their sum is 1.5, not 6
    assert route(logits, top_k=2, zero=0, scale=1.0).weights.tolist() == [[0.125, 0.125]]


def test_scale_reaches_zero_experts():
    logits, bias = random_case()
    once, six = route(logits, bias, scale=1.0), route(logits, bias, scale=6.0)
    assert six.zero_weight.max() > 1
    assert torch.allclose(six.zero_weight, 6 * once.zero_weight, rtol=1e-6)


def test_rows_without_real_and_with_only_real_experts():
    bias = torch.zeros(N + Z)
    logits = torch.zeros(2, N + Z)
    logits[0, N:] = 9.0
    logits[1, :N] = 9.0
    got = route(logits, bias, top_k=4)
    assert got.ids.tolist() == [[-1] * 4, [0, 1, 2, 3]]
    assert got.num_real.tolist() == [0, 4]
    assert got.weights[0].tolist() == [0] * 4
    assert got.zero_weight[1] == 0
    assert got.zero_weight[0].item() == pytest.approx(6 * logits[0].double().softmax(-1)[N:].sum().item(), rel=1e-6)


def test_ties_go_to_the_lower_id():
    assert route(torch.zeros(1, 768), top_k=12, zero=256).ids.tolist() == [list(range(12))]
    logits = torch.tensor([[1.0, 5.0, 1.0, 5.0, 1.0, 1.0]])
    assert route(logits, top_k=4, zero=0).ids.tolist() == [[1, 3, 0, 2]]


@settings(max_examples=60, deadline=None)
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
}


@pytest.mark.parametrize("name", [*BAD_ROWS, "all_minus_inf"])
def test_a_bad_row_is_marked_and_leaves_its_neighbours_alone(name):
    logits, bias = random_case(tokens=5)
    clean = route(logits, bias)
    logits[2, 3:5] = torch.tensor(BAD_ROWS.get(name, [0.0, 0.0]))
    if name == "all_minus_inf":
        logits[2] = -torch.inf
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


def test_minus_inf_logits_are_legal():
    logits, bias = random_case(tokens=3)
    logits[:, 1] = -torch.inf
    got = route(logits, bias.zero_(), top_k=N + Z)
    assert got.errors.tolist() == [0]
    assert got.ids.eq(1).sum() == 3  # chosen last, with weight 0
    assert (got.weights[got.ids == 1] == 0).all()
    assert got.zero_weight.isfinite().all()


@pytest.mark.parametrize("valid", [0, 1, 3, 5])
def test_rows_from_num_valid_on_are_padding(valid):
    logits, bias = random_case(tokens=5)
    whole = route(logits[:valid], bias)
    logits[valid:] = torch.nan
    got = route(logits, bias, num_valid=valid)
    for ours, expected in zip(got[:4], whole[:4], strict=True):
        assert torch.equal(ours[:valid], expected)
    assert (got.ids[valid:] == -1).all()
    assert not got.weights[valid:].any()
    assert not got.zero_weight[valid:].any()
    assert not got.num_real[valid:].any()
    assert torch.equal(got.counts, whole.counts)
    assert got.errors.tolist() == [0]


def test_no_tokens():
    got = route(torch.zeros(0, N + Z))
    assert [list(t.shape) for t in got] == [[0, K], [0, K], [0], [0], [N + Z], [1]]
    assert not got.counts.any()
    assert got.errors.tolist() == [0]


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
        assert torch.equal(alone.ids[0], whole.ids[t])
        assert torch.equal(alone.weights[0], whole.weights[t])


GOOD = dict(top_k=K, num_experts=N + Z, num_zero_experts=Z, scale=6.0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(logits=torch.zeros(3, 7)), r"argument `logits` is \[3, 7\], expected \[T, num_experts=12\]"),
        (dict(logits=torch.zeros(12)), r"argument `logits` is \[12\], expected \[T, num_experts=12\]"),
        (dict(logits=torch.zeros(3, 12, dtype=torch.int64)), r"argument `logits` is torch.int64, expected float32"),
        (dict(bias=torch.zeros(11)), r"argument `bias` is \[11\], expected \[12\]"),
        (dict(top_k=0), r"argument `top_k` is 0, expected 1 .. 12"),
        (dict(top_k=13), r"argument `top_k` is 13, expected 1 .. 12"),
        (dict(num_zero_experts=13), r"argument `num_zero_experts` is 13, expected 0 .. 12"),
        (dict(num_zero_experts=-1), r"argument `num_zero_experts` is -1, expected 0 .. 12"),
        (dict(num_valid=4), r"argument `num_valid` is 4, expected 0 .. 3 rows"),
        (dict(num_valid=-1), r"argument `num_valid` is -1, expected 0 .. 3 rows"),
    ],
)
def test_bad_arguments(change, text):
    call = {"logits": torch.zeros(3, N + Z), "bias": torch.zeros(N + Z), **GOOD, **change}
    with pytest.raises(LongcatShapeError, match=f"moe_route: {text}"):
        moe_route(call.pop("logits"), call.pop("bias"), **call)


def test_more_than_32_choices_are_refused():
    with pytest.raises(LongcatShapeError, match=r"`top_k` is 33, expected 1 .. 32"):
        route(torch.zeros(1, 64), top_k=33, zero=0)

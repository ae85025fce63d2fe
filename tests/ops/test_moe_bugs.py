"""One test per bug that other implementations of zero experts, routing or dispatch had."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import longcat_ops
from longcat_ops import LongcatShapeError, Plan, Routing, fused_moe, moe_combine, moe_permute_quant, moe_plan, moe_route
from longcat_ops.testing.op_cases import gate_up, stacked_weight
from longcat_ops.testing.op_results import bits

N, Z, K, H, W = 16, 8, 12, 128, 64
Pair = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def route(logits: Tensor, bias: Tensor | None = None, *, zero: int = Z, top_k: int = K, scale: float = 6.0,
          num_valid: int | None = None) -> Routing:  # fmt: skip
    experts = logits.shape[1]
    bias = torch.zeros(experts) if bias is None else bias
    return moe_route(
        logits, bias, top_k=top_k, num_experts=experts, num_zero_experts=zero, scale=scale, num_valid=num_valid
    )


def softmax(logits: Tensor) -> Tensor:
    return logits.double().softmax(-1)


def experts(fp8: bool = True, count: int = N) -> tuple[Tensor | Pair, Tensor | Pair]:
    if not fp8:
        return longcat_ops.interleave_gate_up(torch.randn(count, 2 * W, H) * 0.1), torch.randn(count, H, W) * 0.1
    pairs = longcat_ops.interleave_gate_up(*gate_up(count, W, H)), stacked_weight(count, H, W)
    return tuple((q, s * 0.1) for q, s in pairs)


def rows_of(x: Tensor, ids: Tensor, w_gate_up: Pair, w_down: Pair) -> tuple[Tensor, Plan]:
    """The float32 output of one rank's experts for their tokens, and its plan."""
    plan = moe_plan(ids, len(w_down[0]))
    hidden = longcat_ops.m_grouped_fp8_swiglu_gemm_nt_offset(moe_permute_quant(x, plan), w_gate_up, plan.offsets)
    y = torch.full((len(plan.src_of), H), torch.nan)
    return longcat_ops.m_grouped_fp8_gemm_nt_offset(hidden, w_down, y, plan.offsets), plan


def test_scale_reaches_zero_experts():
    """SGLang: only the real part was scaled, so the identity path was 6 times too small."""
    logits = torch.randn(32, N + Z)
    logits[:, N:] += 2
    p, got = softmax(logits), route(logits)
    for t in range(32):
        chosen = p[t].argsort(descending=True)[:K]
        assert got.zero_weight[t].item() == pytest.approx(6 * p[t, chosen[chosen >= N]].sum().item(), rel=2e-6)
    assert got.zero_weight.min() > 1


def test_weights_are_not_renormalised():
    """sglang-jax, FlashInfer: the scale applied only with renormalisation, or was 1 without it."""
    logits = torch.randn(32, N + Z)
    one, six = route(logits, scale=1.0), route(logits, scale=6.0)
    assert torch.equal(six.weights, one.weights * 6)  # one rounding either way
    p = softmax(logits)
    total = (one.weights.sum(1) + one.zero_weight).double()
    assert torch.allclose(total, p.topk(K).values.sum(1), rtol=2e-6)
    assert total.max() < 0.99


def test_bias_is_not_in_the_weights():
    """A weight is p itself, not (p + b) - b: Meituan's kernel lost up to 1.5e-2 of a small p that way.

    The logits have short mantissas, so their differences are exact and exp adds 2^-23 at most.
    """
    logits, bias = torch.randn(16, 768).bfloat16().float(), torch.zeros(768)
    logits[:, 5:9] = torch.tensor([-14.0, -12.0, -16.0, -18.0])
    bias[5:9] = torch.tensor([8.0, 4.0, 2.0, 1.0])
    got, p = route(logits, bias, zero=256), softmax(logits)
    assert got.ids[:, :4].tolist() == [[5, 6, 7, 8]] * 16
    assert p[:, 8].max() < 1e-9  # 1 + p is 1 in float32
    assert torch.allclose(got.weights[:, :4].double(), 6 * p[:, 5:9], rtol=1e-6, atol=0)


@pytest.mark.parametrize("low", [-1e5, -2e5, -1e38])
def test_there_is_no_sentinel_score(low):
    """Meituan's kernel marks a winner with -100000: with biases below that the same expert wins again."""
    logits, place = torch.randn(4, 768), torch.arange(768) * 37 % 768
    got = route(logits, low * (1 + 2e-5 * place), zero=256)  # steps of 2 at least: p does not matter
    best = place.argsort()[:12]
    real = best < 512
    assert got.ids.tolist() == [torch.where(real, best, -1).tolist()] * 4
    assert torch.allclose(got.weights.double(), 6 * softmax(logits)[:, best] * real, rtol=2e-6, atol=0)


def test_biases_of_a_thousand():
    """With biases of 1e3, p + b keeps only four digits of p; the weights keep all."""
    logits, bias = torch.randn(4, 768), torch.full((768,), -1e3)
    bias[[700, 500, 3]] = torch.tensor([1e3, 999.0, 998.0])
    got, p = route(logits, bias, zero=256), softmax(logits)
    assert got.ids[:, :3].tolist() == [[-1, 500, 3]] * 4
    assert torch.allclose(got.weights[:, 1:3].double(), 6 * p[:, [500, 3]], rtol=2e-6, atol=0)
    assert all(len({*ids} - {-1}) == real for ids, real in zip(got.ids.tolist(), got.num_real.tolist(), strict=True))


@pytest.mark.parametrize("zero", [0, 256])
def test_equal_logits_give_the_lowest_ids(zero):
    got = route(torch.full((3, 768), 2.5), zero=zero)
    assert got.ids.tolist() == [list(range(12))] * 3
    assert (got.weights == got.weights[0, 0]).all()


def test_bf16_logits_tie_at_the_last_place():
    """A fifth of the tokens tie there: code that leaves ties to chance routes differently on every rank."""
    logits = torch.randn(256, 768).bfloat16()
    got = route(logits, zero=0)
    ties = 0
    for row, ids in zip(logits.tolist(), got.ids.tolist(), strict=True):
        order = sorted(range(768), key=lambda i: (-row[i], i))  # no bias: the order of logits is that of scores
        assert ids == order[:12]
        ties += row[order[11]] == row[order[12]]
    assert ties > 25


def test_a_bias_of_bf16_is_refused():
    """HF's bf16 load rounds it, which alone changes the experts of up to 7 % of the tokens."""
    with pytest.raises(LongcatShapeError, match=r"`bias` is torch\.bfloat16, expected torch\.float32"):
        route(torch.zeros(1, 24), torch.zeros(24, dtype=torch.bfloat16))


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize(("bad", "where"), [(torch.nan, 0), (torch.inf, 20), (-torch.inf, slice(None))])
def test_a_bad_row_is_not_taken_for_identity(bad, where, fp8):
    """In Meituan's kernel every lane wins a NaN row; in eps's it becomes a zero expert, so x passes unchanged."""
    x, logits, weights = torch.randn(8, H), torch.randn(8, N + Z), experts(fp8)
    clean = fused_moe(x, route(logits), *weights)
    logits[5, where] = bad
    routing = route(logits)
    assert routing.errors.tolist() == [1]
    assert moe_plan(routing.ids, N).row_of[5].tolist() == [-1] * K
    out = fused_moe(x, routing, *weights)
    assert out[5].isnan().all()
    others = [t for t in range(8) if t != 5]
    assert torch.equal(out[others], clean[others])


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("tokens", [5, 40])
@pytest.mark.parametrize("expert", [0, N - 1])
def test_zero_slots_do_not_reach_an_expert(expert, tokens, fp8):
    """mlx-lm gave zero slots expert 0's output; an index of -1 selects the last expert. Slot weights do not matter."""
    logits = torch.randn(tokens, N + Z)
    logits[:, expert] = -torch.inf
    routing = route(logits)
    assert (routing.ids == -1).any(1).all()
    x, weights = torch.randn(tokens, H), experts(fp8)
    clean = fused_moe(x, routing, *weights)
    for w in weights:
        (w[1] if fp8 else w)[expert] = torch.nan
    routing.weights[routing.ids == -1] = 1e3
    assert bits(fused_moe(x, routing, *weights)) == bits(clean)
    assert clean.isfinite().all()


def test_zero_slots_are_not_sent_to_expert_0():
    """vLLM and SGLang send them there with weight 0: four copies of every token, a third of all rows."""
    routing = route(torch.randn(100, N + Z))
    plan = moe_plan(routing.ids, N)
    assert plan.offsets[1] == (routing.ids == 0).sum() == routing.counts[0]
    assert torch.equal(plan.offsets.diff(), routing.counts[:N])
    assert plan.offsets[N] == routing.num_real.sum() < 100 * K
    assert torch.equal(plan.row_of == -1, routing.ids == -1)


def test_minus_one_does_not_index_the_last_row():
    """aiter and FluentLLM's placement indexed with -1: neither the last token nor the last row of y may show."""
    ids = torch.tensor([[-1, 2], [0, -1], [-1, -1], [1, -1]], dtype=torch.int32)
    plan = moe_plan(ids, 3)
    assert plan.src_of.tolist() == [2, 6, 1, -1, -1, -1, -1, -1]
    x = torch.randn(4, H)
    x[3] = torch.nan
    _, s = moe_permute_quant(x, plan)
    assert [bool(row.isnan().any()) for row in s[:3]] == [False, True, False]
    y = torch.randn(8, H)
    y[3:] = torch.nan
    routing = Routing(ids, torch.ones(4, 2), torch.ones(4), *route(torch.zeros(4, 24))[3:])
    out = moe_combine(y, plan, routing, torch.randn(4, H))
    assert out.isfinite().all()


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("tokens", [3, 33])
def test_a_batch_of_zero_experts_only(tokens, fp8):
    """Seven tokens in a thousand have no FFN expert: nothing is sent, and combine still writes them."""
    logits = torch.randn(tokens, N + 16)
    logits[:, N:] += 30
    routing = route(logits, zero=16)
    assert not routing.num_real.any()
    plan = moe_plan(routing.ids, N)
    assert not plan.offsets.any()
    assert (plan.src_of == -1).all()
    x = torch.randn(tokens, H).bfloat16()
    want = (routing.zero_weight[:, None] * x.float()).bfloat16()
    assert torch.equal(fused_moe(x, routing, *experts(fp8)), want)
    assert torch.equal(moe_combine(torch.full((tokens * K, H), torch.nan), plan, routing, x), want)


def test_identity_is_not_the_fp8_image_of_x():
    """The experts see x in FP8; the identity path takes the router's x, whose last bits FP8 lacks."""
    x = torch.randn(9, H).bfloat16()
    routing = route(torch.zeros(9, 16), zero=16, top_k=8, scale=2.0)  # 8 times 2 / 16
    assert (routing.zero_weight == 1).all()
    assert torch.equal(fused_moe(x, routing, *experts()), x)


@pytest.mark.parametrize("ranks", [2, 4])
def test_identity_counts_once_under_expert_parallelism(ranks):
    """SGLang and a vllm-ascend plugin added it on every rank before the all-reduce; FlashInfer sends -1 to rank 0."""
    x, routing, (w_gate_up, w_down) = torch.randn(40, H), route(torch.randn(40, N + Z)), experts()
    zero = Routing(*routing[:2], torch.zeros(40), *routing[3:])
    whole_y, whole = rows_of(x, routing.ids, w_gate_up, w_down)
    local, total, start = N // ranks, torch.zeros(40, H), 0
    for rank in range(ranks):
        own = slice(rank * local, (rank + 1) * local)
        y, plan = rows_of(
            x, routing.ids - rank * local, tuple(t[own] for t in w_gate_up), tuple(t[own] for t in w_down)
        )
        rows = int(plan.offsets[-1])
        assert torch.equal(plan.src_of[:rows], whole.src_of[start : start + rows])
        assert torch.equal(y[:rows], whole_y[start : start + rows])  # the same rows, in the same order
        total += moe_combine(y, plan, zero, x)
        start += rows
    assert start == routing.num_real.sum()
    identity = moe_combine(whole_y[:0], whole._replace(row_of=torch.full_like(whole.row_of, -1)), routing, x)
    want = fused_moe(x, routing, w_gate_up, w_down)
    # 13 products added in another order: each of the two sums is off by 13 * 2^-24 of the sum of magnitudes at most.
    slack = 2 * 13 * 2.0**-24 * moe_combine(whole_y.abs(), whole, routing, x.abs())
    assert ((total + identity - want).abs() <= slack).all()
    assert identity.norm() > 0.1 * want.norm()  # so that a second one would show


@pytest.mark.parametrize("top_k", [12, 32])
def test_more_than_eleven_experts_per_token(top_k):
    """DeepEP's low-latency mode ends at 11, NCCL's at 9, FlashInfer's at 8."""
    logits = torch.randn(20, 768)
    logits[:, 512:] = -9.0  # all choices are FFN experts
    routing = route(logits, zero=256, top_k=top_k)
    assert (routing.num_real == top_k).all()
    assert not routing.zero_weight.any()
    plan = moe_plan(routing.ids, 512)
    assert plan.offsets[-1] == len(plan.src_of) == 20 * top_k
    out = moe_combine(torch.ones(20 * top_k, 8), plan, routing, torch.zeros(20, 8))
    assert torch.allclose(out[:, 0].double(), 6 * softmax(logits).topk(top_k).values.sum(1), rtol=4e-6)


def test_padding_costs_no_rows():
    """FluentLLM's LongCat branch ignored the number of tokens that are not padding."""
    logits = torch.randn(40, N + Z)
    routing = route(logits, num_valid=13)
    plan = moe_plan(routing.ids, N)
    assert plan.offsets[-1] == route(logits[:13]).num_real.sum() > 0
    assert (plan.row_of[13:] == -1).all()
    assert not fused_moe(torch.randn(40, H), routing, *experts())[13:].any()


@pytest.mark.parametrize("fp8", [False, True])
def test_no_tokens(fp8):
    """A rank without tokens still launches everything."""
    routing = route(torch.zeros(0, N + Z))
    assert moe_plan(routing.ids, N).offsets.tolist() == [0] * (N + 1)
    assert fused_moe(torch.zeros(0, H), routing, *experts(fp8)).shape == (0, H)


@pytest.mark.parametrize("fp8", [False, True])
def test_experts_are_not_counted_by_the_slabs_of_gate_up(fp8):
    """HF allocates gate_up for the zero experts too, 768 slabs to 512 of down: refused, not guessed."""
    (w_gate_up, _), (_, w_down) = experts(fp8, N + Z), experts(fp8)
    with pytest.raises(LongcatShapeError, match=rf"`w_down` is of shape \[{N}, .*expected \[{N + Z}, "):
        fused_moe(torch.zeros(2, H), route(torch.zeros(2, N + Z)), w_gate_up, w_down)


def test_more_than_a_million_rows():
    """eps's fast_ep marks zero slots by adding 1000000 to a row number, so row 1000000 is one."""
    tokens = 90_000
    ids = torch.arange(12, dtype=torch.int32).repeat(tokens, 1)
    ids[::3, 4] = -1
    plan = moe_plan(ids, 12)
    assert plan.offsets[-1] == tokens * 12 - tokens // 3 > 1_000_000
    used = plan.src_of[: int(plan.offsets[-1])].long()
    assert torch.equal(plan.row_of.flatten()[used].long(), torch.arange(len(used)))
    x = torch.arange(tokens).remainder(64).float()[:, None].repeat(1, 8)
    q, s = moe_permute_quant(x, plan)
    y = q.float() * s  # a row holds one value, so q is 448 unless it is 0
    assert torch.allclose(y[: len(used), 0], x[used // 12, 0], rtol=1e-6)
    routing = Routing(ids, torch.full((tokens, 12), 0.25), torch.zeros(tokens), *route(torch.zeros(1, 24))[3:])
    want = x[:, 0] * 0.25 * (ids >= 0).sum(1)
    assert torch.allclose(moe_combine(y, plan, routing, x)[:, 0], want, rtol=2e-6)

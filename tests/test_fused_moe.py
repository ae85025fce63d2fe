"""fused_moe against an fp64 loop and HF's expert layer: dense and FP8, few tokens and many, odd rows."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import hf
from longcat_ops import (
    LongcatShapeError,
    Routing,
    dequant_fp8,
    fused_moe,
    moe_route,
    per_block_quant_fp8,
    per_token_group_quant_fp8,
)

TOKENS = [0, 1, 2, 7, 8, 9, 33]


def make(tokens, hidden=64, width=48, experts=6, zero=3, top_k=4, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, hidden, generator=g, dtype=torch.float64).to(dtype)
    gate_up = (torch.randn(experts, 2 * width, hidden, generator=g, dtype=torch.float64) * 0.1).to(dtype)
    down = (torch.randn(experts, hidden, width, generator=g, dtype=torch.float64) * 0.1).to(dtype)
    logits = torch.randn(tokens, experts + zero, generator=g)
    bias = torch.randn(experts + zero, generator=g) * 0.05
    e = experts + zero
    return x, moe_route(logits, bias, top_k=top_k, num_experts=e, num_zero_experts=zero, scale=6.0), gate_up, down


def loop(x, routing, gate_up, down):
    """fp64, one token and one choice at a time."""
    x, gate_up, down = x.double(), gate_up.double(), down.double()
    out = torch.zeros_like(x)
    for t, ids in enumerate(routing.ids.tolist()):
        for k, e in enumerate(ids):
            if e >= 0:
                gate, up = (gate_up[e] @ x[t]).chunk(2)
                out[t] += routing.weights[t, k].double() * (down[e] @ (gate / (1 + (-gate).exp()) * up))
        out[t] += routing.zero_weight[t].double() * x[t]
    return out


def relative(got, want):
    return ((got.double() - want).norm() / want.norm()).item() if want.numel() else 0.0


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-7), (torch.float32, 1e-6), (torch.bfloat16, 6e-3)])
def test_dense(tokens, dtype, limit):
    x, routing, gate_up, down = make(tokens, dtype=dtype)
    out = fused_moe(x, routing, gate_up, down)
    assert out.dtype == dtype
    assert out.shape == x.shape
    assert relative(out, loop(x, routing, gate_up, down)) <= limit


def test_dense_against_hf():
    reference, c = hf.build()
    layer = reference.model.layers[0].mlp
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        logits, _, _ = layer.router(x)
        want = layer(x[None])[0]
        routing = moe_route(
            logits, layer.router.e_score_correction_bias, top_k=c.moe_topk, num_experts=c.num_experts,
            num_zero_experts=c.zero_expert_num, scale=c.routed_scaling_factor,
        )  # fmt: skip
        gate_up = layer.experts.gate_up_proj[: c.n_routed_experts]
        got = fused_moe(x, routing, gate_up, layer.experts.down_proj)
    assert (got - want).abs().max() <= 1e-5
    assert want.abs().max() > 5


def quantised(gate_up, down):
    """FP8 pairs; the blocks of gate_up restart at the first up row."""
    width = gate_up.shape[1] // 2
    pairs = [[per_block_quant_fp8(half) for half in w.split(width)] for w in gate_up]
    q = torch.stack([torch.cat([a[0], b[0]]) for a, b in pairs])
    s = torch.stack([torch.cat([a[1], b[1]]) for a, b in pairs])
    d = [per_block_quant_fp8(w) for w in down]
    return (q, s), (torch.stack([w for w, _ in d]), torch.stack([s for _, s in d]))


def fp8_loop(x, routing, gate_up, down):
    """The loop on dequantised fp64 weights, quantising 1x128 where the chain does: x, and the SwiGLU output."""
    (q, s), (dq, ds) = gate_up, down
    width = q.shape[1] // 2
    blocks = s.shape[1] // 2
    xq = dequant_fp8(*per_token_group_quant_fp8(x), torch.float32).double()
    out = torch.zeros_like(x, dtype=torch.float64)
    for t, ids in enumerate(routing.ids.tolist()):
        for k, e in enumerate(ids):
            if e < 0:
                continue
            gate = dequant_fp8(q[e, :width], s[e, :blocks], torch.float32).double() @ xq[t]
            up = dequant_fp8(q[e, width:], s[e, blocks:], torch.float32).double() @ xq[t]
            h = (F.silu(gate) * up).float()[None]
            h = dequant_fp8(*per_token_group_quant_fp8(h), torch.float32)[0].double()
            out[t] += routing.weights[t, k].double() * (dequant_fp8(dq[e], ds[e], torch.float32).double() @ h)
        out[t] += routing.zero_weight[t].double() * x[t].double()
    return out


@pytest.mark.parametrize(("hidden", "width"), [(128, 128), (576, 160), (160, 48), (256, 200)])
@pytest.mark.parametrize("tokens", [1, 8, 9, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8(hidden, width, tokens, dtype):
    x, routing, gate_up, down = make(tokens, hidden, width, experts=4, dtype=dtype)
    weights = quantised(gate_up.float(), down.float())
    out = fused_moe(x, routing, *weights)
    assert out.dtype == dtype
    # An fp32 sum next to a rounding edge of e4m3 may take the other side in fp64: one step of one element of h.
    assert relative(out, fp8_loop(x, routing, *weights)) <= (2e-3 if dtype == torch.float32 else 5e-3)
    exact = loop(x, routing, gate_up, down)
    assert 5e-3 < relative(out, exact) < 9e-2  # FP8 happened: e4m3 keeps 3 bits, 2.6 % rms, of four operands


@pytest.mark.parametrize("fp8_half", ["gate_up", "down"])
def test_one_weight_fp8_and_the_other_dense(fp8_half):
    x, routing, gate_up, down = make(12, 128, 128)
    pairs = quantised(gate_up, down)
    if fp8_half == "gate_up":
        out = fused_moe(x, routing, pairs[0], down)
    else:
        out = fused_moe(x, routing, gate_up, pairs[1])
    assert 2e-3 < relative(out, loop(x, routing, gate_up, down)) < 5e-2


@pytest.mark.parametrize("fp8", [False, True])
def test_few_and_many_tokens_agree(fp8):
    """T <= 8 runs every expert on all rows, T > 8 gathers: the same sums, in the same order."""
    x, routing, gate_up, down = make(24, 128, 96, dtype=torch.float64 if not fp8 else torch.float32)
    weights = quantised(gate_up, down) if fp8 else (gate_up, down)
    whole = fused_moe(x, routing, *weights)
    for a in (0, 8, 16):
        rows = slice(a, a + 8)
        part = Routing(*(t[rows] for t in routing[:4]), routing.counts, routing.errors)
        few = fused_moe(x[rows], part, *weights)
        assert relative(few, whole[rows].double()) <= (1e-6 if fp8 else 1e-14)


def one_row(ids, weights, zero_weight, experts=3):
    ids = torch.tensor([ids], dtype=torch.int32)
    counts, errors = torch.zeros(experts, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    return Routing(ids, torch.tensor([weights]), torch.tensor([zero_weight]), (ids >= 0).sum(-1).byte(), counts, errors)


@pytest.mark.parametrize("tokens", [1, 9])
def test_a_row_without_real_experts_is_the_scaled_input_once(tokens):
    x, _, gate_up, down = make(tokens, experts=3)
    routing = one_row([-1, -1, -1], [0.0, 0.0, 0.0], 4.5)
    routing = Routing(*(t.repeat(tokens, *[1] * (t.dim() - 1)) for t in routing[:4]), *routing[4:])
    assert torch.equal(fused_moe(x, routing, gate_up, down), x * 4.5)


@pytest.mark.parametrize("tokens", [1, 9])
def test_minus_one_never_indexes(tokens):
    """The last expert, which -1 would mean to an index, is NaN; so are the weights of a slot that holds no expert."""
    x, _, gate_up, down = make(tokens, experts=3)
    gate_up[2], down[2] = torch.nan, torch.nan
    routing = one_row([-1, 0, -1, 1], [torch.nan, 1.5, torch.nan, 0.5], 0.25)
    routing = Routing(*(t.repeat(tokens, *[1] * (t.dim() - 1)) for t in routing[:4]), *routing[4:])
    out = fused_moe(x, routing, gate_up, down)
    clean = Routing(routing.ids, routing.weights.nan_to_num(), *routing[2:])
    assert relative(out, loop(x, clean, gate_up, down)) <= 1e-6


def test_a_nan_row_stays_in_its_row():
    x, routing, gate_up, down = make(20)
    clean = fused_moe(x, routing, gate_up, down)
    logits, bias = torch.randn(20, 9, generator=torch.Generator().manual_seed(9)), torch.zeros(9)
    call = dict(top_k=4, num_experts=9, num_zero_experts=3, scale=6.0)
    clean = fused_moe(x, moe_route(logits, bias, **call), gate_up, down)
    logits[4, 2] = torch.nan
    out = fused_moe(x, moe_route(logits, bias, **call), gate_up, down)
    assert out[4].isnan().all()
    others = [t for t in range(20) if t != 4]
    assert torch.allclose(out[others], clean[others], rtol=1e-5, atol=1e-5)


def test_padding_rows_are_zero():
    x, _, gate_up, down = make(8)
    logits = torch.randn(8, 9, generator=torch.Generator().manual_seed(2))
    routing = moe_route(logits, torch.zeros(9), top_k=4, num_experts=9, num_zero_experts=3, scale=6.0, num_valid=3)
    out = fused_moe(x, routing, gate_up, down)
    assert not out[3:].any()
    assert relative(out[:3], loop(x, routing, gate_up, down)[:3]) <= 1e-6


def test_rows_do_not_depend_on_their_neighbours_bit_for_bit():
    """Up to 8 rows: one GEMM shape whatever experts the other rows chose."""
    for dtype in (torch.float32, torch.bfloat16):
        x, routing, gate_up, down = make(8, 256, 128, experts=16, zero=8, dtype=dtype)
        whole = fused_moe(x, routing, gate_up, down)
        other_x, other, _, _ = make(8, 256, 128, experts=16, zero=8, dtype=dtype, seed=1)
        for t in range(8):
            mixed_x = other_x.clone()
            mixed_x[t] = x[t]
            mixed = [b.clone() for b in other]
            for a, b in zip(routing[:4], mixed[:4], strict=True):
                b[t] = a[t]
            assert torch.equal(fused_moe(mixed_x, Routing(*mixed), gate_up, down)[t], whole[t])


def test_bad_arguments():
    x, routing, gate_up, down = make(5)
    cases = [
        ((x[:4], routing, gate_up, down), r"`x` is \[4, 64\], expected \[T,H\] with T = 5"),
        ((x[0], routing, gate_up, down), r"`x` is \[64\], expected \[T,H\]"),
        ((x, routing, gate_up[..., :-1], down), r"`w_gate_up` is \[6, 96, 63\], expected \[G, 2I, H=64\]"),
        ((x, routing, gate_up[:, :-1], down), r"`w_gate_up` is \[6, 95, 64\], expected \[G, 2I, H=64\]"),
        ((x, routing, gate_up[0], down), r"`w_gate_up` is \[96, 64\], expected \[G, 2I, H=64\]"),
        ((x, routing, gate_up, down[:5]), r"`w_down` is \[5, 64, 48\], expected \[6, 64, 48\]"),
        ((x, routing, gate_up, down.mT), r"`w_down` is \[6, 48, 64\], expected \[6, 64, 48\]"),
        ((x, routing, gate_up[:2], down[:2]), r"`routing.ids` is up to 5, expected -1 .. 1"),
    ]
    for arguments, text in cases:
        with pytest.raises(LongcatShapeError, match=f"fused_moe: argument {text}"):
            fused_moe(*arguments)
    (q, s), pair = quantised(*make(1, 128, 96)[2:])
    x, routing, _, _ = make(5, 128, 96)
    with pytest.raises(LongcatShapeError, match=r"`w_gate_up scales` is \[6, 1, 1\], expected \[6, 2, 1\]"):
        fused_moe(x, routing, (q, s[:, :1]), pair)

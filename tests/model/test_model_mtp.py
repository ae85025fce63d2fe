"""The MTP head agrees with its definition, written out in plain fp64, and its cache survives drafts."""

from __future__ import annotations

import pytest
import torch

from longcat_ops import generate
from support import models
from support.decoding import on_drafts


def rms(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def turn(x, theta):
    """RoPE of [n,h,d]: pair (2j, 2j+1) of row p by the angle p * theta^(-2j/d)."""
    n, _, d = x.shape
    out = x.clone()
    for p in range(n):
        for j in range(d // 2):
            angle = torch.tensor(p, dtype=torch.float32) * (1.0 / theta ** (torch.tensor(2.0 * j) / d))
            cos, sin = angle.cos().double(), angle.sin().double()
            a, b = x[p, :, 2 * j], x[p, :, 2 * j + 1]
            out[p, :, 2 * j], out[p, :, 2 * j + 1] = a * cos - b * sin, a * sin + b * cos
    return out


def attention(w, c, x):
    """MLA of one sequence from its definition: keys and values of every head, row by row, position by position."""
    n, heads, nope, rope = len(x), c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim
    q = rms(x @ w["q_a_proj"].T, w["q_a_layernorm"], c.lora_norm_eps) * (c.hidden_size / c.q_lora_rank) ** 0.5
    q = (q @ w["q_b_proj"].T).view(n, heads, nope + rope)
    latent, k_rope = (x @ w["kv_a_proj_with_mqa"].T).split([c.kv_lora_rank, rope], -1)
    latent = rms(latent, w["kv_a_layernorm"], c.lora_norm_eps) * (c.hidden_size / c.kv_lora_rank) ** 0.5
    k_nope, v = (latent @ w["kv_b_proj"].T).view(n, heads, -1).split([nope, c.v_head_dim], -1)
    q_rope, k_rope = turn(q[..., nope:], c.rope_theta), turn(k_rope[:, None], c.rope_theta)
    out = torch.zeros(n, heads, c.v_head_dim, dtype=torch.float64)
    for p in range(n):
        for h in range(heads):
            scores = k_nope[: p + 1, h] @ q[p, h, :nope] + k_rope[: p + 1, 0] @ q_rope[p, h]
            out[p, h] = (scores / (nope + rope) ** 0.5).softmax(-1) @ v[: p + 1, h]
    return out.flatten(1) @ w["o_proj"].T


def mtp(tensors, c, next_ids, hidden):
    prefix = "model.mtp.layers.0."
    t = {n.removesuffix(".weight"): v.double() for n, v in tensors.items()}
    w = {n.removeprefix(prefix): v for n, v in t.items() if n.startswith(prefix)}
    attn = {n.removeprefix("self_attn."): v for n, v in w.items() if n.startswith("self_attn.")}
    eps = c.rms_norm_eps
    embedding = t.get("model.mtp.embed_tokens", t["model.embed_tokens"])[next_ids]
    z = torch.cat([rms(embedding, w["enorm.m"], eps), rms(hidden, w["hnorm.m"], eps)], -1) @ w["eh_proj"].T
    z = z + attention(attn, c, rms(z, w["input_layernorm"], eps))
    y = rms(z, w["post_attention_layernorm"], eps)
    gate, up = (y @ w[f"transformer_layer.mlp.{part}_proj"].T for part in ("gate", "up"))
    z = z + (gate / (1 + (-gate).exp()) * up) @ w["transformer_layer.mlp.down_proj"].T
    return rms(z, t["model.mtp.norm"], eps)


def network(dtype, **options):
    from longcat_ops import LongcatFlashForCausalLM

    c = models.config(num_layers=1)
    tensors = models.tensors(c, **options)
    return LongcatFlashForCausalLM.from_state_dict(c, tensors, dtype), tensors


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 5e-5)])
def test_against_the_definition(dtype, limit, own, monkeypatch):
    monkeypatch.setattr("longcat_ops.model.passes.CHUNK", 16)
    model, tensors = network(dtype, mtp_embedding=own)
    ids = models.prompt(30)
    cache = model.new_cache(1, 40)
    _, hidden = model(ids[None, :29], cache, return_hidden=True)
    hidden, following = hidden[0], ids[1:]
    want = mtp(tensors, model.config, following, hidden.double())
    whole = model.draft_prefill(cache, 0, following, hidden)
    parts = [model.draft_prefill(cache, 0, following[:20], hidden[:20])]
    for a, b in ((20, 21), (21, 23), (23, 29)):  # decode passes of one, two and six rows
        parts.append(model.draft_decode(cache, [0] * (b - a), list(range(a, b)), following[a:b], hidden[a:b]))
    assert want.std() > 0.1
    for got in (whole, torch.cat(parts)):
        assert (got.double() - want).abs().max() <= limit


def test_drafts_of_generate_follow_the_definition(monkeypatch):
    """Through acceptances and roll-backs, each draft is the head's argmax over the whole accepted text."""
    model, tensors = network(torch.float64)
    drafts = []

    def choose(s, draft):
        if draft is not None:
            drafts.append((list(s.ids), draft))
            # Every other draft is corrected, so that both kept and rolled-back rows occur.
            if len(drafts) % 2:
                return int(model(torch.tensor([s.ids]))[0, -1].argmax())
        return None

    on_drafts(monkeypatch, choose)
    out = generate(model, [models.prompt(58)], 14, eos_token_id=-1)
    assert 0 < out.accepted[0] < out.drafted[0]
    for ids, draft in drafts:
        ids = torch.tensor(ids)
        _, hidden = model(ids[None, :-1], return_hidden=True)
        rows = mtp(tensors, model.config, ids[1:], hidden[0])
        assert draft == int((rows[-1] @ tensors["lm_head.weight"].double().T).argmax())

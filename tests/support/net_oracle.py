"""An independent oracle of the whole network: a small config, its tensors under the published names, its checkpoint
folder, and its logits in fp64 numpy. It shares nothing with the library.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

Shape = tuple[int, ...]

BASE: dict[str, Any] = dict(
    architectures=["LongcatFlashForCausalLM"], model_type="longcat_flash", vocab_size=97, hidden_size=64, num_layers=2,
    num_attention_heads=2, q_lora_rank=32, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, head_dim=8,
    v_head_dim=16, ffn_hidden_size=64, expert_ffn_hidden_size=32, n_routed_experts=16, zero_expert_num=8,
    zero_expert_type="identity", moe_topk=5, routed_scaling_factor=3.0, rms_norm_eps=1e-5, rope_theta=10000.0,
    mla_scale_q_lora=True, mla_scale_kv_lora=True, max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
    attention_method="MLA", torch_dtype="float32",
)  # fmt: skip
LORA_EPS = 1e-6  # of the norms of the two latents


def _attention(c: dict[str, Any], p: str) -> dict[str, Shape]:
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
    q_rank, kv_rank = c["q_lora_rank"], c["kv_lora_rank"]
    return {
        f"{p}.q_a_proj.weight": (q_rank, hidden),
        f"{p}.q_a_layernorm.weight": (q_rank,),
        f"{p}.q_b_proj.weight": (heads * (nope + rope), q_rank),
        f"{p}.kv_a_proj_with_mqa.weight": (kv_rank + rope, hidden),
        f"{p}.kv_a_layernorm.weight": (kv_rank,),
        f"{p}.kv_b_proj.weight": (heads * (nope + value), kv_rank),
        f"{p}.o_proj.weight": (hidden, heads * value),
    }


def ffn(p: str, width: int, hidden: int) -> dict[str, Shape]:
    """The three projections of one dense FFN or expert."""
    return {
        f"{p}.gate_proj.weight": (width, hidden),
        f"{p}.up_proj.weight": (width, hidden),
        f"{p}.down_proj.weight": (hidden, width),
    }


def shapes(c: dict[str, Any], *, mtp: bool = False) -> dict[str, Shape]:
    """Name -> shape of every tensor, written from the published index; the MTP head has its own embedding."""
    hidden, vocab, width = c["hidden_size"], c["vocab_size"], c["ffn_hidden_size"]
    experts, zero = c["n_routed_experts"], c["zero_expert_num"]
    found = {"model.embed_tokens.weight": (vocab, hidden), "lm_head.weight": (vocab, hidden)}
    found["model.norm.weight"] = (hidden,)
    for layer in range(c["num_layers"]):
        p = f"model.layers.{layer}"
        for i in (0, 1):
            found |= _attention(c, f"{p}.self_attn.{i}") | ffn(f"{p}.mlps.{i}", width, hidden)
            found |= {f"{p}.{n}.{i}.weight": (hidden,) for n in ("input_layernorm", "post_attention_layernorm")}
        found[f"{p}.mlp.router.classifier.weight"] = (experts + zero, hidden)
        found[f"{p}.mlp.router.e_score_correction_bias"] = (experts + zero,)
        for e in range(experts):
            found |= ffn(f"{p}.mlp.experts.{e}", c["expert_ffn_hidden_size"], hidden)
    if mtp:
        p = "model.mtp.layers.0"
        found |= _attention(c, f"{p}.self_attn") | ffn(f"{p}.transformer_layer.mlp", width, hidden)
        norms = ("enorm.m", "hnorm.m", "input_layernorm", "post_attention_layernorm")
        found |= {f"{p}.{n}.weight": (hidden,) for n in norms} | {f"{p}.eh_proj.weight": (hidden, 2 * hidden)}
        found |= {"model.mtp.norm.weight": (hidden,), "model.mtp.embed_tokens.weight": (vocab, hidden)}
    return found


def tensors(c: dict[str, Any], seed: int = 0, *, mtp: bool = False, std: float = 0.15) -> dict[str, Tensor]:
    """Random f32 tensors: norms in [0.5, 1.5], a router of spread logits, a bias that moves choices."""
    g = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes(c, mtp=mtp).items():
        if "norm" in name:
            found[name] = 0.5 + torch.rand(shape, generator=g)
        else:
            spread = 0.5 if "router.classifier" in name else 0.02 if "bias" in name else std
            found[name] = spread * torch.randn(shape, generator=g)
    return found


def write(folder: str | Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Path:
    """A checkpoint folder: config.json and one safetensors file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: t.contiguous() for name, t in weights.items()}, folder / "model.safetensors")
    return folder


def _norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _rotate(x: np.ndarray, theta: float) -> np.ndarray:
    """Row i of x [S,heads,d] at position i: pair (2j, 2j+1) turned by i * theta^(-2j/d)."""
    length, _, d = x.shape
    angles = np.arange(length)[:, None, None] / theta ** (np.arange(0, d, 2) / d)
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)


class Network:
    """Every projection goes through `linear`."""

    def __init__(self, c: dict[str, Any], weights: dict[str, Tensor], topk: int, theta: float) -> None:
        self.c, self.topk, self.theta = c, topk, theta
        self.w = {name: t.double().numpy() for name, t in weights.items()}

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.w[f"{name}.weight"].T

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return _norm(x, self.w[f"{name}.weight"], self.c["rms_norm_eps"])

    def ffn(self, x: np.ndarray, p: str) -> np.ndarray:
        gate = self.linear(x, f"{p}.gate_proj")
        return self.linear(gate / (1 + np.exp(-gate)) * self.linear(x, f"{p}.up_proj"), f"{p}.down_proj")

    def attention(self, x: np.ndarray, p: str) -> np.ndarray:
        c, length, heads = self.c, len(x), self.c["num_attention_heads"]
        nope, rank = c["qk_nope_head_dim"], c["kv_lora_rank"]
        q_gain = math.sqrt(c["hidden_size"] / c["q_lora_rank"]) if c["mla_scale_q_lora"] else 1.0
        kv_gain = math.sqrt(c["hidden_size"] / rank) if c["mla_scale_kv_lora"] else 1.0
        latent = _norm(self.linear(x, f"{p}.q_a_proj"), self.w[f"{p}.q_a_layernorm.weight"], LORA_EPS)
        q = q_gain * self.linear(latent, f"{p}.q_b_proj").reshape(length, heads, -1)
        both = self.linear(x, f"{p}.kv_a_proj_with_mqa")
        latent = kv_gain * _norm(both[:, :rank], self.w[f"{p}.kv_a_layernorm.weight"], LORA_EPS)
        kv = self.linear(latent, f"{p}.kv_b_proj").reshape(length, heads, -1)
        k_rope = np.repeat(_rotate(both[:, None, rank:], self.theta), heads, 1)
        q = np.concatenate([q[..., :nope], _rotate(q[..., nope:], self.theta)], -1)
        k = np.concatenate([kv[..., :nope], k_rope], -1)
        scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
        scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
        out = np.einsum("hqk,khd->qhd", _softmax(scores), kv[..., nope:]).reshape(length, -1)
        return self.linear(out, f"{p}.o_proj")

    def moe(self, x: np.ndarray, p: str) -> np.ndarray:
        """Zero experts return their input; a weight is the softmax score, and the bias affects only the choice."""
        scores = _softmax(self.linear(x, f"{p}.router.classifier"))
        biased = scores + self.w[f"{p}.router.e_score_correction_bias"]
        chosen = np.argsort(-biased, axis=-1, kind="stable")[:, : self.topk]
        out = np.zeros_like(x)
        for t, experts in enumerate(chosen):
            for e in experts:
                value = x[t] if e >= self.c["n_routed_experts"] else self.ffn(x[t], f"{p}.experts.{e}")
                out[t] += self.c["routed_scaling_factor"] * scores[t, e] * value
        return out

    def layer(self, x: np.ndarray, p: str) -> np.ndarray:
        h = x + self.attention(self.norm(x, f"{p}.input_layernorm.0"), f"{p}.self_attn.0")
        y = self.norm(h, f"{p}.post_attention_layernorm.0")
        shortcut = self.moe(y, f"{p}.mlp")
        h = h + self.ffn(y, f"{p}.mlps.0")
        h = h + self.attention(self.norm(h, f"{p}.input_layernorm.1"), f"{p}.self_attn.1")
        return h + self.ffn(self.norm(h, f"{p}.post_attention_layernorm.1"), f"{p}.mlps.1") + shortcut


def forward64(c: dict[str, Any], weights: dict[str, Tensor], ids: list[int], *, topk: int | None = None,
              theta: float | None = None) -> np.ndarray:  # fmt: skip
    """Logits f64[S,V] of one sequence; topk and theta override those of the config."""
    net = Network(c, weights, c["moe_topk"] if topk is None else topk, c["rope_theta"] if theta is None else theta)
    x = net.w["model.embed_tokens.weight"][np.asarray(ids)]
    for i in range(c["num_layers"]):
        x = net.layer(x, f"model.layers.{i}")
    return net.linear(net.norm(x, "model.norm"), "lm_head")

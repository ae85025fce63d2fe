"""The tiny LongCat-Flash network as a lean function over a dict of tensors.

Parameter names are the published checkpoint names, except that the experts of a layer are stacked for training:
`model.layers.N.mlp.experts.gate_up_proj` [experts, 2 * width, hidden] and `.down_proj` [experts, hidden, width].
The functions work in the dtype of the parameters: bf16 while training, f32 while evaluating.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

TINY_CONFIG = {
    "architectures": ["LongcatFlashForCausalLM"],
    "model_type": "longcat_flash",
    "attention_method": "MLA",
    "attention_bias": False,
    "vocab_size": 1024,
    "hidden_size": 256,
    "num_layers": 2,
    "num_attention_heads": 4,
    "q_lora_rank": 128,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "head_dim": 32,
    "v_head_dim": 64,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
    "ffn_hidden_size": 512,
    "expert_ffn_hidden_size": 128,
    "n_routed_experts": 32,
    "zero_expert_num": 16,
    "zero_expert_type": "identity",
    "moe_topk": 6,
    "routed_scaling_factor": 4.0,
    "norm_topk_prob": False,
    "router_bias": False,
    "num_nextn_predict_layers": 1,
    "rms_norm_eps": 1e-5,
    "lora_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "max_position_embeddings": 2048,
    "initializer_range": 0.05,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

MTP = "model.mtp.layers.0."
_BIAS = "e_score_correction_bias"


def _mla_shapes(prefix: str, config: dict) -> dict[str, tuple[int, ...]]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    q_rank, kv_rank = config["q_lora_rank"], config["kv_lora_rank"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    return {
        prefix + "q_a_proj.weight": (q_rank, hidden),
        prefix + "q_a_layernorm.weight": (q_rank,),
        prefix + "q_b_proj.weight": (heads * (nope + rope), q_rank),
        prefix + "kv_a_proj_with_mqa.weight": (kv_rank + rope, hidden),
        prefix + "kv_a_layernorm.weight": (kv_rank,),
        prefix + "kv_b_proj.weight": (heads * (nope + value), kv_rank),
        prefix + "o_proj.weight": (hidden, heads * value),
    }


def _ffn_shapes(prefix: str, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        prefix + "gate_proj.weight": (width, hidden),
        prefix + "up_proj.weight": (width, hidden),
        prefix + "down_proj.weight": (hidden, width),
    }


def parameter_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that the trainer holds, router biases included."""
    hidden, width, expert_width = config["hidden_size"], config["ffn_hidden_size"], config["expert_ffn_hidden_size"]
    experts, slots = config["n_routed_experts"], config["n_routed_experts"] + config["zero_expert_num"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_layers"]):
        prefix = f"model.layers.{layer}."
        for half in (0, 1):
            shapes[f"{prefix}input_layernorm.{half}.weight"] = (hidden,)
            shapes[f"{prefix}post_attention_layernorm.{half}.weight"] = (hidden,)
            shapes |= _mla_shapes(f"{prefix}self_attn.{half}.", config)
            shapes |= _ffn_shapes(f"{prefix}mlps.{half}.", hidden, width)
        shapes[prefix + "mlp.experts.gate_up_proj"] = (experts, 2 * expert_width, hidden)
        shapes[prefix + "mlp.experts.down_proj"] = (experts, hidden, expert_width)
        shapes[prefix + "mlp.router.classifier.weight"] = (slots, hidden)
        shapes[f"{prefix}mlp.router.{_BIAS}"] = (slots,)
    shapes["model.norm.weight"] = (hidden,)
    shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for name in ("enorm.m", "hnorm.m", "input_layernorm", "post_attention_layernorm"):
        shapes[f"{MTP}{name}.weight"] = (hidden,)
    shapes[MTP + "eh_proj.weight"] = (hidden, 2 * hidden)
    shapes |= _mla_shapes(MTP + "self_attn.", config)
    shapes |= _ffn_shapes(MTP + "transformer_layer.mlp.", hidden, width)
    shapes["model.mtp.norm.weight"] = (hidden,)
    return shapes


def initial_parameters(config: dict, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """f32 start values: norms 1, biases 0, matrices normal; what writes into the residual stream starts smaller."""
    parameters = {}
    for name, shape in parameter_shapes(config).items():
        if name.endswith(_BIAS):
            parameters[name] = torch.zeros(shape)
        elif len(shape) == 1:
            parameters[name] = torch.ones(shape)
        else:
            value = torch.randn(shape, generator=generator) * config["initializer_range"]
            if "o_proj" in name or "down_proj" in name:
                value /= math.sqrt(4 * config["num_layers"])
            parameters[name] = value
    return parameters


class _RmsNorm(torch.autograd.Function):
    """RMSNorm with f32 statistics whose backward keeps only the normalised row."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
        normed = (x.float() * scale).to(x.dtype)
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    def backward(ctx, grad):
        normed, scale, weight = ctx.saved_tensors
        grad_weight = (grad * normed).flatten(0, -2).sum(0)
        grad_normed = grad * weight
        mean = (grad_normed * normed).float().mean(-1, keepdim=True).to(grad.dtype)
        return (grad_normed - normed * mean) * scale.to(grad.dtype), grad_weight, None


class _SiluAndMul(torch.autograd.Function):
    """silu(gate) * up; the backward recomputes the sigmoid instead of storing it."""

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        return (grad * up) * (sigmoid + silu - silu * sigmoid), grad * silu


def _rotate(x, cos, sin):
    """RoPE on interleaved pairs (2i, 2i + 1) of the last dimension."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)


@dataclass
class TinyOutput:
    hidden: torch.Tensor  # [B, S, H] after the final norm
    mtp_hidden: torch.Tensor  # [B, S, H] after the MTP norm
    counts: list[torch.Tensor]  # per layer, tokens per expert [N + Z]
    chosen: list[torch.Tensor]  # per layer, experts of each token [B * S, top_k]


class TinyLongcat:
    """The forward pass over `parameters`; holds nothing else but the configuration and the RoPE table."""

    def __init__(self, parameters: dict[str, torch.Tensor], config: dict):
        self.parameters, self.config = parameters, config
        rope = config["qk_rope_head_dim"]
        inverse = config["rope_theta"] ** -(torch.arange(0, rope, 2, dtype=torch.float32) / rope)
        angles = torch.outer(torch.arange(config["max_position_embeddings"], dtype=torch.float32), inverse)
        dtype = parameters["model.embed_tokens.weight"].dtype
        self.cos, self.sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def norm(self, x, name, eps=None):
        return _RmsNorm.apply(x, self.parameters[name + ".weight"], eps or self.config["rms_norm_eps"])

    def linear(self, x, name):
        return F.linear(x, self.parameters[name + ".weight"])

    def logits(self, hidden):
        return self.linear(hidden, "lm_head")

    def attention(self, x, prefix):
        config, (batch, length, hidden) = self.config, x.shape
        heads, kv_rank = config["num_attention_heads"], config["kv_lora_rank"]
        nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
        q_scale, kv_scale = math.sqrt(hidden / config["q_lora_rank"]), math.sqrt(hidden / kv_rank)
        eps = config["lora_norm_eps"]
        q = self.norm(self.linear(x, prefix + "q_a_proj"), prefix + "q_a_layernorm", eps)
        q_nope, q_rope = self.linear(q, prefix + "q_b_proj").view(batch, length, heads, -1).split([nope, rope], -1)
        latent, k_rope = self.linear(x, prefix + "kv_a_proj_with_mqa").split([kv_rank, rope], -1)
        latent = self.norm(latent, prefix + "kv_a_layernorm", eps) * kv_scale
        kv = self.linear(latent, prefix + "kv_b_proj").view(batch, length, heads, -1)
        k_nope, v = kv.split([nope, value], -1)
        cos, sin = self.cos[:length, None], self.sin[:length, None]
        q = torch.cat((q_nope, _rotate(q_rope, cos, sin)), -1).transpose(1, 2)
        k_rope = _rotate(k_rope[:, :, None], cos, sin).expand(batch, length, heads, rope)
        k = torch.cat((k_nope, k_rope), -1).transpose(1, 2)
        v = F.pad(v, (0, nope + rope - value)).transpose(1, 2)  # equal widths select the fused CPU kernel
        # q_scale multiplies the whole query, so it may as well join the softmax scale.
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=q_scale * (nope + rope) ** -0.5)
        return self.linear(out[..., :value].transpose(1, 2).reshape(batch, length, heads * value), prefix + "o_proj")

    def ffn(self, x, prefix):
        gated = _SiluAndMul.apply(self.linear(x, prefix + "gate_proj"), self.linear(x, prefix + "up_proj"))
        return self.linear(gated, prefix + "down_proj")

    def moe(self, x, prefix):
        """Every expert is padded to one capacity, a multiple of 128: oneDNN is slow on row counts it has not seen."""
        parameters, config = self.parameters, self.config
        experts, top_k = config["n_routed_experts"], config["moe_topk"]
        rows = x.reshape(-1, x.shape[-1])
        scores = F.linear(rows.float(), parameters[prefix + "router.classifier.weight"].float()).softmax(-1)
        chosen = torch.topk(scores.detach() + parameters[prefix + "router." + _BIAS], top_k, -1, sorted=False)[1]
        weights = scores.gather(1, chosen) * config["routed_scaling_factor"]
        flat = chosen.reshape(-1)
        counts = torch.bincount(flat, minlength=scores.shape[1])
        capacity = (int(counts[:experts].max()) + 127) // 128 * 128
        order = torch.argsort(flat, stable=True)[: int(counts[:experts].sum())]
        token, expert = order // top_k, flat[order]
        slot = expert * capacity + torch.arange(len(order)) - (counts.cumsum(0) - counts)[expert]
        packed = rows.new_zeros(experts * capacity, rows.shape[1])
        packed = packed.index_copy(0, slot, rows.index_select(0, token)).view(experts, capacity, -1)
        gate_up = torch.bmm(packed, parameters[prefix + "experts.gate_up_proj"].transpose(1, 2))
        out = torch.bmm(
            _SiluAndMul.apply(*gate_up.chunk(2, -1)), parameters[prefix + "experts.down_proj"].transpose(1, 2)
        ).view(experts * capacity, -1)
        out = out.index_select(0, slot) * weights.reshape(-1).index_select(0, order)[:, None].to(x.dtype)
        zero_weight = (weights * (chosen >= experts)).sum(-1, keepdim=True).to(x.dtype)
        return (rows * zero_weight).index_add(0, token, out).view(x.shape), counts, chosen

    def mtp(self, embedded, hidden):
        """One draft step: `embedded` are the tokens after those that gave `hidden`; the result is normed."""
        joined = torch.cat((self.norm(embedded, MTP + "enorm.m"), self.norm(hidden, MTP + "hnorm.m")), -1)
        x = self.linear(joined, MTP + "eh_proj")
        x = x + self.attention(self.norm(x, MTP + "input_layernorm"), MTP + "self_attn.")
        x = x + self.ffn(self.norm(x, MTP + "post_attention_layernorm"), MTP + "transformer_layer.mlp.")
        return self.norm(x, "model.mtp.norm")

    def __call__(self, ids: torch.Tensor) -> TinyOutput:
        """`ids` [B, S + 1]: S positions for the target, and one token more for the MTP head's input."""
        embedded = F.embedding(ids, self.parameters["model.embed_tokens.weight"])
        x, counts, chosen = embedded[:, :-1], [], []
        for layer in range(self.config["num_layers"]):
            prefix = f"model.layers.{layer}."
            x = x + self.attention(self.norm(x, prefix + "input_layernorm.0"), prefix + "self_attn.0.")
            routed = self.norm(x, prefix + "post_attention_layernorm.0")
            shortcut, layer_counts, layer_chosen = self.moe(routed, prefix + "mlp.")
            x = x + self.ffn(routed, prefix + "mlps.0.")
            x = x + self.attention(self.norm(x, prefix + "input_layernorm.1"), prefix + "self_attn.1.")
            x = x + self.ffn(self.norm(x, prefix + "post_attention_layernorm.1"), prefix + "mlps.1.") + shortcut
            counts.append(layer_counts)
            chosen.append(layer_chosen)
        hidden = self.norm(x, "model.norm")
        return TinyOutput(hidden, self.mtp(embedded[:, 1:], hidden), counts, chosen)

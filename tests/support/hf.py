"""HF transformers in memory: the independent oracle of the whole network."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers import LongcatFlashConfig as HFConfig
from transformers.models.longcat_flash import modeling_longcat_flash as hf

from longcat_ops import LongcatFlashConfig

BASE = dict(
    vocab_size=97, hidden_size=64, num_layers=2, num_attention_heads=4, max_position_embeddings=512, rms_norm_eps=1e-5,
    ffn_hidden_size=96, q_lora_rank=32, kv_lora_rank=24, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16,
    moe_topk=4, n_routed_experts=8, zero_expert_num=4, expert_ffn_hidden_size=48, routed_scaling_factor=6.0,
)  # fmt: skip


def build(seed: int = 0, dtype: torch.dtype = torch.float32, std: float = 0.1, attention: str = "eager", **changes):
    """(HF model, our config) with random weights; norms in [0.5, 1.5] and bias N(0, 0.05) make every factor matter."""
    torch.manual_seed(seed)
    settings = BASE | changes
    theta = settings.pop("rope_theta", 1e4)
    config = HFConfig(
        **settings, head_dim=settings["qk_rope_head_dim"], bos_token_id=1, eos_token_id=2, pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )  # fmt: skip
    config._attn_implementation = attention
    model = hf.LongcatFlashForCausalLM(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.uniform_(0.5, 1.5) if "norm" in name else p.normal_(0, std)
        for layer in model.model.layers:
            layer.mlp.router.classifier.weight.normal_(0, 0.5)
            layer.mlp.router.e_score_correction_bias.normal_(0, 0.05)
    if config.moe_topk == 1:
        for layer in model.model.layers:
            layer.mlp.experts.register_forward_pre_hook(_second_choice)
    inv_freq = model.model.rotary_emb.inv_freq.clone()
    keep_router_fp32(model.to(dtype))
    model.model.rotary_emb.inv_freq = inv_freq  # the cast above rounds it; the published model never does
    return model, LongcatFlashConfig.from_dict(settings | {"rope_theta": theta, "num_nextn_predict_layers": 0})


def _second_choice(experts, args):
    """HF's expert loop squeezes a single choice away; a second one of weight 0 changes no result."""
    x, chosen, weights = args
    return x, torch.cat([chosen, torch.where(chosen == 0, 1, 0)], 1), torch.cat([weights, weights * 0], 1)


def keep_router_fp32(model) -> None:
    """Lets the router compute in fp32, as the published model does; a bf16 cast of the module rounds both tensors."""
    for layer in model.model.layers:
        router = layer.mlp.router
        if router.classifier.weight.dtype == torch.bfloat16:
            router.classifier.float()
            router.e_score_correction_bias = router.e_score_correction_bias.float()


def published(model) -> dict[str, torch.Tensor]:
    """The HF state dict under the published names: experts one by one, no rows for zero experts."""
    tensors = {}
    for name, t in model.state_dict().items():
        prefix, _, kind = name.partition(".experts.")
        for e in range(model.config.n_routed_experts if kind else 0):
            if kind == "gate_up_proj":
                gate, up = t[e].chunk(2)
                tensors[f"{prefix}.experts.{e}.gate_proj.weight"] = gate
                tensors[f"{prefix}.experts.{e}.up_proj.weight"] = up
            else:
                tensors[f"{prefix}.experts.{e}.down_proj.weight"] = t[e]
        if not kind:
            tensors[name] = t
    return tensors


def compute_wide(monkeypatch, dtype: torch.dtype) -> None:
    """Makes HF's RMSNorm, router and softmax, which hard-code fp32, compute in `dtype`, so that an fp64 model is fp64
    throughout.
    """

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def route(self, x):
        logits = F.linear(x.view(-1, self.hidden_dim).to(dtype), self.classifier.weight.to(dtype))
        scores = logits.softmax(dim=-1)
        chosen = self.get_topk_indices(scores)
        return logits, scores.gather(1, chosen) * self.routed_scaling_factor, chosen

    def attend(module, query, key, value, attention_mask, scaling, dropout=0.0, **_):
        scores = query @ key.transpose(2, 3) * scaling
        if attention_mask is not None:
            scores = scores + attention_mask
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None

    monkeypatch.setattr(hf.LongcatFlashRMSNorm, "forward", norm)
    monkeypatch.setattr(hf.LongcatFlashTopkRouter, "forward", route)
    monkeypatch.setattr(hf, "eager_attention_forward", attend)

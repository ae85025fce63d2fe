"""Small random networks under the published tensor names, MTP head included."""

from __future__ import annotations

import torch

from longcat_ops import LongcatFlashConfig, LongcatFlashForCausalLM
from longcat_ops.loading.checkpoint import expected_tensors

BASE = dict(
    vocab_size=61, hidden_size=64, num_layers=2, num_attention_heads=4, q_lora_rank=32, kv_lora_rank=24,
    qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16, ffn_hidden_size=96, expert_ffn_hidden_size=48,
    n_routed_experts=6, zero_expert_num=3, moe_topk=3, rope_theta=1e4,
    max_position_embeddings=4096, eos_token_id=None, num_nextn_predict_layers=None,
)  # fmt: skip


def config(**changes) -> LongcatFlashConfig:
    return LongcatFlashConfig(**(BASE | changes))


def tensors(config, seed=0, *, mtp: bool = True, mtp_embedding: bool = False, std=0.1) -> dict[str, torch.Tensor]:
    """fp32 tensors with norms in [0.5, 1.5], a router of spread logits and a bias that moves choices."""
    g = torch.Generator().manual_seed(seed)
    found = {}
    for name, want in expected_tensors(config, mtp=mtp, mtp_embedding=mtp_embedding).items():
        t = torch.empty(want.shape)
        if "norm" in name:
            found[name] = t.uniform_(0.5, 1.5, generator=g)
        else:
            spread = 0.5 if "router.classifier" in name else 0.05 if "bias" in name else std
            found[name] = t.normal_(0, spread, generator=g)
    return found


def build(dtype: torch.dtype = torch.float32, seed=0, *, mtp: bool = True, precision=None, std=0.1, **changes):
    """A model of `config(**changes)`; precision "fp8" quantises every projection."""
    from longcat_ops.model.precision import Precision

    c = config(**changes)
    weights = tensors(c, seed, mtp=mtp, std=std)
    return LongcatFlashForCausalLM.from_state_dict(c, weights, dtype, precision=Precision(precision))


def prompt(length: int, seed: int = 0, vocab: int = BASE["vocab_size"]) -> torch.Tensor:
    return torch.randint(0, vocab, (length,), generator=torch.Generator().manual_seed(seed))

"""Published config.json files as transformers reads them, and checks that its model computes what they say."""

from __future__ import annotations

from typing import Any

from ...errors import LongcatUnsupportedError, message
from ...model.config_keys import ARCHITECTURE, MODEL_TYPE, MUST_BE_OFF

# The only values at which transformers' LongCat-Flash, or the MoE of this library in it, computes what the key says.
_COMPUTED = {
    "hidden_act": "silu", "norm_topk_prob": False, "router_bias": False, "zero_expert_type": "identity",
    "mla_scale_q_lora": True, "mla_scale_kv_lora": True, "lora_norm_eps": 1e-6,
}  # fmt: skip


def completed(raw: dict[str, Any]) -> dict[str, Any]:
    """A config.json of LongCat-Flash with the keys that transformers asks for; any other one as it is."""
    kind, names = raw.get("model_type"), raw.get("architectures")
    if kind != MODEL_TYPE and (kind is not None or names != [ARCHITECTURE]):
        return raw
    found = raw | {"model_type": MODEL_TYPE}
    scale = found.get("routed_scaling_factor")
    if isinstance(scale, int) and not isinstance(scale, bool):
        found["routed_scaling_factor"] = float(scale)
    if found.get("head_dim") is None and "qk_rope_head_dim" in found:
        found["head_dim"] = found["qk_rope_head_dim"]  # what transformers turns by RoPE; its default is 64
    return found


def check(config: Any) -> None:
    """Raises LongcatUnsupportedError for a transformers config of another network, or of sizes that no op takes."""
    values = config.to_dict()
    for name, only in _COMPUTED.items():
        got = values.get(name)
        if got is not None and got != only:
            context = "transformers computes as if it were that, whatever the key says"
            raise LongcatUnsupportedError(message("from_pretrained", name, repr(got), repr(only), context))
    for name, got in values.items():
        if MUST_BE_OFF.search(name) and got not in (None, False, 0, "", [], {}):
            raise LongcatUnsupportedError(message("from_pretrained", name, repr(got), "null, false or no such key"))
    _check_sizes(config)


def _check_sizes(config: Any) -> None:
    import torch

    from ...ops import supports
    from ...types import Routing

    def floats(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32, device="meta")

    zero, hidden = config.zero_expert_num or 0, config.hidden_size
    experts = config.n_routed_experts + zero
    route = dict(top_k=config.moe_topk, num_experts=experts, num_zero_experts=zero, scale=config.routed_scaling_factor)
    chosen = Routing(floats(1, 1).int(), floats(1, 1), floats(1), floats(1).byte(), floats(1).int(), floats(1).int())
    width = config.expert_ffn_hidden_size

    def fused(width: int, hidden: int) -> tuple[bool, str, str]:
        weights = floats(1, 2 * width, hidden), floats(1, hidden, width)
        return supports("fused_moe", floats(1, hidden), chosen, *weights)

    for name, got, (legal, reason, _) in (
        (
            "n_routed_experts, zero_expert_num, moe_topk, routed_scaling_factor",
            f"{config.n_routed_experts}, {zero}, {config.moe_topk}, {config.routed_scaling_factor}",
            supports("moe_route", floats(1, experts), floats(experts), **route),
        ),
        ("hidden_size", hidden, fused(8, hidden)),
        ("expert_ffn_hidden_size", width, fused(width, 8)),
    ):
        if not legal:
            raise LongcatUnsupportedError(message("from_pretrained", name, got, "what the ops take", reason))

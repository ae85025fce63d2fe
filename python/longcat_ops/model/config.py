"""The hyper-parameters of a LongCat-Flash network, read from a published `config.json`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import LongcatCheckpointError, LongcatShapeError, LongcatUnsupportedError, message

# Keys whose other values would change the mathematics: value that this library implements.
_ONLY = {
    "attention_bias": False,
    "router_bias": False,
    "norm_topk_prob": False,
    "tie_word_embeddings": False,
    "zero_expert_type": "identity",
    "attention_method": "MLA",
    "hidden_act": "silu",
}


@dataclass(frozen=True)
class LongcatFlashConfig:
    """Names and defaults are those of the released 560 B model; nothing else in the package assumes them.

    `num_layers` counts ScMoE layers; each holds two attentions, so there are `2 * num_layers` cache slots.
    `lora_norm_eps` is the epsilon of q_a_layernorm and kv_a_layernorm (transformers: its class default, 1e-6).
    """

    vocab_size: int = 131072
    hidden_size: int = 6144
    num_layers: int = 28
    num_attention_heads: int = 64
    q_lora_rank: int = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    ffn_hidden_size: int = 12288
    expert_ffn_hidden_size: int = 2048
    n_routed_experts: int = 512
    zero_expert_num: int = 256
    moe_topk: int = 12
    routed_scaling_factor: float = 6.0
    rms_norm_eps: float = 1e-5
    lora_norm_eps: float = 1e-6
    rope_theta: float = 1e7
    mla_scale_q_lora: bool = True
    mla_scale_kv_lora: bool = True
    max_position_embeddings: int = 131072
    num_nextn_predict_layers: int | None = None  # None: a checkpoint's own tensors decide whether there is an MTP head
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    pad_token_id: int | None = None
    torch_dtype: str | None = None
    quantization_config: dict[str, Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        sizes = "vocab_size hidden_size num_attention_heads q_lora_rank kv_lora_rank qk_nope_head_dim v_head_dim"
        others = "ffn_hidden_size expert_ffn_hidden_size n_routed_experts max_position_embeddings"
        for name in (*sizes.split(), *others.split()):
            self._require(name, lambda n: n >= 1, "a positive integer")
        for name in ("num_layers", "zero_expert_num"):
            self._require(name, lambda n: n >= 0, "an integer >= 0")
        self._require("qk_rope_head_dim", lambda n: n >= 2 and n % 2 == 0, "an even number: RoPE turns pairs")
        experts = self.num_experts
        self._require("moe_topk", lambda n: 1 <= n <= experts, f"1 .. {experts} (FFN + zero experts)")

    def _require(self, name: str, legal: Callable[[int], bool], expected: str) -> None:
        value = getattr(self, name)
        if not (isinstance(value, int) and legal(value)):
            raise LongcatShapeError(message("LongcatFlashConfig", name, repr(value), expected))

    @property
    def num_experts(self) -> int:
        """FFN experts plus zero experts: the width of the router."""
        return self.n_routed_experts + self.zero_expert_num

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_width(self) -> int:
        """Elements of one latent cache row: compressed key/value and shared rotated key (512 + 64 as released)."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def q_lora_scale(self) -> float:
        """Variance alignment of the query latent: sqrt(hidden / rank) (LongCat-Flash technical report, eq. 6)."""
        return (self.hidden_size / self.q_lora_rank) ** 0.5 if self.mla_scale_q_lora else 1.0

    @property
    def kv_lora_scale(self) -> float:
        """Variance alignment of the key/value latent (LongCat-Flash technical report, eq. 7)."""
        return (self.hidden_size / self.kv_lora_rank) ** 0.5 if self.mla_scale_kv_lora else 1.0

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> LongcatFlashConfig:
        """From the keys of a published or a transformers `config.json`; `model_type` may be missing, unknown keys are
        ignored.

        Raises LongcatUnsupportedError for a value that would change the mathematics, LongcatShapeError for an
        impossible size.
        """
        raw = dict(raw)
        if raw.get("model_type", "longcat_flash") != "longcat_flash":
            raise LongcatUnsupportedError(
                message("LongcatFlashConfig", "model_type", repr(raw["model_type"]), "'longcat_flash' or no model_type")
            )
        for name, only in _ONLY.items():
            if raw.get(name, only) not in (only, None):
                raise LongcatUnsupportedError(message("LongcatFlashConfig", name, repr(raw[name]), repr(only)))
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise LongcatUnsupportedError(message("LongcatFlashConfig", "rope_scaling", rope, "none: plain RoPE"))
        raw.setdefault("rope_theta", rope.get("rope_theta", cls.rope_theta))
        raw.setdefault("num_layers", raw.get("num_hidden_layers", 2 * cls.num_layers) // 2)
        raw.setdefault("torch_dtype", raw.get("dtype"))
        if isinstance(raw.get("eos_token_id"), list):
            raw["eos_token_id"] = raw["eos_token_id"][0]
        known = {f.name for f in fields(cls)}
        return cls(**{k: v for k, v in raw.items() if k in known})

    @classmethod
    def from_pretrained(cls, path: str | Path) -> LongcatFlashConfig:
        """Read `config.json` in folder `path` (or the file itself). Raises LongcatCheckpointError if it cannot."""
        file = Path(path)
        file = file / "config.json" if file.suffix != ".json" else file
        if not file.is_file():
            raise LongcatCheckpointError(
                f"{file} does not exist; a checkpoint is a folder with config.json and *.safetensors."
            )
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise LongcatCheckpointError(f"{file} is not valid JSON: {error}") from error
        if not isinstance(raw, dict):
            raise LongcatCheckpointError(f"{file} holds a {type(raw).__name__}, expected an object.")
        return cls.from_dict(raw)

"""The hyper-parameters of a LongCat-Flash network, read from a published `config.json`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..errors import LongcatCheckpointError, LongcatShapeError, LongcatUnsupportedError, message
from . import config_keys, config_reading, files
from .config_keys import CONFIG, KEYS, refuse, unsupported


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
    eos_token_id: int | tuple[int, ...] | None = 2  # decoding stops at any of them
    pad_token_id: int | None = None
    torch_dtype: str | None = None
    quantization_config: dict[str, Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in KEYS:
            config_keys.check_value(name, getattr(self, name))
        if self.qk_rope_head_dim % 2:
            raise refuse("qk_rope_head_dim", self.qk_rope_head_dim, "an even number: RoPE turns pairs")
        experts = self.num_experts
        if not 1 <= self.moe_topk <= experts:
            raise refuse("moe_topk", self.moe_topk, f"1 .. {experts} (FFN + zero experts)")
        if (self.num_nextn_predict_layers or 0) > 1:
            raise unsupported("num_nextn_predict_layers", self.num_nextn_predict_layers, "0, 1 or null: one MTP head")
        if self.bos_token_id is not None and self.bos_token_id >= self.vocab_size:
            raise refuse("bos_token_id", self.bos_token_id, f"an id in 0 .. {self.vocab_size - 1}, or null")
        stop_ids = config_keys.stop_ids("eos_token_id", self.eos_token_id, self.vocab_size)
        if isinstance(self.eos_token_id, list):
            object.__setattr__(self, "eos_token_id", stop_ids)
        config_keys.dtype_name("torch_dtype", self.torch_dtype)
        if not isinstance(self.quantization_config, dict | None):
            raise refuse("quantization_config", self.quantization_config, "an object or null")
        self._check_ops()

    def _check_ops(self) -> None:
        """Refuses, by the ops' own checks, what an op of the network would refuse at the first token."""
        import torch

        from ..ops import supports

        def floats(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.float32, device="meta")

        experts, hidden = self.num_experts, self.hidden_size
        route = dict(num_experts=experts, num_zero_experts=self.zero_expert_num, scale=self.routed_scaling_factor)
        router = "moe_route", floats(1, experts), floats(experts)
        chosen = SimpleNamespace(ids=floats(1, 1).int(), weights=floats(1, 1), zero_weight=floats(1))
        width = self.expert_ffn_hidden_size

        def fused(width: int, hidden: int) -> tuple[bool, str, str]:
            weights = floats(1, 2 * width, hidden), floats(1, hidden, width)
            return supports("fused_moe", floats(1, hidden), chosen, *weights)

        for name, value, (legal, reason, _) in (
            ("n_routed_experts + zero_expert_num", experts, supports(*router, top_k=1, **route)),
            ("moe_topk", self.moe_topk, supports(*router, top_k=self.moe_topk, **route)),
            ("hidden_size", hidden, fused(8, hidden)),
            ("expert_ffn_hidden_size", width, fused(width, 8)),
        ):
            if not legal:
                raise refuse(name, value, "what the ops of the network take", reason)

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

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids at which decoding ends; empty: none."""
        return frozenset(config_keys.stop_ids("eos_token_id", self.eos_token_id, self.vocab_size))

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> LongcatFlashConfig:
        """From the keys of a published or a transformers `config.json`; `model_type` may be missing. Keys that nobody
        here knows are named in a warning.

        Raises LongcatUnsupportedError for a value that would change the mathematics, LongcatShapeError for a key that
        is missing, of a wrong type or out of range, and for two spellings of a key that disagree.
        """
        config, unknown = cls._read(raw)
        _warn(unknown)
        return config

    @classmethod
    def from_pretrained(cls, path: str | Path) -> LongcatFlashConfig:
        """Read `config.json` in folder `path` (or the file itself), and the stop ids of `generation_config.json` beside
        it. Raises LongcatCheckpointError if a file cannot be read, else as `from_dict`.
        """
        config, unknown = cls.read_files(path)
        _warn(unknown)
        return config

    @classmethod
    def read_files(cls, path: str | Path) -> tuple[LongcatFlashConfig, list[str]]:
        """`from_pretrained` without a warning: the config and the unknown keys."""
        if not isinstance(path, str | Path):
            got = f"of type {type(path).__name__}"
            raise LongcatShapeError(message("from_pretrained", "path", got, "a str or Path of a folder"))
        file = Path(path)
        file = file / "config.json" if file.suffix != ".json" or files.is_folder(file) else file
        if not files.exists(file):
            raise LongcatCheckpointError(
                f"{files.shown(file)} does not exist; a checkpoint is a folder with config.json and *.safetensors."
            )
        odd: list[str] = []
        raw = files.read_object(file, odd=odd)
        try:
            config, unknown = cls._read(raw)
        except (LongcatShapeError, LongcatUnsupportedError) as error:
            raise type(error)(f"{error}\n  in {files.shown(file)}") from None
        if odd:
            raise LongcatCheckpointError(f"{files.shown(file)} holds {odd[0]}, which is no JSON value.")
        return config._with_stop_ids(file.with_name("generation_config.json")), unknown

    @classmethod
    def _read(cls, raw: dict[str, Any]) -> tuple[LongcatFlashConfig, list[str]]:
        if not isinstance(raw, dict) or not all(isinstance(name, str) for name in raw):
            kinds = type(raw).__name__ + (" with keys that are no strings" if isinstance(raw, dict) else "")
            raise LongcatShapeError(
                message(CONFIG, "config", f"of type {kinds}", "a dict of the keys of a config.json")
            )
        missing = config_reading.missing(raw)
        try:
            values, unknown = config_reading.read(raw)
            config = cls(**values)
        except (LongcatShapeError, LongcatUnsupportedError) as error:
            raise type(error)(f"{error}\n  {missing}" if missing else str(error)) from None
        if missing:
            raise LongcatShapeError(
                message(CONFIG, "config", "without keys of a LongCat-Flash network", "all of them", missing)
            )
        return config, unknown

    def _with_stop_ids(self, file: Path) -> LongcatFlashConfig:
        if not files.exists(file):
            return self
        more = files.read_object(file).get("eos_token_id")
        added = config_keys.stop_ids(f"eos_token_id of {files.shown(file)}", more, self.vocab_size)
        if self.stop_ids.issuperset(added):
            return self
        own = config_keys.stop_ids("eos_token_id", self.eos_token_id, self.vocab_size)
        return replace(self, eos_token_id=tuple(dict.fromkeys((*own, *added))))


def _warn(unknown: list[str]) -> None:
    if unknown:
        listed = ", ".join(unknown[:12]) + (f" and {len(unknown) - 12} more" if len(unknown) > 12 else "")
        warnings.warn(f"{CONFIG}: the config has keys that are not known here: {listed}", stacklevel=3)

"""The keys of a `config.json`: types and ranges of those that are read, and values that mean another network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..errors import LongcatShapeError, LongcatUnsupportedError, message

CONFIG = "LongcatFlashConfig"
ARCHITECTURE = "LongcatFlashForCausalLM"
MODEL_TYPE = "longcat_flash"


@dataclass(frozen=True)
class Key:
    """One value of the network: its type, its range, its other names, and whether a file must state it.

    The upper limits are far beyond the family, and small enough that its layers and experts are listed at once.
    """

    kind: type  # int, float or bool
    low: float = 1
    high: float = 1
    aliases: tuple[str, ...] = ()
    required: bool = False
    null: bool = False

    @property
    def expected(self) -> str:
        if self.kind is bool:
            return "true or false"
        if self.kind is float:
            return f"a finite number in {self.low:g} .. {self.high:g}"
        least = "a positive integer" if self.low == 1 else f"an integer >= {self.low}"
        return f"{least}, at most {self.high}" + (", or null" if self.null else "")

    def is_legal(self, value: object) -> bool:
        if value is None or self.kind is bool:
            return self.null if value is None else isinstance(value, bool)
        number = isinstance(value, int if self.kind is int else (int, float)) and not isinstance(value, bool)
        return number and self.low <= value <= self.high


def _size(high: int, *aliases: str, low: int = 1) -> Key:
    return Key(int, low, high, aliases, required=True)


KEYS = {
    "vocab_size": _size(2**24),
    "hidden_size": _size(2**17),
    "num_layers": _size(256, low=0),  # num_hidden_layers is twice as many: see config_reading.py
    "num_attention_heads": _size(2**12),
    "q_lora_rank": _size(2**17),
    "kv_lora_rank": _size(2**17),
    "qk_nope_head_dim": _size(2**14),
    "qk_rope_head_dim": _size(2**14),
    "v_head_dim": _size(2**14),
    "ffn_hidden_size": _size(2**20, "intermediate_size"),
    "expert_ffn_hidden_size": _size(2**20, "moe_intermediate_size"),
    "n_routed_experts": _size(2**16, "num_local_experts", "num_experts"),
    "zero_expert_num": _size(2**16, low=0),
    "moe_topk": _size(2**16, "num_experts_per_tok"),
    "routed_scaling_factor": Key(float, 1e-6, 1e6),
    "rms_norm_eps": Key(float, 1e-30, 1),
    "lora_norm_eps": Key(float, 1e-30, 1),
    "rope_theta": Key(float, 1, 1e15),
    "mla_scale_q_lora": Key(bool),
    "mla_scale_kv_lora": Key(bool),
    "max_position_embeddings": Key(int, 1, 2**27),
    "num_nextn_predict_layers": Key(int, 0, 2**10, ("mtp_num_layers",), null=True),
    "bos_token_id": Key(int, 0, 2**31 - 1, null=True),
    "pad_token_id": Key(int, -1, 2**31 - 1, null=True),
}

DTYPES = {
    "bfloat16": "bfloat16", "float16": "float16", "half": "float16", "float32": "float32", "float": "float32",
    "float64": "float64", "double": "float64", "float8_e4m3fn": "float8_e4m3fn",
}  # fmt: skip

# Keys whose value must be one of these, since any other one means another network. null is always allowed.
ONLY: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,), "router_bias": (False,), "mlp_bias": (False,), "qkv_bias": (False,),
    "use_bias": (False,), "lm_head_bias": (False,), "norm_topk_prob": (False,), "tie_word_embeddings": (False,),
    "zero_expert_type": ("identity",), "attention_method": ("MLA",), "attention_type": ("MLA",), "use_mla": (True,),
    "hidden_act": ("silu",), "hidden_activation": ("silu",), "activation_function": ("silu",),
    "scoring_func": ("softmax",), "score_function": ("softmax",), "topk_method": ("noaux_tc",),
    "n_group": (0, 1), "topk_group": (0, 1), "num_expert_group": (0, 1), "router_dtype": ("float32",),
    "n_shared_experts": (0,), "num_shared_experts": (0,), "first_k_dense_replace": (0,), "moe_layer_freq": (1,),
    "decoder_sparse_step": (1,), "rope_interleave": (True,), "rope_interleaved": (True,), "use_rope": (True,),
    "rope_is_neox_style": (False,), "is_neox_style": (False,), "partial_rotary_factor": (1,), "is_causal": (True,),
    "logit_scale": (1,), "logits_scaling": (1,), "scale_emb": (1,), "scale_depth": (1,), "embedding_multiplier": (1,),
    "residual_multiplier": (1,), "attention_multiplier": (), "query_pre_attn_scalar": (), "dim_model_base": (),
    "is_encoder_decoder": (False,), "add_cross_attention": (False,), "apply_layernorm_1p": (False,),
    "zero_centered_gamma": (False,), "use_parallel_residual": (False,), "pruned_heads": ({},),
    "mtp_replicate_modules": (False,), "mtp_disable_over_tokenizer": (False,),
}  # fmt: skip

# Families of such keys, by a part of the name: sparse attention, other embeddings, capped scores. They must be off.
MUST_BE_OFF = re.compile(
    r"streaming|sparse|sliding|(^|_)swa(_|$)|window_size|local_attention|attention_chunk|(^|_)sinks?(_|$)|block_topk"
    r"|indexer|^index_|(^|_)(lsa|dsa|nsa|cli)(_|$)|zigzag|loza|ngram|n_gram|^oe_|^emb_|over_?(embedding|encoding)"
    r"|engram|softcap|logits?_cap|clip_qkv|qk_(layer)?norm|use_qk_|shared_expert|linear_attn|mamba|altup|alibi|mup_"
    r"|mrope|rope_local|rope_factor|cross_attention|hyper_?connection"
)

# Keys that say nothing about the mathematics of a forward pass. Other unknown names are worth a warning.
_NAMES = """
    architectures model_type auto_map transformers_version torch_dtype dtype quantization_config compression_config
    eos_token_id layer_types attention_types rope_theta rope_scaling rope_parameters num_hidden_layers head_dim
    qk_head_dim num_key_value_heads
    attention_dropout initializer_range use_cache output_router_logits output_attentions output_hidden_states
    return_dict torchscript pretraining_tp ep_size router_aux_loss_coef aux_loss_alpha seq_aux _name_or_path
    name_or_path _commit_hash _attn_implementation _attn_implementation_autoset attn_implementation id2label label2id
    num_labels problem_type task_specific_params tokenizer_class finetuning_task is_decoder sep_token_id
    decoder_start_token_id tie_encoder_decoder chunk_size_feed_forward use_bfloat16 tf_legacy_loss prefix
    bad_words_ids suppress_tokens begin_suppress_tokens forced_bos_token_id forced_eos_token_id do_sample max_length
    min_length temperature top_k top_p typical_p num_beams num_beam_groups diversity_penalty repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size early_stopping num_return_sequences output_scores
    return_dict_in_generate remove_invalid_values exponential_decay_length_penalty
"""
HARMLESS = frozenset(_NAMES.split())


def refuse(name: str, got: object, expected: str, context: str | None = None) -> LongcatShapeError:
    """The error for a value that is not legal."""
    return LongcatShapeError(message(CONFIG, name, shown(got), expected, context))


def unsupported(name: str, got: object, expected: str, context: str | None = None) -> LongcatUnsupportedError:
    """The error for a value that belongs to another network."""
    return LongcatUnsupportedError(message(CONFIG, name, shown(got), expected, context))


def shown(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits, a list a thousand deep
        return f"of type {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def check_value(name: str, value: object) -> None:
    """Raises LongcatShapeError unless `value` has the type and the range of key `name`."""
    if not KEYS[name].is_legal(value):
        raise refuse(name, value, KEYS[name].expected)


def dtype_name(name: str, value: object) -> str | None:
    """torch's own name of a dtype in any of torch's spellings. Raises LongcatShapeError for another word."""
    found = DTYPES.get(value.removeprefix("torch.")) if isinstance(value, str) else None
    if value is not None and found is None:
        raise refuse(name, value, f"one of {', '.join(DTYPES)}, with or without 'torch.'")
    return found


def stop_ids(name: str, value: object, vocabulary: int) -> tuple[int, ...]:
    """The ids of an `eos_token_id`: null, an id or a list of some. Raises LongcatShapeError for anything else."""
    ids = value if isinstance(value, list | tuple) else [value]
    if value is None:
        return ()
    if not ids or not all(Key(int, 0, vocabulary - 1).is_legal(i) for i in ids):
        raise refuse(name, value, f"an id in 0 .. {vocabulary - 1}, a list of such ids, or null")
    return tuple(dict.fromkeys(ids))

"""Networks with experts, as far as the time of a decode step depends on them: three that the report compares, and any
other from its `config.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import LongcatShapeError, message
from ..chain import WIDTH
from ..dispatch import CHOICES, EXPERTS, ZERO
from ..layer import LONGCAT
from ..step import LAYERS, VOCABULARY


@dataclass(frozen=True)
class Attention:
    """One attention. heads: of queries. kv_heads: which tensor parallelism can split without copies of the cache.
    score_width, value_width: elements of a cached row that a query meets, and that its sum has. row: values that a
    token leaves in the cache. before, after: parameters of the projections ahead of the core and behind it.
    """

    name: str
    heads: int
    kv_heads: int
    score_width: int
    value_width: int
    row: int
    before: int
    after: int

    @property
    def parameters(self) -> int:
        return self.before + self.after


def mla(hidden: int, heads: int, q_lora: int | None, kv_lora: int, nope: int, rope: int, value: int) -> Attention:
    """Latent attention, absorbed: every head meets the same kv_lora + rope values and sums kv_lora of them. The key
    half of kv_b works on queries, the value half on sums: both count as behind the projections that need the hidden
    row alone. q_lora: None where queries have no latent."""
    width = heads * (nope + rope)
    queries = hidden * width if q_lora is None else (hidden + width) * q_lora
    row = kv_lora + rope
    after = kv_lora * heads * (nope + value) + heads * value * hidden
    return Attention("MLA", heads, 1, row, kv_lora, row, queries + hidden * row, after)


def gqa(hidden: int, heads: int, kv_heads: int, head_dim: int) -> Attention:
    """Grouped queries: a key and a value of head_dim for each of kv_heads."""
    row = 2 * kv_heads * head_dim
    return Attention("GQA", heads, kv_heads, head_dim, head_dim, row, hidden * (heads * head_dim + row),
                     heads * head_dim * hidden)  # fmt: skip


@dataclass(frozen=True)
class Network:
    """layers: all of them; moe_layers: those with experts, which have `attentions` attentions and `dense_ffns` FFNs of
    `dense_width` beside the experts; the other layers have one of each. choices: experts of a token, zero ones
    included. shared_width: of the experts that every token takes. notes: what the description leaves out.
    """

    name: str
    source: str
    hidden: int
    layers: int
    moe_layers: int
    attention: Attention
    dense_width: int
    experts: int
    choices: int
    expert_width: int
    vocabulary: int
    zero_experts: int = 0
    shared_width: int = 0
    attentions: int = 1
    dense_ffns: int = 0
    mtp_heads: int = 0
    tied: bool = False
    notes: tuple[str, ...] = ()

    @property
    def shortcut(self) -> bool:
        """Whether the experts run beside the second attention (ScMoE): what single-batch overlap needs."""
        return self.attentions == 2

    @property
    def ffn_experts(self) -> float:
        """FFN experts of a token in the mean, if zero experts are chosen as often as others: 12 x 512 / 768 = 8."""
        return self.choices * self.experts / (self.experts + self.zero_experts)

    def ffn(self, width: int) -> int:
        """Parameters of gate, up and down."""
        return 3 * self.hidden * width

    @property
    def expert(self) -> int:
        return self.ffn(self.expert_width)

    @property
    def beside_experts(self) -> int:
        """Parameters of all layers but their routed experts; norms are left out."""
        router = (self.experts + self.zero_experts) * self.hidden
        one = self.attentions * self.attention.parameters + self.dense_ffns * self.ffn(self.dense_width)
        moe = one + router + self.ffn(self.shared_width)
        return self.moe_layers * moe + self.dense_layers * (self.attention.parameters + self.ffn(self.dense_width))

    @property
    def dense_layers(self) -> int:
        return self.layers - self.moe_layers

    @property
    def embeddings(self) -> int:
        """Parameters of embedding and head."""
        return (1 if self.tied else 2) * self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Without the MTP head."""
        return self.beside_experts + self.moe_layers * self.experts * self.expert + self.embeddings

    def active(self, ffn_experts: float | None = None) -> float:
        """Parameters that a token meets, the head's included and the embedding's not."""
        count = self.ffn_experts if ffn_experts is None else ffn_experts
        return self.beside_experts + self.moe_layers * count * self.expert + self.vocabulary * self.hidden

    @property
    def mtp_dense(self) -> int:
        """Parameters of MTP heads but for their routed experts: eh_proj and a layer, LongCat-Flash's with a dense FFN
        (docs/architecture.md), another one's as its layers are."""
        ffn = self.ffn(self.dense_width if self.shortcut else self.shared_width)
        return self.mtp_heads * (2 * self.hidden**2 + self.attention.parameters + ffn)

    @property
    def mtp_moe_layers(self) -> int:
        return 0 if self.shortcut else self.mtp_heads

    @property
    def cache_slots(self) -> int:
        return self.moe_layers * self.attentions + self.dense_layers


# What a config.json calls each value, ours first.
_NAMES = {
    "hidden": ("hidden_size",),
    "layers": ("num_layers", "num_hidden_layers"),
    "heads": ("num_attention_heads",),
    "experts": ("n_routed_experts", "num_local_experts", "num_experts"),
    "choices": ("moe_topk", "num_experts_per_tok", "num_experts_per_token"),
    "expert_width": ("expert_ffn_hidden_size", "moe_intermediate_size", "intermediate_size"),
    "vocabulary": ("vocab_size",),
}
_MOST = {"num_layers": 2**12, "n_routed_experts": 2**16}  # a typing mistake must not list a million
_MLA_NAMES = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


def from_config(raw: Mapping[str, Any], name: str, source: str = "its config.json") -> Network:
    """The network of a config.json: of LongCat-Flash, of DeepSeek's and Qwen's families, and of others that use their
    keys (transformers). Attention is MLA where there is a `kv_lora_rank`, else grouped queries.

    Raises LongcatShapeError for keys that are missing, all of them listed, and for values that cannot be.
    """
    notes: list[str] = []
    inner = raw.get("text_config")
    if "hidden_size" not in raw and isinstance(inner, Mapping):
        raw = inner
        notes.append("read from text_config: what is no text is left out")
    reader = _Reader(raw)
    shortcut = "zero_expert_num" in raw or str(raw.get("model_type", "")).startswith("longcat_flash")
    found = {field: reader.size(*names) for field, names in _NAMES.items()}
    latent = [reader.size(one) for one in _MLA_NAMES] if raw.get("kv_lora_rank") is not None else None
    dense = (
        reader.size("ffn_hidden_size", "intermediate_size") if shortcut else reader.size("intermediate_size", least=0)
    )
    shared = reader.size("n_shared_experts", "num_shared_experts", least=0) * found["expert_width"]
    shared += reader.size("shared_expert_intermediate_size", least=0)
    zero, mtp = (reader.size(one, least=0) for one in ("zero_expert_num", "num_nextn_predict_layers"))
    kv_heads = 1 if latent else reader.size("num_key_value_heads", default=found["heads"])
    head_dim = 1 if latent else reader.size("head_dim", default=found["hidden"] // max(1, found["heads"]))
    q_lora = None if raw.get("q_lora_rank") is None else reader.size("q_lora_rank")
    has_experts = reader.layers_with_experts()
    reader.raise_problems(name)

    layers = found["layers"]
    if shortcut and "num_layers" not in raw:
        layers //= 2  # transformers counts attentions
    moe_layers = layers if shortcut else sum(map(has_experts, range(layers)))
    _require(name, "experts", f"{moe_layers} of {layers} layers", moe_layers > 0, "in one layer at least")
    _require(name, reader.spelled(*_NAMES["choices"]), found["choices"], found["choices"] <= found["experts"] + zero,
             f"1 .. {found['experts'] + zero}, the experts of a layer")  # fmt: skip
    hidden, heads = found["hidden"], found["heads"]
    attention = mla(hidden, heads, q_lora, *latent) if latent else gqa(hidden, heads, kv_heads, head_dim)
    kinds = set(raw.get("layer_types") or ()) - {"full_attention"}
    if kinds:
        notes.append(f"layers of {', '.join(sorted(map(str, kinds)))} count as full attention")
    return Network(
        name, source, hidden, layers, moe_layers, attention, dense, found["experts"], found["choices"],
        found["expert_width"], found["vocabulary"], zero, shared, 2 if shortcut else 1, 2 if shortcut else 0, mtp,
        bool(raw.get("tie_word_embeddings")), tuple(notes),
    )  # fmt: skip


class _Reader:
    """Positive integers of a config.json; what is wrong or missing is collected."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw, self.missing, self.wrong = raw, [], []

    def spelled(self, *names: str) -> str:
        return next((one for one in names if self.raw.get(one) is not None), names[0])

    def size(self, *names: str, least: int = 1, default: int | None = None) -> int:
        """The value under the first of `names` that is there. least 0: the key may be absent."""
        value = self.raw.get(self.spelled(*names))
        if value is None:
            if default is None and least > 0:
                self.missing.append(" or ".join(names))
            return default or 0
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST.get(names[0], 2**24):
            most = _MOST.get(names[0], 2**24)
            self.wrong.append(f"{self.spelled(*names)} is {value!r:.60}, expected an integer in {least} .. {most}")
            return 1
        return value

    def layers_with_experts(self) -> Callable[[int], bool]:
        """Whether layer i has experts: by `first_k_dense_replace` and `moe_layer_freq` (DeepSeek), `mlp_only_layers`
        and `decoder_sparse_step` (Qwen)."""
        first, step = self.size("first_k_dense_replace", least=0), self.size("decoder_sparse_step", default=1)
        listed, dense = self.raw.get("moe_layer_freq"), self.raw.get("mlp_only_layers") or ()
        if not isinstance(dense, list | tuple):
            self.wrong.append(f"mlp_only_layers is {dense!r:.60}, expected a list of layers")
            dense = ()
        if isinstance(listed, list | tuple):
            return lambda i: i < len(listed) and bool(listed[i])
        every = self.size("moe_layer_freq", default=1)
        return lambda i: i >= first and i not in dense and i % every == 0 and (i + 1) % step == 0

    def raise_problems(self, name: str) -> None:
        if self.missing or self.wrong:
            parts = [f"missing: {'; '.join(self.missing)}"] if self.missing else []
            context = "\n  ".join([*parts, *self.wrong])
            got, expected = f"{name}, which describes no network with experts", "the keys of one"
            raise LongcatShapeError(message("perf-model", "config", got, expected, context))


def _require(name: str, argument: str, got: object, legal: bool, expected: str) -> None:
    if not legal:
        raise LongcatShapeError(message("perf-model", argument, got, expected, f"in {name}"))


# Published config.json files, as far as they matter here.
_LONGCAT = {
    **asdict(LONGCAT), "num_layers": LAYERS, "vocab_size": VOCABULARY, "n_routed_experts": EXPERTS,
    "zero_expert_num": ZERO, "moe_topk": CHOICES, "expert_ffn_hidden_size": WIDTH, "num_nextn_predict_layers": 1,
}  # fmt: skip
_DEEPSEEK = {
    "hidden_size": 7168, "num_hidden_layers": 61, "first_k_dense_replace": 3, "moe_layer_freq": 1,
    "num_attention_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "vocab_size": 129280,
    "num_nextn_predict_layers": 1,
}  # fmt: skip
_QWEN = {
    "hidden_size": 4096, "num_hidden_layers": 94, "decoder_sparse_step": 1, "mlp_only_layers": [],
    "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 12288,
    "moe_intermediate_size": 1536, "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936,
}  # fmt: skip

NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        from_config(_LONGCAT, "LongCat-Flash", "config.json of meituan-longcat/LongCat-Flash-Chat"),
        from_config(_DEEPSEEK, "DeepSeek-V3", "config.json of deepseek-ai/DeepSeek-V3"),
        from_config(_QWEN, "Qwen3-235B-A22B", "config.json of Qwen/Qwen3-235B-A22B"),
    )
}


def known(name: str) -> Network | None:
    """The network of the table with this name, in any case."""
    return {one.lower(): network for one, network in NETWORKS.items()}.get(name.lower())

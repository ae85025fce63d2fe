"""The multi-token-prediction head: one dense layer that drafts token p+2 from token p+1 and the target's hidden row
p.
"""

from __future__ import annotations

from torch import Tensor

from .block import Block
from .config import LongcatFlashConfig
from .layers import FFN, MLA, Linear, RMSNorm, embed
from .rows import PromptRows, Rows
from .source import Source
from .tensor_parallel import whole

PREFIX = "model.mtp"


class MTP(Block):
    """z = eh_proj([enorm(embedding(t_{p+1})) | hnorm(h_p)]), then a pre-norm block (MLA, dense FFN) and the final norm.

    h_p is the target's hidden state after its final norm, RoPE position is p. The vocabulary head is the target's; so
    is the embedding unless the checkpoint brings one. Its latent rows live in the last slot of the target's cache.
    """

    def __init__(self, source: Source, config: LongcatFlashConfig) -> None:
        super().__init__()
        hidden, eps, layer = config.hidden_size, config.rms_norm_eps, f"{PREFIX}.layers.0"
        own, vocab = f"{PREFIX}.embed_tokens.weight", (config.vocab_size, hidden)
        self.tp, self.vocab_size, part = source.tp, config.vocab_size, source.tp.of_vocabulary(config.vocab_size)
        self.register_buffer("embedding", source.dense(own, vocab, part=part) if source.has(own) else None)
        self.enorm = RMSNorm(source, f"{layer}.enorm.m", hidden, eps)
        self.hnorm = RMSNorm(source, f"{layer}.hnorm.m", hidden, eps)
        self.eh_proj = Linear(source, f"{layer}.eh_proj", hidden, 2 * hidden)
        self.input_layernorm = RMSNorm(source, f"{layer}.input_layernorm", hidden, eps)
        self.self_attn = MLA(source, f"{layer}.self_attn", config, slot=2 * config.num_layers)
        self.post_attention_layernorm = RMSNorm(source, f"{layer}.post_attention_layernorm", hidden, eps)
        self.mlp = FFN(source, f"{layer}.transformer_layer.mlp", hidden, config.ffn_hidden_size)
        self.norm = RMSNorm(source, f"{PREFIX}.norm", hidden, eps)

    def forward(self, next_ids: Tensor, hidden: Tensor, rows: Rows | PromptRows, target_embedding: Tensor) -> Tensor:
        """next_ids i64[T]: token p+1 of each row; hidden [T,H]: the target's row p; target_embedding [V,H]: for a head
        without its own; of both what is here. Returns [T,H], ready for the target's vocabulary head.
        """
        embedding = target_embedding if self.embedding is None else self.embedding
        drafted = embed(self.tp, embedding, next_ids, self.vocab_size, rows)
        size = hidden.shape[1]
        both = hidden.new_empty((len(hidden), 2 * size))
        self.enorm(drafted, both[:, :size])
        self.hnorm(hidden, both[:, size:])
        x = self.eh_proj(both, rows)
        n, _ = self.input_layernorm.before(self.self_attn.fp8, x)
        p, h = self.post_attention_layernorm.before(self.mlp.fp8, whole(self.self_attn(n, rows)), x)
        return self.norm.of_sum(whole(self.mlp(p, rows)), h)[0]

"""A decode pass through one ScMoE layer at LongCat-Flash's sizes, part by part and launch by launch, as the model makes
it: FP8 projections and experts, norms and SwiGLU that quantise, latent attention by pages. Every launch overlaps with
the one ahead of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from . import attention as latent
from . import dispatch
from .chain import Share, chain_us, chosen
from .devices import Device
from .model import Band, Counts, predict
from .products import SMS, fp8_row, weight_bytes

TOKENS, CONTEXT = (1, 8, 96, 192), 1024


@dataclass(frozen=True)
class Sizes:
    """Sizes of a layer, as its configuration names them; the defaults are those of LongCat-Flash."""

    hidden_size: int = 6144
    ffn_hidden_size: int = 12288
    num_attention_heads: int = 64
    q_lora_rank: int = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    num_experts: int = 768

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_width(self) -> int:
        return self.kv_lora_rank + self.qk_rope_head_dim


LONGCAT = Sizes()


def product(tokens: int, n: int, k: int, sms: int = SMS) -> list[Counts]:
    """An FP8 product of activations that are quantised already."""
    moved = weight_bytes(n, k) + tokens * (fp8_row(k) + 2 * n)
    return [replace(chosen(1, tokens, (n, k), None, False, sms), bytes=moved)]


def per_head(name: str, tokens: int, heads: int, n: int, k: int) -> list[Counts]:
    """A bf16 product for each head."""
    moved = heads * (2 * n * k + tokens * (2 * k + 2 * n))
    return [Counts(name, moved, 2.0 * heads * tokens * n * k, bf16=True)]


def norm(tokens: int, width: int, residual: bool = False) -> list[Counts]:
    """A norm, of a sum or not, that quantises."""
    return [Counts("rms_norm_quant_fp8", tokens * ((8 if residual else 4) * width + fp8_row(width)) + 4 * width)]


def project(tokens: int, sizes: Sizes = LONGCAT, sms: int = SMS) -> list[Counts]:
    """Queries, and the latent rows of the tokens into the cache."""
    c = sizes
    return [
        *product(tokens, c.q_lora_rank, c.hidden_size, sms),
        *norm(tokens, c.q_lora_rank),
        *product(tokens, c.num_attention_heads * c.qk_head_dim, c.q_lora_rank, sms),
        *product(tokens, c.latent_width, c.hidden_size, sms),
        Counts("mla_write", tokens * (4 * c.latent_width + 4 * c.qk_rope_head_dim)),
    ]


def attend(call: latent.Call, sizes: Sizes = LONGCAT) -> list[Counts]:
    """From queries to the output projection."""
    c, tokens = sizes, call.tokens
    heads, value = c.num_attention_heads, c.num_attention_heads * c.v_head_dim
    return [
        *per_head("mla_query", tokens, heads, c.kv_lora_rank, c.qk_nope_head_dim),
        *latent.mla_decode(call),
        *per_head("m_grouped_bf16_gemm_nt_masked", tokens, heads, c.v_head_dim, c.kv_lora_rank),
        Counts("per_token_group_quant_fp8", tokens * (2 * value + fp8_row(value))),
        *product(tokens, c.hidden_size, value, call.sms),
    ]


def attention(call: latent.Call, sizes: Sizes = LONGCAT) -> list[Counts]:
    """The norm ahead of it, of a sum, included."""
    ahead = norm(call.tokens, sizes.hidden_size, residual=True)
    return [*ahead, *project(call.tokens, sizes, call.sms), *attend(call, sizes)]


def swiglu(tokens: int, sizes: Sizes = LONGCAT, sms: int = SMS) -> list[Counts]:
    """A dense FFN behind its norm."""
    hidden, width = sizes.hidden_size, sizes.ffn_hidden_size
    return [
        *product(tokens, width, hidden, sms),
        *product(tokens, width, hidden, sms),
        Counts("silu_and_mul_quant_fp8", tokens * (4 * width + fp8_row(width))),
        *product(tokens, hidden, width, sms),
    ]


def ffn(tokens: int, sizes: Sizes = LONGCAT, sms: int = SMS) -> list[Counts]:
    """The norm ahead of it, of a sum, included."""
    return [*norm(tokens, sizes.hidden_size, residual=True), *swiglu(tokens, sizes, sms)]


def sums(tokens: int, sizes: Sizes = LONGCAT) -> list[Counts]:
    """The two at a layer's end."""
    return 2 * [Counts("add_rows", 3 * 2 * tokens * sizes.hidden_size)]


def router(tokens: int, sizes: Sizes = LONGCAT) -> list[Counts]:
    return dispatch.router_gemm(tokens, sizes.num_experts, sizes.hidden_size)


def total(launches: list[Counts], device: Device) -> Band:
    return predict(launches, device, overlaps=True)


@dataclass(frozen=True)
class Prediction:
    """Times of two attentions, two dense FFNs, the experts with their router, and all of these one after another."""

    attention: Band
    ffn: Band
    moe: Band
    bytes: float

    @property
    def layer(self) -> Band:
        return self.attention + self.ffn + self.moe


def predicted(tokens: int, device: Device, *, rows: int = 1, context: int = CONTEXT, ranks: int = 1) -> Prediction:
    """The times of `tokens` tokens, `rows` of each sequence, on a device that holds 1 / ranks of the experts; what
    travels between ranks is left out."""
    share, sms = Share(tokens, ranks), int(device.sms.value)
    call = latent.Call(tokens // rows, rows, context, sms=sms)
    parts = [2 * attention(call), 2 * ffn(tokens, sms=sms) + sums(tokens), router(tokens)]
    moved = sum(one.bytes for part in parts for one in part) + share.bytes()
    times = [total(part, device) for part in parts]
    return Prediction(times[0], times[1], times[2] + chain_us(share, device), moved)

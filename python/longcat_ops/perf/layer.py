"""One decode step of one whole ScMoE layer at LongCat-Flash's sizes, part by part: FP8 projections, 512 FP8 experts, T
sequences.

Our kernels overlap. Torch's kernels between them (attention, norms, RoPE, sums) count by their bytes, each as one
launch that does not overlap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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


@dataclass(frozen=True)
class Launch:
    counts: Counts
    overlaps: bool


def projection(tokens: int, n: int, k: int, sms: int = SMS) -> list[Launch]:
    """Quantisation of the activations, then the product."""
    quant = Counts("quant", tokens * (2 * k + fp8_row(k)))
    moved = weight_bytes(n, k) + tokens * (fp8_row(k) + 2 * n)
    return [Launch(quant, True), Launch(replace(chosen(1, tokens, (n, k), None, False, sms), bytes=moved), True)]


def per_head(tokens: int, heads: int, n: int, k: int, out_bytes: int) -> list[Launch]:
    """A bf16 product for each head."""
    moved = heads * (2 * n * k + tokens * (2 * k + out_bytes * n))
    return [Launch(Counts("per_head", moved, 2.0 * heads * tokens * n * k, bf16=True), True)]


def plain(bytes_: float) -> list[Launch]:
    """A kernel of torch."""
    return [Launch(Counts("torch", bytes_), False)]


def attention(tokens: int, sizes: Sizes = LONGCAT, context: int = CONTEXT, sms: int = SMS) -> list[Launch]:
    c, row = sizes, 2 * tokens
    heads = c.num_attention_heads
    parts = plain(2 * row * c.hidden_size)  # norm
    for n, k in (
        (c.q_lora_rank, c.hidden_size),
        (heads * c.qk_head_dim, c.q_lora_rank),
        (c.latent_width, c.hidden_size),
        (c.hidden_size, heads * c.v_head_dim),
    ):
        parts += projection(tokens, n, k, sms)
    parts += plain(2 * row * c.q_lora_rank) + plain(2 * row * c.kv_lora_rank)  # norms of the latents
    parts += plain(2 * row * heads * c.qk_head_dim)  # RoPE
    parts += per_head(tokens, heads, c.kv_lora_rank, c.qk_nope_head_dim, 4)  # queries absorb W_k, to float32
    parts += per_head(tokens, heads, c.v_head_dim, c.kv_lora_rank, 2)  # W_v
    parts += plain(row * context * c.latent_width)  # the cache, read once
    return parts + plain(3 * row * c.hidden_size)  # the sum


def ffn(tokens: int, sizes: Sizes = LONGCAT, sms: int = SMS) -> list[Launch]:
    hidden, width, row = sizes.hidden_size, sizes.ffn_hidden_size, 2 * tokens
    parts = plain(2 * row * hidden) + 2 * projection(tokens, width, hidden, sms)
    return parts + plain(3 * row * width) + projection(tokens, hidden, width, sms) + plain(3 * row * hidden)


def router(tokens: int, sizes: Sizes = LONGCAT) -> list[Launch]:
    return [Launch(one, True) for one in dispatch.router_gemm(tokens, sizes.num_experts, sizes.hidden_size)]


def total(launches: list[Launch], device: Device) -> Band:
    found = Band(0, 0)
    for one in launches:
        found += predict(one.counts, device, one.overlaps)
    return found


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


def predicted(tokens: int, device: Device) -> Prediction:
    """The times on a device that holds all experts."""
    share, sms = Share(tokens, 1), int(device.sms.value)
    parts = [2 * attention(tokens, sms=sms), 2 * ffn(tokens, sms=sms), router(tokens)]
    moved = sum(one.counts.bytes for part in parts for one in part) + share.bytes()
    times = [total(part, device) for part in parts]
    return Prediction(times[0], times[1], times[2] + chain_us(share, device), moved)

"""One decode step of one whole ScMoE layer at LongCat-Flash's sizes: FP8 projections and 512 FP8 experts, T sequences.

    python -m pytest bench/bench_layer.py
    python bench/bench_layer.py --renew docs/fused_moe.md    # the table of predictions, between its two marks

With a Hopper GPU: model/layers.py ScMoELayer, random weights (22 GB), run eagerly, so that the time holds what Python
and torch take between kernels; the layer is not yet made for graphs. Without one: a prediction by parts, of what the
parts' kernels move and of their launches, with the constants of bench/chain_model.py for launches that overlap. Torch's
own kernels between them (attention, norms, RoPE, sums) count by their bytes, each as one launch that does not overlap.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

import chain_model
from chain_model import ALONE_US, HIDDEN, OVERLAPPED_US, PEAK, Kernel, Share, fp8_row, weight_bytes
from longcat_ops import LongcatFlashConfig, _library
from longcat_ops.model.cache import LatentCache
from longcat_ops.model.layers import RotaryTable, ScMoELayer
from longcat_ops.model.precision import Precision
from longcat_ops.model.rows import Rows
from longcat_ops.model.source import RandomSource
from report import Report

CONFIG = LongcatFlashConfig()
TOKENS, CONTEXT = (1, 8, 96, 192), 1024
BEGIN, END = "<!-- predictions: bench/bench_layer.py -->\n", "<!-- end of the layer's predictions -->\n"


def projection(tokens: int, n: int, k: int) -> list[tuple[Kernel, float]]:
    """Quantisation of the activations, then the product; each with its overhead."""
    quant = Kernel("quant", tokens * (2 * k + fp8_row(k)))
    moved = weight_bytes((-(-n // 128) * 128, k)) + tokens * (fp8_row(k) + 2 * n)
    return [(quant, OVERLAPPED_US), (Kernel("product", moved, -(-tokens // 8) * 8, (n, k)), OVERLAPPED_US)]


def plain(bytes_: float) -> list[tuple[Kernel, float]]:
    """A kernel of torch."""
    return [(Kernel("torch", bytes_), ALONE_US)]


def attention(tokens: int) -> list[tuple[Kernel, float]]:
    c, row = CONFIG, 2 * tokens
    heads, absorbed = c.num_attention_heads, 4 * c.num_attention_heads * c.kv_lora_rank
    parts = plain(2 * row * HIDDEN)  # norm
    for n, k in (
        (c.q_lora_rank, HIDDEN),
        (heads * c.qk_head_dim, c.q_lora_rank),
        (c.latent_width, HIDDEN),
        (HIDDEN, heads * c.v_head_dim),
    ):
        parts += projection(tokens, n, k)
    parts += plain(2 * row * c.q_lora_rank) + plain(2 * row * c.kv_lora_rank)  # norms of the latents
    parts += plain(2 * row * heads * c.qk_head_dim)  # RoPE
    parts += plain(absorbed * c.qk_nope_head_dim) + plain(absorbed * c.v_head_dim)  # W_k, W_v, in float32
    parts += plain(row * CONTEXT * c.latent_width)  # the cache, read once
    return parts + plain(3 * row * HIDDEN)  # the sum


def ffn(tokens: int) -> list[tuple[Kernel, float]]:
    width, row = CONFIG.ffn_hidden_size, 2 * tokens
    parts = plain(2 * row * HIDDEN) + projection(tokens, width, HIDDEN) + projection(tokens, width, HIDDEN)
    return parts + plain(3 * row * width) + projection(tokens, HIDDEN, width) + plain(3 * row * HIDDEN)


@cache
def predicted(tokens: int) -> dict[str, float]:
    """us and bytes of the parts: two attentions, two dense FFNs, the experts."""
    parts = {"attention": 2 * attention(tokens), "dense FFN": 2 * ffn(tokens)}
    found = {f"{name} us": sum(kernel.us(overhead) for kernel, overhead in part) for name, part in parts.items()}
    share = Share(tokens, 1)
    router = Kernel("router", 4 * CONFIG.num_experts * HIDDEN + 6 * tokens * HIDDEN + 4 * tokens * CONFIG.num_experts)
    found["MoE us"] = share.us(True, OVERLAPPED_US) + router.us(ALONE_US)
    found["bytes"] = (
        sum(kernel.bytes for part in parts.values() for kernel, _ in part) + share.bytes(True) + router.bytes
    )
    return found | {"us": sum(us for name, us in found.items() if name.endswith(" us"))}


def table() -> str:
    lines = ["| T | two attentions | two dense FFNs | MoE, router included | layer | GB |", "| --- " * 6 + "|"]
    for tokens in TOKENS:
        p = predicted(tokens)
        parts = " | ".join(f"{p[name]:.0f}" for name in ("attention us", "dense FFN us", "MoE us", "us"))
        lines.append(f"| {tokens} | {parts} | {p['bytes'] / 1e9:.2f} |")
    return "\n".join(lines) + "\n"


class OnDevice(RandomSource):
    """Drawn where the model is."""

    def fetch(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if "norm" in name:
            return torch.ones(shape, device=self.device)
        return torch.empty(shape, device=self.device).normal_(0, self.std)


@cache
def layer(device: str, config: LongcatFlashConfig) -> ScMoELayer:
    source = OnDevice(torch.bfloat16, std=0.02, device=device, precision=Precision("fp8"))
    return ScMoELayer(source, "model.layers.0", config, 0).eval()


def step(tokens: int, device: str, config: LongcatFlashConfig = CONFIG, context: int = CONTEXT) -> Callable[[], Tensor]:
    """A decode step of `tokens` sequences whose caches hold `context` rows."""
    latents = LatentCache(config, tokens, context + 1, num_slots=2, device=device)
    latents.rows.normal_()
    for sequence in range(tokens):
        latents.reserve(sequence, context + 1)
    x = torch.randn(tokens, config.hidden_size, device=device).bfloat16()
    at = [context] * tokens
    rope = RotaryTable(config).rows(at, tokens, torch.bfloat16, torch.device(device))
    block = layer(device, config)

    @torch.inference_mode()
    def run() -> Tensor:
        return block(x, Rows(latents, list(range(tokens)), at, True, rope))

    return run


def measured(tokens: int) -> float:
    """us, eager, median of 20."""
    run = step(tokens, "cuda")
    run()
    times = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end))
    return statistics.median(times)


@pytest.mark.parametrize("tokens", TOKENS)
def test_a_layer(tokens: int, report: Report) -> None:
    gpu = torch.cuda.is_available() and _library.load().device_supported(0)[0]
    us = report.measured("layer", measured, tokens) if gpu else report.predicted("layer", predicted, tokens)["us"]
    moved = round(predicted(tokens)["bytes"])
    name = "eager_us" if gpu else "predicted_us"
    report.info.update(
        op="ScMoELayer", tokens=tokens, bytes=moved, floor_us=round(1e6 * moved / PEAK, 1), **{name: round(us, 1)}
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--renew", type=Path, help="the page to write into")
    page = parser.parse_args(arguments).renew
    if page:
        page.write_text(chain_model.renewed(page.read_text(encoding="utf-8"), BEGIN, END, table()), encoding="utf-8")
    else:
        print(table(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())

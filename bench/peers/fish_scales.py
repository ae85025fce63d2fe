"""fish-scales-ops (module fish_scales_ops): FP8 expert layers for H200 in one call, from the choices of a router on.

It is built from source (github.com/fishaudio/fish-scales-ops) and compiles each configuration with NVRTC on first use.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from longcat_ops.types import Fp8Pair

from .peer import not_importable

NAME = "fish-scales-ops"
# Of moe_layer_fp8_sm90, as its source has them; up to 64 rows an expert the products have weights as rows.
LAUNCHES = ("moe_build_sorted", "quantize_1x128_sorted_gather", "gate_up", "silu_chunk_mul_quantize", "down",
            "moe_combine_sorted")  # fmt: skip


def available() -> str | None:
    return not_importable("fish_scales_ops", NAME)


def layer(x: Tensor, gate_up: Fp8Pair, down: Fp8Pair, ids: Tensor, weights: Tensor) -> Callable[[], Tensor]:
    """x bf16 [T,H]; gate_up e4m3 [E,2I,H], gate rows first; down [E,H,I]; ids i32, weights f32 [T,K]."""
    import fish_scales_ops

    return partial(fish_scales_ops.gemm.moe_layer_fp8_sm90, x, *gate_up, *down, ids, weights)

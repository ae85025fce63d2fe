"""What every backend does to rows on its own rank: the same ops as without other ranks, so the same bits."""

from __future__ import annotations

from torch import Tensor

from ...ops.moe import moe_permute, moe_permute_quant
from ...types import Plan

PAYLOADS = ("fp8", "bf16")
BLOCK_BYTES = 4  # of the scale of 128 elements


def permuted(x: Tensor, plan: Plan, payload: str) -> tuple[Tensor, Tensor | None]:
    """The rows of x by the plan: (q, s), or (rows, None) for bf16."""
    return moe_permute_quant(x, plan) if payload == "fp8" else (moe_permute(x, plan), None)


def row_bytes(hidden: int, payload: str) -> int:
    """Bytes of a dispatched row: 6336 for 6144 columns in FP8, of which 192 are scales."""
    return hidden + BLOCK_BYTES * -(-hidden // 128) if payload == "fp8" else 2 * hidden

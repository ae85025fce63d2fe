"""What the chain of a layer refuses before its dispatch: an error behind it would keep the buffer, and the other ranks
waiting for the combine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import LongcatError
from ...ops.checking import check, describe
from ...types import BLOCK, Fp8Pair, Routing
from .. import checks
from .base import ExpertConfig

_NAME = "fused_moe"


def require(
    x: Any, routing: Any, w_gate_up: Any, w_down: Any, add: Any, most_tokens: Any, config: ExpertConfig, ranks: int
) -> None:
    """Raises what is wrong with the arguments of `ExpertParallel.fused_moe` that no dispatch looks at."""
    if not isinstance(x, Tensor) or x.dim() != 2 or x.dtype != torch.bfloat16:
        raise checks.refuse(_NAME, "x", _described(x), f"torch.bfloat16 [T, {config.hidden}]")
    if not isinstance(routing, Routing):
        got = f"of type {type(routing).__name__}"
        raise checks.refuse(_NAME, "routing", got, "a Routing, from moe_route")
    quantised = isinstance(w_gate_up, tuple)
    if quantised != (config.payload == "fp8"):
        got = "an FP8 pair" if quantised else "one tensor"
        raise checks.refuse(_NAME, "w_gate_up", got, f"the other: the payload is {config.payload}")
    _weights(x, w_gate_up, w_down, config.num_ffn_experts // ranks, config.hidden)
    _own(x, add, most_tokens)


@checks.rank_local
def _own(x: Tensor, add: Any, most_tokens: Any) -> None:
    """What depends on this rank's tokens."""
    if most_tokens is not None:
        if isinstance(most_tokens, bool) or not isinstance(most_tokens, int):
            got = f"of type {type(most_tokens).__name__}"
            raise checks.refuse(_NAME, "most_tokens", got, "an int or None")
        if len(x) > most_tokens:
            raise checks.refuse(_NAME, "most_tokens", most_tokens, f"at least {len(x)}, the rows of `x`")
    if add is not None and (not isinstance(add, Tensor) or add.shape != x.shape or add.dtype != x.dtype):
        raise checks.refuse(_NAME, "add", _described(add), f"{_described(x)}, as `x`")


def _described(x: Any) -> str:
    return f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else f"of type {type(x).__name__}"


def _weights(x: Tensor, w_gate_up: Tensor | Fp8Pair, w_down: Tensor | Fp8Pair, experts: int, hidden: int) -> None:
    """By the checks of the products, for no rows."""
    for name, weight in (("w_gate_up", w_gate_up), ("w_down", w_down)):
        parts = weight if isinstance(weight, tuple) else (weight,)
        wrong = [type(part).__name__ for part in parts if not isinstance(part, Tensor)]
        if wrong or (isinstance(weight, tuple) and len(weight) != 2):
            got = f"of type {', '.join(wrong)}" if wrong else f"of {len(weight)} tensors"
            raise checks.refuse(_NAME, name, got, "a tensor, or a pair of values and scales")
        if parts[0].dim() != 3 or len(parts[0]) != experts:
            got = f"of shape {list(parts[0].shape)}"
            raise checks.refuse(_NAME, name, got, f"of {experts} experts, those of this rank, in 3 dimensions")
    offsets, quantise = x.new_empty(experts + 1, dtype=torch.int32), isinstance(w_down, tuple)
    width = (w_gate_up[0] if isinstance(w_gate_up, tuple) else w_gate_up).shape[1] // 2
    h = _rows(x, width, None if quantise else torch.bfloat16)
    rows = _rows(x, hidden, None if isinstance(w_gate_up, tuple) else torch.bfloat16)
    between = h if quantise else (h[0].to(w_down.dtype), None)
    try:
        for op, lhs, weight, rest in (
            ("swiglu_gemm", rows, w_gate_up, h), ("gemm", between, w_down, (1, x.new_empty((0, hidden)))),
        ):  # fmt: skip
            kind, left, right = ("fp8", lhs, weight) if isinstance(weight, tuple) else ("bf16", lhs[:1], (weight,))
            given = (*left, *right, offsets, None, False, *rest)  # without addresses, which no captured step may read
            shapes = (describe(value) if isinstance(value, Tensor) else value for value in given)
            check(f"m_grouped_{kind}_{op}_nt_offset", *shapes)
    except LongcatError as error:
        raise type(error)(f"{_NAME}: {error}") from None


def _rows(x: Tensor, width: int, dtype: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
    """No rows as a product takes or leaves them: of a dtype, or of FP8 with scales."""
    if dtype is not None:
        return x.new_empty((0, width), dtype=dtype), None
    scales = x.new_empty((0, -(-width // BLOCK)), dtype=torch.float32)
    return x.new_empty((0, width), dtype=torch.float8_e4m3fn), scales

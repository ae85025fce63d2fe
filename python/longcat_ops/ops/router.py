"""The router's product, float32-accurate: on Hopper by three bfloat16 terms of its weight."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import LongcatShapeError, message
from .calling import maker, public

_new_router_gemm = maker(
    "router_gemm",
    lambda x, w, _: torch.empty((x.shape[0], w.shape[0]), dtype=torch.float32, device=x.device),
    rows=(0, 0),
    columns=(1, 0),
    dtype=torch.float32,
)


@public
def router_gemm(x: Tensor, w: Tensor, *, split: Tensor | None = None) -> Tensor:
    """logits = x @ w.T in float32, at least as accurate as a chain of float32 FMAs over H.

    On a GPU the tensor cores multiply `split`, whose terms add up to w, by x: for each 64 of H the products of the
    smallest terms first, then the sum goes into float32. A float32 x is split likewise, and six of nine products are
    computed: those left out are below 2^-24 of the largest. The sizes of w alone fix the order of sums, so the bits of
    a row depend on nothing but the row and w.

    Args:
        x: bf16 or f32 [T, H]; H a multiple of 8; last stride 1, rows any distance apart. T may be 0.
        w: f32 [E, H], E in 1 .. 1024; last stride 1, rows any distance apart.
        split: bf16 [3, E, H] contiguous, on a GPU at a multiple of 16 bytes, from `split_bf16x3(w)`, made once when
            weights are loaded. On a GPU it is read in place of w, and made at each call if it is None. On a CPU w is
            read.

    Returns:
        f32 [T, E].

    Raises:
        LongcatShapeError: the arguments do not fit each other.
    """
    if split is None and w.is_cuda and w.dtype == torch.float32:
        split = split_bf16x3(w)
    return _new_router_gemm(x, w, split)


def split_bf16x3(w: Tensor) -> Tensor:
    """Three bfloat16 terms that add up to w exactly: each rounds what the ones before it leave.

    Exact where |w| is 0 or in 2^-109 .. 2^127: 3 x 8 bits hold the 24 of a float32. An inf or NaN is its first term.

    Args:
        w: f32, of any shape.

    Returns:
        bf16 [3, *w.shape], contiguous, the largest term first.

    Raises:
        LongcatShapeError: w is not float32.
    """
    if not isinstance(w, Tensor) or w.dtype != torch.float32:
        got = w.dtype if isinstance(w, Tensor) else f"a {type(w).__name__}"
        raise LongcatShapeError(message("split_bf16x3", "w", got, "torch.float32"))
    terms, rest = torch.empty((3, *w.shape), dtype=torch.bfloat16, device=w.device), w.detach()
    if w.is_meta:  # to compute without values, torch would load its compiler, which takes two seconds
        return terms
    for term in terms:
        term.copy_(rest)
        rest = torch.where(term.isfinite(), rest - term.float(), 0.0)
    return terms

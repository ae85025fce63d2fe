"""Keeps the bits of a row independent of its neighbours, so that decode and verify agree bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# The rows of a decode pass. Up to this many, a matrix product runs on exactly this many (or on all rows of the pass): a
# row's bits follow the shape (invariance.py), and libraries prepare no new primitive for each count.
SMALL_T = 8
_PREFILL_MULTIPLE = 32


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a sum over values of `dtype`: float32, or float64 in an fp64 model."""
    return torch.promote_types(dtype, torch.float32)


def padded(count: int) -> int:
    """Rows to run a product of `count` rows on."""
    return SMALL_T if count <= SMALL_T else count + -count % _PREFILL_MULTIPLE


def silu(x: Tensor) -> Tensor:
    """F.silu of [T,W], where in a decode pass (T <= SMALL_T) the bits of a value do not depend on its row.

    torch ends a tensor, and each thread's share of one, in a scalar loop whose exp rounds unlike the vector one's.
    """
    if len(x) > SMALL_T or (x.shape[1] % 32 == 0 and SMALL_T * x.shape[1] <= 1 << 15):  # no tail, one thread
        return F.silu(x)
    wide = x.to(acc_dtype(x.dtype))
    return (wide / (1 + (-wide).exp())).to(x.dtype)

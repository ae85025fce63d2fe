"""Values of single elements, alike wherever they lie in a tensor."""

from __future__ import annotations

import torch
from torch import Tensor


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a sum over values of `dtype`: float32, or float64 in an fp64 model."""
    return torch.promote_types(dtype, torch.float32)


def silu(x: Tensor) -> Tensor:
    """F.silu of x, where the bits of a value do not depend on its place.

    torch ends a tensor, and each thread's share of one, in a scalar loop whose exp rounds unlike the vector one's.
    """
    wide = x.to(acc_dtype(x.dtype))
    return (wide / (1 + (-wide).exp())).to(x.dtype)

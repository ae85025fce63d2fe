"""What the references share: the dtype of sums, a product, SiLU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_ALIGNMENT = 64  # bytes; torch's CPU allocator gives it to every new tensor, a row in the middle of one may lack it


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a sum over values of `dtype`: float32, or float64 in an fp64 model."""
    return torch.promote_types(dtype, torch.float32)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [M,K] @ weight [N,K].T, in the dtype of its sums. Its bits depend on M and on values, not on where or how apart
    rows lie.
    """
    return F.linear(_as_new(x), _as_new(weight))


def silu(x: Tensor) -> Tensor:
    """F.silu of x, where the bits of a value do not depend on its place.

    torch ends a tensor, and each thread's share of one, in a scalar loop whose exp rounds unlike the vector one's.
    """
    wide = x.to(acc_dtype(x.dtype))
    return (wide / (1 + (-wide).exp())).to(x.dtype)


def _as_new(x: Tensor) -> Tensor:
    """x widened, laid out like a new tensor: libraries sum other layouts in another order."""
    wide = x.to(acc_dtype(x.dtype))
    new = wide.is_contiguous() and (wide.is_meta or wide.data_ptr() % _ALIGNMENT == 0)
    return wide if new else wide.clone(memory_format=torch.contiguous_format)

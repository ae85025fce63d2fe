"""What the references share: the dtype of sums, a product, SiLU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

FEW = 8  # rows
_ALIGNMENT = 64  # bytes; torch's CPU allocator gives it to every new tensor, a row in the middle of one may lack it


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a sum over values of `dtype`: float32, or float64 in an fp64 model."""
    return torch.promote_types(dtype, torch.float32)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [M,K] @ weight [N,K].T, in the dtype of its sums. Its bits depend on values, and on M past FEW, not on where or
    how apart rows lie: few rows are multiplied one by one, for libraries sum each number of them in another order.
    """
    weight = _as_new(weight)
    if not 1 < len(x) <= FEW:
        return F.linear(_as_new(x), weight)
    return torch.cat([F.linear(_as_new(row), weight) for row in x.split(1)])


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

"""Plain-torch router product: the oracle, and the path where there is no kernel."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .rows import acc_dtype

__all__ = ["router_gemm"]


def router_gemm(x: Tensor, w: Tensor, *, split: Tensor | None = None) -> Tensor:
    """x [T,H] @ w [E,H].T in fp32. split changes nothing here."""
    return F.linear(x.to(acc_dtype(x.dtype)), w.to(acc_dtype(x.dtype)))

"""The router's product in fp64, its error bound, and the float32 chains that it must not be worse than."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def weight(experts: int, columns: int, sd: float = 1.0) -> Tensor:
    """f32 [E, H] with which logits of x ~ N(0, 1) have this standard deviation."""
    w = torch.randn(experts, columns, generator=torch.Generator().manual_seed(experts + columns))
    return w * (sd / math.sqrt(columns))


def tokens(count: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(columns)).to(dtype)


def logits(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """x @ w.T in fp64, and a bound of its float32 sum in 16 lanes, or in stages of 64 on tensor cores, where a stage's
    12 to 24 instructions cut 17 terms each to 25 bits: no term is rounded more often than this."""
    a, b = x.double(), w.double()
    return a @ b.mT, math.expm1((x.shape[1] / 16 + 230) * math.log1p(2.0**-24)) * (a.abs() @ b.abs().mT)


def fma_chain(x: Tensor, w: Tensor) -> Tensor:
    """x @ w.T by float32 FMAs in the order of columns. A product of float32 is exact in float64, and so is its sum with
    a float32 but for a rounding that is far below float32's."""
    sums = torch.zeros(len(x), len(w))
    for column in range(x.shape[1]):
        sums = (sums.double() + x[:, column, None].double() * w[:, column].double()).float()
    return sums


def chosen(scores: Tensor, value: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
    """The twelve experts of `scores` and of `value`, of rows whose twelfth is further from the next than the bound."""
    top = value.topk(13).values
    clear = top[:, 11] - top[:, 12] > 2 * bound.amax(1)
    assert int(clear.sum()) >= len(clear) // 2
    return tuple(part[clear].topk(12).indices.sort().values for part in (scores.double(), value))


def rms(out: Tensor, value: Tensor) -> float:
    return float((out.double() - value).square().mean().sqrt())

"""The FP8 expert chain in fp64, with an error bound for every element. `quantised_chain` quantises the activations as
the library does; `unquantised_bound` quantises nothing, and its bound covers both quantisations of the activations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from longcat_ops import Routing
from support.build_oracle import quantise
from support.grouped import ROUNDING, Fp8Pair, cut_by_tensor_cores, gemm, wide
from support.near_oracle import quantised_range, silu_and_mul

_U = 2.0**-24
# Half a step of e4m3 (4 significant bits), relative to the value, or to its scale where the value is subnormal.
# Slightly enlarged, because the division by the scale and the scale itself are float32.
_HALF_STEP, _SMALLEST_HALF_STEP = 2.0**-4 * (1 + 2.0**-20), 2.0**-10 * (1 + 2.0**-20)


class Experts(NamedTuple):
    """The fp64 values of FP8 weights: [G, I, H], [G, I, H], [G, H, I]."""

    gate: Tensor
    up: Tensor
    down: Tensor


def widened(gate_up: Fp8Pair, down: Fp8Pair) -> Experts:
    """gate_up holds gate rows, then up rows; up starts a new block of scales."""
    halves = zip(gate_up[0].chunk(2, 1), gate_up[1].chunk(2, 1), strict=True)
    return Experts(*(wide(q, s, block_rows=128) for q, s in halves), wide(*down, block_rows=128))


def _sum_error(terms: Tensor, weight: Tensor, tensor_cores: bool) -> Tensor:
    """Error bound of a @ weight.T for any |a| <= terms: float32 in any order, or tensor cores; see grouped.gemm."""
    error = (terms.shape[1] + 3) * _U * (terms @ weight.abs().mT)
    return error + cut_by_tensor_cores(terms, weight.abs()) if tensor_cores else error


class _Sum:
    """The value of moe_combine, and a bound on the errors of its inputs plus its own float32 roundings."""

    def __init__(self, x: Tensor, routing: Routing) -> None:
        self.routing, self.dtype = routing, x.dtype
        self.value = routing.zero_weight.double()[:, None] * x.double()
        self.sizes, self.error = self.value.abs(), torch.zeros_like(self.value)

    def add(self, expert: int, y: Tensor, bound: Tensor) -> None:
        """Adds y and its bound, ordered as `rows(expert)`. An expert's output is rounded to x's dtype."""
        tokens, k = self.rows(expert)
        bound = bound + ROUNDING[self.dtype] * (y.abs() + bound)
        weight = self.routing.weights[tokens, k].double()[:, None]
        self.value.index_add_(0, tokens, weight * y)
        self.sizes.index_add_(0, tokens, weight.abs() * (y.abs() + bound))
        self.error.index_add_(0, tokens, weight.abs() * bound)

    def rows(self, expert: int) -> tuple[Tensor, Tensor]:
        """The tokens that chose the expert, and at which of their K choices."""
        tokens, k = (self.routing.ids == expert).nonzero(as_tuple=True)
        return tokens, k

    def limit(self, of_weights: float = 0.0) -> Tensor:
        """A product and at most K + 1 additions round each term; the sum is then rounded to x's dtype."""
        error = self.error + (of_weights + (self.routing.ids.shape[1] + 3) * _U) * self.sizes
        return error + ROUNDING[self.dtype] * (self.value.abs() + error)


def quantised_chain(x: Tensor, routing: Routing, experts: Experts, tensor_cores: bool) -> tuple[Tensor, Tensor]:
    """(value, limit) of the quantised chain. An element of h has one code unless a rounding edge lies within its error;
    then its value lies between those of the two codes."""
    codes, s = quantise(x, 1, 128)
    xq = torch.from_numpy(codes).view(torch.float8_e4m3fn), torch.from_numpy(s)
    total = _Sum(x, routing)
    for e, (gate, up, down) in enumerate(zip(*experts, strict=True)):
        tokens, _ = total.rows(e)
        part = xq[0].view(torch.uint8)[tokens].view(xq[0].dtype), xq[1][tokens]
        (z, z_error), (v, v_error) = gemm(part, gate, tensor_cores), gemm(part, up, tensor_cores)
        low, high = quantised_range(*silu_and_mul(z, v, z_error, v_error))
        h, slack = (high + low) / 2, (high - low) / 2
        bound = slack @ down.abs().mT + _sum_error(h.abs() + slack, down, tensor_cores)
        total.add(e, h @ down.mT, bound)
    return total.value, total.limit()


def _scales(amax_of: Tensor) -> Tensor:
    """The 1x128 scale of each element, from the magnitudes of all."""
    groups = torch.nn.functional.pad(amax_of, (0, -amax_of.shape[1] % 128)).unflatten(1, (-1, 128))
    scale = groups.amax(2).clamp(min=1e-4) / 448
    return scale.repeat_interleave(128, 1)[:, : amax_of.shape[1]]


def unquantised_bound(x: Tensor, routing: Routing, experts: Experts, tensor_cores: bool) -> tuple[Tensor, Tensor]:
    """(value, limit). The value uses unquantised activations; the limit covers the chain that quantises x and h, with
    every rounding at its worst. Routing weights may differ by a relative 4e-6: two float32 softmaxes."""
    wide_x = x.double()
    dx = torch.maximum(_HALF_STEP * wide_x.abs(), _SMALLEST_HALF_STEP * _scales(wide_x.abs()))
    total = _Sum(x, routing)
    for e, (gate, up, down) in enumerate(zip(*experts, strict=True)):
        tokens, _ = total.rows(e)
        a, da = wide_x[tokens], dx[tokens]
        z, v = a @ gate.mT, a @ up.mT
        dz, dv = (da @ w.abs().mT + _sum_error(a.abs() + da, w, tensor_cores) for w in (gate, up))
        h, dh = silu_and_mul(z, v, dz, dv)
        largest = h.abs() + dh
        dh = dh + torch.maximum(_HALF_STEP * largest, _SMALLEST_HALF_STEP * _scales(largest))
        total.add(e, h @ down.mT, dh @ down.abs().mT + _sum_error(h.abs() + dh, down, tensor_cores))
    return total.value, total.limit(of_weights=4e-6)


def _variance(values: Tensor) -> Tensor:
    """Variance of rounding each value to e4m3: the error is spread evenly over one step of the value's binade."""
    scale = _scales(values.abs())
    exponent = torch.log2((values.abs() / scale).clamp(min=2.0**-6)).floor()
    return (scale * 2.0 ** (exponent - 4)) ** 2 / 3


def expected_square_error(x: Tensor, routing: Routing, experts: Experts, token: int) -> float:
    """Sum over the token's outputs of E[error^2], to first order, if all roundings of x and h are independent."""
    a = x[token].double()
    jacobian, of_h = torch.zeros(len(a), len(a), dtype=torch.float64), 0.0
    for e, weight in zip(routing.ids[token].tolist(), routing.weights[token].double(), strict=True):
        if e < 0:
            continue
        gate, up, down = (w[e] for w in experts)
        z, v = gate @ a, up @ a
        sigmoid = z.sigmoid()
        slope = sigmoid * (1 + z * (1 - sigmoid))
        jacobian += weight * (down @ ((slope * v)[:, None] * gate + (z * sigmoid)[:, None] * up))
        of_h += float(weight**2 * (down**2 @ _variance((z * sigmoid * v)[None])[0]).sum())
    return float((jacobian**2 @ _variance(a[None])[0]).sum()) + of_h


def worst(error: Tensor, limit: Tensor) -> float:
    """The largest ratio of an element's error to its limit; NaN counts as infinite."""
    error, limit = error.numpy(), limit.numpy()
    share = np.divide(error, limit, out=np.zeros_like(limit), where=error != 0)
    return float(np.nan_to_num(share, nan=np.inf).max(initial=0.0))

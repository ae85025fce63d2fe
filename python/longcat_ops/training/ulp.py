"""Differences of two tensors in ulp: steps from one number that a dtype has to the next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_INTS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def furthest(a: Tensor, b: Tensor) -> dict[str, Any]:
    """Of two tensors of one dtype and shape: `elements` with other bits, and of the largest difference in ulp its
    `index`, the values `first` of a and `second` of b, and `ulp`. A step of an integer is 1; numbers and NaN are
    ordered by their bits, and -0 is 0 ulp from 0. Of complex numbers, index ends with 0 or 1: the real or imaginary
    part.
    """
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    a, b = a.detach().cpu().contiguous(), b.detach().cpu().contiguous()
    differ = (_bits(a) != _bits(b)).flatten()
    left, right = _ordered(a).flatten(), _ordered(b).flatten()
    apart = (left.double() - right.double()).abs()  # approximate beyond 2^53: enough to find the largest
    at = int(torch.where(differ, apart, -1.0).argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(at), a.shape))
    values = (t.flatten()[at].item() for t in (a, b))
    return {
        "elements": int(differ.sum()), "index": index, "first": next(values), "second": next(values),
        "ulp": abs(int(left[at]) - int(right[at])),
    }  # fmt: skip


def _bits(t: Tensor) -> Tensor:
    return t.view(_INTS[t.element_size()])


def _ordered(t: Tensor) -> Tensor:
    """i64, in the order of the numbers: the bits of a negative float are -2^(n-1) plus those of its magnitude."""
    if not t.is_floating_point():
        return t.to(torch.int64)
    bits = _bits(t).to(torch.int64)
    return torch.where(bits < 0, -(1 << (8 * t.element_size() - 1)) - bits, bits)

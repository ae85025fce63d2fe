"""The helpers that users of DeepGEMM import for tests of their own. Its timers are refused by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._refusals import TESTING, refusals

_refused = refusals(TESTING)
__all__ = ["assert_bitwise_equal", "calc_diff", "count_bytes", "get_arch_major", *_refused]
globals().update(_refused)


def calc_diff(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|^2 / (|x|^2 + |y|^2) in float64, a scalar: 0 for equal tensors, also for two of zeros; 1 for orthogonal
    ones. DeepGEMM calls a product right below 0.001."""
    x, y = x.double(), y.double()
    size = (x * x + y * y).sum()
    return torch.where(size == 0, torch.zeros_like(size), (x - y).square().sum() / size)


def count_bytes(*tensors: Any) -> int:
    """Bytes of the elements of all tensors; lists and tuples are looked into, None counts 0."""
    sizes = (
        count_bytes(*t) if isinstance(t, tuple | list) else t.numel() * t.element_size()
        for t in tensors
        if t is not None
    )
    return sum(sizes)


def assert_bitwise_equal(x: Tensor, y: Tensor, label: str = "") -> None:
    """Raises AssertionError where shape, dtype or a byte differs, with the first such byte."""
    where = f" ({label})" if label else ""
    assert x.shape == y.shape, f"shapes differ{where}: {list(x.shape)} and {list(y.shape)}"
    assert x.dtype == y.dtype, f"dtypes differ{where}: {x.dtype} and {y.dtype}"
    left, right = (t.contiguous().view(-1).view(torch.uint8) for t in (x, y))
    wrong = (left != right).nonzero()
    if len(wrong):
        first = int(wrong[0])
        values = f"{int(left[first]):#04x} and {int(right[first]):#04x}"
        raise AssertionError(f"{len(wrong)} of {len(left)} bytes differ{where}; the first, {first}, is {values}")


def get_arch_major() -> int:
    """9: every kernel here is for SM90, and so is the choice of layouts and scales, with or without a GPU."""
    return 9

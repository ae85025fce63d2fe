"""FP8 quantisation in numpy, written from the definition of e4m3; it shares no conversion with the library or torch."""

from __future__ import annotations

import numpy as np
import torch

NAN_CODE = 0x7F


def _e4m3_values() -> np.ndarray:
    """The 127 non-negative finite values; the index is the code."""
    values = []
    for code in range(127):
        exponent, mantissa = code >> 3, code & 7
        values.append(mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    return np.array(values)


VALUES = _e4m3_values()


def encode(x: np.ndarray) -> np.ndarray:
    """Codes of the nearest e4m3 values, ties to the even code, saturating; NaN is 0x7f."""
    magnitude = np.minimum(np.abs(x.astype(np.float64)), VALUES[-1])
    magnitude = np.where(np.isnan(x), 0.0, magnitude)
    above = np.searchsorted(VALUES, magnitude).clip(1, 126)
    low, high = VALUES[above - 1], VALUES[above]
    to_low, to_high = magnitude - low, high - magnitude  # exact: both ends have few bits
    nearest = np.where(to_low < to_high, above - 1, above)
    tie = to_low == to_high
    nearest = np.where(tie & ((above - 1) % 2 == 0), above - 1, nearest)
    codes = nearest | (np.signbit(x).astype(np.int64) << 7)
    return np.where(np.isnan(x), NAN_CODE, codes).astype(np.uint8)


_BY_CODE = np.concatenate([sign * np.append(VALUES, np.nan) for sign in (1, -1)])


def decode(codes: np.ndarray) -> np.ndarray:
    """float64 values of e4m3 codes."""
    return _BY_CODE[codes]


def quantise(x: torch.Tensor, block_rows: int, block_columns: int) -> tuple[np.ndarray, np.ndarray]:
    """(codes, scales) with one float32 scale per block_rows x block_columns."""
    values = x.float().numpy()
    rows, columns = values.shape
    codes = np.empty((rows, columns), np.uint8)
    scales = np.empty((-(-rows // block_rows), -(-columns // block_columns)), np.float32)
    with np.errstate(all="ignore"):
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                block = np.s_[i * block_rows : (i + 1) * block_rows, j * block_columns : (j + 1) * block_columns]
                amax = np.max(np.abs(values[block]))
                scales[i, j] = np.maximum(amax, np.float32(1e-4)) / np.float32(448)
                codes[block] = encode(values[block] / scales[i, j])
    return codes, scales


def codes_of(q: torch.Tensor) -> np.ndarray:
    return q.contiguous().view(torch.uint8).numpy()


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal shape, dtype and bytes, except that any NaN equals any NaN in formats wider than 8 bits."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[actual.element_size()]
    same = actual.contiguous().view(integer) == expected.contiguous().view(integer)
    if actual.element_size() > 1:
        same |= actual.isnan() & expected.isnan()
    assert bool(same.all()), f"{int((~same).sum())} of {same.numel()} elements differ"


def hostile_input(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Rows of very different magnitude, with zeros, subnormals, 1e6, inf and NaN sprinkled in."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    x *= torch.logspace(-12, 5, rows)[torch.randperm(rows, generator=generator), None] if rows else 1
    special = torch.tensor([0.0, -0.0, 1e-7, 6e-8, 1e-40, 1e6, -1e6, float("inf"), float("-inf"), float("nan")])
    for index, value in enumerate(special):
        if rows > index:
            x[index, (7 * index) % columns] = value
    return x.to(dtype)

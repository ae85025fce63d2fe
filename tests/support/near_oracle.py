"""1x128 quantisation of values known up to an error: bounds of SwiGLU in float32, and the e4m3 codes and scales that
such values may have.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from support.build_oracle import NAN_CODE, codes_of, decode, encode

FLOOR = np.float32(1e-4)  # smallest amax
FLOOR_SCALE = FLOOR / np.float32(448)
_U = 2.0**-24


def silu_and_mul(gate: Tensor, up: Tensor, gate_error: Tensor | float = 0.0,
                 up_error: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:  # fmt: skip
    """h = silu(gate) * up in fp64, and the error bound of a float32 evaluation whose operands are off by these errors.

    With u = 2^-24: exp is off by at most 2 ulp = 4u; 1 + exp, the division and the product add u each; 7u < 2^-21. The
    slope of silu is within -0.1 .. 1.1. Below -88, where float32 exp overflows, silu is within 1e-36 of 0.
    """
    silu = gate / (1 + torch.exp(-gate))
    h = silu * up
    passed = 1.1 * gate_error * (up.abs() + up_error) + silu.abs() * up_error
    return h, passed + 2.0**-21 * (h.abs() + passed) + 1e-36 * (up.abs() + up_error) + 2.0**-126


def quantised_range(h: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """fp64 (low, high): the range of the 1x128 quantisation, multiplied by its scale, of any float32 values within
    `error` of h. h is finite."""
    low, high = torch.empty_like(h), torch.empty_like(h)
    for start in range(0, h.shape[1], 128):
        part = np.s_[:, start : start + 128]
        value, off = h.numpy()[part], error.numpy()[part]
        small, large = (np.maximum((np.abs(value) + e).max(1), FLOOR)[:, None] / 448 for e in (-off, off))
        small, large = small * (1 - _U), large * (1 + _U)

        def ends(to: np.ndarray, pick: np.ufunc, u: float, scales: tuple = (small, large)) -> np.ndarray:
            quotient = pick(to / scales[0], to / scales[1])
            code = decode(encode(quotient + u * np.abs(quotient)))  # u: error of the division
            return pick(code * scales[0], code * scales[1])

        low.numpy()[part], high.numpy()[part] = (
            ends(value - off, np.minimum, -_U),
            ends(value + off, np.maximum, _U),
        )
    return low, high


def assert_quantised(q: Tensor, s: Tensor, h: Tensor, error: Tensor) -> None:
    """q, s is the 1x128 quantisation of some float32 values within `error` of h.

    A scale lies between those of the smallest and the largest amax these values can have. A code lies between the codes
    of (h - error) / s and (h + error) / s: where no rounding edge falls in between, there is one right code.
    """
    codes, scales = codes_of(q), s.numpy().astype(np.float64)
    assert codes.shape == h.shape
    assert scales.shape == (len(h), -(-h.shape[1] // 128))
    for j in range(scales.shape[1]):
        part = np.s_[:, 128 * j : 128 * (j + 1)]
        _assert_groups(codes[part], scales[:, j], h.numpy()[part], error.numpy()[part])


def _assert_groups(codes: np.ndarray, scale: np.ndarray, h: np.ndarray, error: np.ndarray) -> None:
    nan = np.isnan(h).any(1)
    inf = np.isinf(h).any(1) & ~nan
    assert np.isnan(scale[nan]).all() and (codes[nan] == NAN_CODE).all()
    assert (scale[inf] == np.inf).all()
    assert np.where(np.isinf(h[inf]), codes[inf] == NAN_CODE, codes[inf] & 0x7F == 0).all()

    finite = ~(nan | inf)
    codes, scale, h, error = codes[finite], scale[finite], h[finite], error[finite]
    low, high = (np.maximum((np.abs(h) + off).max(1), FLOOR) / 448 for off in (-error, error))
    assert ((low * (1 - _U) <= scale) & (scale <= high * (1 + _U))).all()
    low, high = ((h + off) / scale[:, None] for off in (-error, error))
    low, high = low - _U * np.abs(low), high + _U * np.abs(high)  # the division
    value = decode(codes)
    wrong = ~((decode(encode(low)) <= value) & (value <= decode(encode(high))))
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} codes are off"

"""What a collective on a node must give: bits where the order of the sum is fixed, else a bound from float64."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from support import comm_oracle as oracle

# Unit roundoff and half of the least subnormal.
UNIT = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
LEAST = {"float32": 2.0**-150, "bfloat16": 2.0**-134, "float16": 2.0**-25}
FLOAT32 = UNIT["float32"]


def sum_problem(got: Tensor, parts: list[np.ndarray], dtype: str, backend: str, fixed_order: bool) -> str:
    """What is wrong with a sum of `parts` (bits of each rank); "" if nothing is.

    In a fixed order: the bits of a sum in rank order in float32, rounded once. The switch adds in float32 in an order
    of its own and rounds once. NCCL may round at each of its ranks - 1 steps.
    """
    host = got.detach().cpu()
    if fixed_order:
        return oracle.difference(host, oracle.summed(parts, dtype), dtype)
    wide = [oracle.widen(part, dtype).astype(np.float64) for part in parts]
    exact, size = sum(wide), sum(np.abs(part) for part in wide)
    if list(host.shape) != list(exact.shape):
        return f"shape {list(host.shape)}, expected {list(exact.shape)}"
    steps = (len(parts) - 1) * (UNIT[dtype] if backend == "nccl" else FLOAT32)
    bound = 1.01 * (steps * size + UNIT[dtype] * np.abs(exact)) + LEAST[dtype]
    error = np.abs(host.double().numpy() - exact)
    return _outside(error, bound)


def _outside(error: np.ndarray, bound: np.ndarray) -> str:
    wrong = ~(error <= bound)  # NaN is wrong
    worst = np.nan_to_num(error, nan=np.inf).max(initial=0.0)
    return f"{int(wrong.sum())} of {wrong.size} elements, the worst off by {worst:g}" if wrong.any() else ""


def integers(shape: tuple[int, ...], seed: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Integers in -6 .. 6, by a formula: sums of 8 ranks are exact in any order and in any of our dtypes."""
    place = torch.arange(torch.Size(shape).numel(), dtype=torch.int64, device=device)
    return (((place * 2246822519 + seed * 3266489917) >> 11) % 13 - 6).to(dtype).view(shape)


def total(shape: tuple[int, ...], seed: int, ranks: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The sum of `integers` of the seeds seed .. seed + ranks - 1."""
    found = integers(shape, seed, device, torch.float32)
    for r in range(1, ranks):
        found += integers(shape, seed + r, device, torch.float32)
    return found.to(dtype)


def norm_problem(got: Tensor, h: np.ndarray, weight: np.ndarray, eps: float, dtype: str) -> str:
    """RMSNorm of h, in float64; the output is rounded once, its factor is computed in float32."""
    want = h / np.sqrt((h * h).mean(1, keepdims=True) + eps) * weight
    error = np.abs(got.detach().cpu().double().numpy() - want)
    return _outside(error, (UNIT[dtype] + 16 * FLOAT32) * np.abs(want) + LEAST[dtype])


def codes_problem(q: Tensor, s: Tensor, h: np.ndarray, weight: np.ndarray, eps: float) -> str:
    """FP8 codes of RMSNorm of h in blocks of 128, and their scales: s is the largest value of a block over 448, q the
    nearest e4m3 of value / s. The values may be rounded to bfloat16 before."""
    want = h / np.sqrt((h * h).mean(1, keepdims=True) + eps) * weight
    rows, width = want.shape
    blocks = -(-width // 128)
    padded = np.zeros((rows, blocks * 128))
    padded[:, :width] = np.abs(want)
    scale = padded.reshape(rows, blocks, 128).max(2) / 448
    got_scale = s.detach().cpu().double().numpy()
    if not (np.abs(got_scale - scale) <= 2.0**-7 * scale).all():
        return f"scales off by {np.abs(got_scale - scale).max():g}"
    spread = np.repeat(got_scale, 128, 1)[:, :width]
    values = q.detach().cpu().view(torch.float8_e4m3fn).double().numpy() * spread
    # e4m3 has 4 significant bits and subnormals 2^-9 apart.
    bound = (2.0**-4 + 2.0**-7) * np.abs(want) + 2.0**-9 * spread
    wrong = ~(np.abs(values - want) <= bound)
    return f"{int(wrong.sum())} of {wrong.size} codes" if wrong.any() else ""

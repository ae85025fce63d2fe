"""What collectives must give, in numpy: bits of inputs and of sums in rank order, rounded by hand."""

from __future__ import annotations

import numpy as np
import torch

from comm.cells import RAGGED

FLOATS = ("float32", "bfloat16", "float16")
_BITS = {"float32": np.uint32, "bfloat16": np.uint16, "float16": np.uint16}
_SPECIAL = (-0.0, 0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-7, 3e38, -3e38, 65504.0, 1.0)


def round_bf16(x: np.ndarray) -> np.ndarray:
    """The bits of float32 `x` in bfloat16: to nearest, ties to even. NaN stays one."""
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)


def bits(x: np.ndarray, dtype: str) -> np.ndarray:
    """The bits of float32 `x` in `dtype`."""
    if dtype == "bfloat16":
        return round_bf16(x)
    with np.errstate(over="ignore"):
        return x.astype(dtype).view(_BITS[dtype])


def widen(raw: np.ndarray, dtype: str) -> np.ndarray:
    """The float32 values of bits."""
    if dtype == "bfloat16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.view(dtype).astype(np.float32)


def values(kind: str, dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Bits of an input. integers: small ones, whose sums are exact; random: of many magnitudes; special: with signed
    zeros, inf, NaN, subnormals and values whose sums overflow."""
    draw = np.random.default_rng(seed)
    if kind == "integers":
        return bits(draw.integers(-8, 9, shape).astype(np.float32), dtype)
    x = np.ldexp(draw.standard_normal(shape, dtype=np.float32), draw.integers(-6, 7, shape)).astype(np.float32)
    if kind == "special":
        x = np.where(draw.random(shape) < 0.5, draw.choice(np.array(_SPECIAL, np.float32), shape), x)
    return bits(x, dtype)


def summed(parts: list[np.ndarray], dtype: str) -> np.ndarray:
    """Bits of the sum of bits, in order, in float32, rounded once."""
    total = widen(parts[0], dtype).copy()
    with np.errstate(all="ignore"):
        for part in parts[1:]:
            total = total + widen(part, dtype)
    return bits(total, dtype)


def tensor(raw: np.ndarray, dtype: str) -> torch.Tensor:
    found = torch.empty(raw.shape, dtype=getattr(torch, dtype))
    signed = torch.from_numpy(raw.reshape(-1).view(np.int32 if raw.dtype == np.uint32 else np.int16).copy())
    found.view(-1).copy_(signed.view(found.dtype) if raw.size else found.view(-1))
    return found


def difference(got: torch.Tensor, want: np.ndarray, dtype: str) -> str:
    """ "" if the bits are those of `want`; any NaN is as good as another."""
    if list(got.shape) != list(want.shape):
        return f"shape {list(got.shape)}, expected {list(want.shape)}"
    kind = torch.int32 if dtype == "float32" else torch.int16
    raw = got.reshape(-1).view(kind).numpy().view(_BITS[dtype]) if want.size else want.reshape(-1)
    want = want.reshape(-1)
    a, b = widen(raw, dtype), widen(want, dtype)
    wrong = ~((raw == want) | (np.isnan(a) & np.isnan(b)))
    if not wrong.any():
        return ""
    at = int(np.nonzero(wrong)[0][0])
    return f"{int(wrong.sum())} of {want.size} elements, first {at}: {a[at]!r}, expected {b[at]!r}"


def row_cases(ranks: int) -> dict[str, list[int]]:
    """Rows of each rank, from even to all on one."""
    return {
        "even": [3] * ranks,
        "remainder": [5 // ranks + (r < 5 % ranks) for r in range(ranks)],
        "powers": [2**i + i % 3 for i in range(ranks)],
        "ragged": list(RAGGED[:ranks]),
        "ragged end": list(RAGGED[-ranks:]),
        "one has all": [7 * (r == ranks - 1) for r in range(ranks)],
        "none": [0] * ranks,
    }


def flat_bytes(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1).view(torch.uint8) if x.numel() else torch.empty(0, dtype=torch.uint8)


def raw_bytes(dtype: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """A tensor of any bits that `dtype` has."""
    found = torch.empty(shape, dtype=getattr(torch, dtype))
    draw = np.random.default_rng(seed).integers(0, 2 if dtype == "bool" else 256, found.nbytes)
    flat_bytes(found).copy_(torch.from_numpy(draw.astype(np.uint8)))
    return found


def same_bytes(got: torch.Tensor, want: torch.Tensor) -> bool:
    """The same shape, dtype and bits, wherever the tensors lie."""
    same = got.shape == want.shape and got.dtype == want.dtype
    return same and torch.equal(flat_bytes(got.detach().cpu()), flat_bytes(want.detach().cpu()))

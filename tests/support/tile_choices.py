"""Asks `explain` for the tiles of an FP8 GEMM, with tensors without storage."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat_ops.ops.explain import Candidate

FP8, F32, BF16, I32 = torch.float8_e4m3fn, torch.float32, torch.bfloat16, torch.int32


def meta(*shape: int, dtype: torch.dtype = FP8) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def pair(*shape: int, block_rows: int = 1) -> tuple[Tensor, Tensor]:
    *groups, rows, columns = shape
    return meta(*shape), meta(*groups, -(-rows // block_rows), -(-columns // 128), dtype=F32)


def chosen(candidates: tuple[Candidate, ...]) -> Candidate:
    (best,) = [candidate for candidate in candidates if candidate.chosen]
    return best

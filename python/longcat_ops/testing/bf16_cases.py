"""The calls of the bf16 products, for `op_cases`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import longcat_ops

from .calls import Call, call, m_indices_of, masked_m_of, offsets_of, seeded


@seeded
def _bf16(m: int, n: int, k: int, dtype: torch.dtype = torch.bfloat16, **kwargs: Any) -> Call:
    return call(torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype), **kwargs)


@seeded
def _bf16_offset(m: int, n: int, k: int, groups: int, **kwargs: Any) -> Call:
    a, b = torch.randn(m, k).bfloat16(), torch.randn(groups, n, k).bfloat16()
    return call(a, b, torch.zeros(m, n, dtype=torch.bfloat16), offsets_of(groups, m), **kwargs)


@seeded
def _bf16_masked(m: int, n: int, k: int, groups: int, dtype: torch.dtype = torch.bfloat16) -> Call:
    a, b = torch.randn(groups, m, k).to(dtype), torch.randn(groups, n, k).to(dtype)
    return call(a, b, torch.zeros(groups, m, n, dtype=dtype), masked_m_of(groups, m), 4)


@seeded
def _bf16_contiguous(m: int, n: int, k: int, groups: int) -> Call:
    a, b = torch.randn(m, k).bfloat16(), torch.randn(groups, n, k).bfloat16()
    return call(a, b, torch.zeros(m, n), m_indices_of(groups, m))


@seeded
def _interleave(groups: int, width: int, k: int, dtype: torch.dtype = torch.bfloat16) -> Call:
    return call(torch.randn(groups, 2 * width, k).to(dtype))


@seeded
def _swiglu(m: int, width: int, k: int, groups: int, dtype: torch.dtype = torch.bfloat16, **kwargs: Any) -> Call:
    gate_up = longcat_ops.interleave_gate_up((torch.randn(groups, 2 * width, k) / k**0.5).to(dtype))
    return call(torch.randn(m, k).to(dtype), gate_up, offsets_of(groups, m), **kwargs)


INTERLEAVE: dict[str, Callable[[], Call]] = {
    "bf16": lambda: _interleave(2, 24, 40),
    "f32": lambda: _interleave(1, 8, 8, torch.float32),
}
CASES: dict[str, dict[str, Callable[[], Call]]] = {
    "bf16_gemm_nt": {
        "ragged": lambda: _bf16(5, 72, 168),
        "f32": lambda: _bf16(9, 24, 136, torch.float32),
        "into": lambda: _bf16(3, 136, 256, out=torch.zeros(3, 136)),
        "split": lambda: _bf16(9, 72, 640, split_k=4),
        "empty": lambda: _bf16(0, 64, 128),
    },
    "m_grouped_bf16_gemm_nt_offset": {
        "ragged": lambda: _bf16_offset(11, 72, 168, 3),
        "hints": lambda: _bf16_offset(6, 64, 128, 2, max_m_hint=1, counts_ready=True),
        "split": lambda: _bf16_offset(11, 72, 384, 2, split_k=2),
        "empty": lambda: _bf16_offset(0, 64, 128, 3),
    },
    "m_grouped_bf16_gemm_nt_masked": {
        "ragged": lambda: _bf16_masked(5, 72, 168, 3),
        "f32": lambda: _bf16_masked(9, 24, 136, 2, torch.float32),
        "empty": lambda: _bf16_masked(0, 64, 128, 2),
    },
    "m_grouped_bf16_gemm_nt_contiguous": {
        "ragged": lambda: _bf16_contiguous(11, 72, 168, 3),
        "empty": lambda: _bf16_contiguous(0, 64, 128, 2),
    },
    "m_grouped_bf16_swiglu_gemm_nt_offset": {
        "ragged": lambda: _swiglu(11, 136, 168, 3),
        "quantised": lambda: _swiglu(11, 136, 168, 3, quantise=True),
        "f32": lambda: _swiglu(9, 24, 136, 2, torch.float32),
        "hints": lambda: _swiglu(6, 64, 128, 2, max_m_hint=1, counts_ready=True),
        "empty": lambda: _swiglu(0, 64, 128, 3),
    },
}

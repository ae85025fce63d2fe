"""What the C++ library does not register itself: fakes (tracing, meta tensors) and the reference as a kernel.

CUDA tensors run the reference on the GPU until an op has a CUDA kernel; CPU tensors run it under
LONGCAT_OPS_BACKEND=reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import _library
from ..errors import LongcatUnsupportedError
from ..reference import norm, quant

# Ops that have a CUDA kernel in this build.
CUDA_KERNELS: frozenset[str] = frozenset()

_libraries: list[torch.library.Library] = []


def _per_token_group_quant_fp8(x: torch.Tensor, group_size: int, q: torch.Tensor, s: torch.Tensor) -> None:
    _copy_into((q, s), quant.per_token_group_quant_fp8(x, group_size))


def _per_block_quant_fp8(w: torch.Tensor, q: torch.Tensor, s: torch.Tensor) -> None:
    _copy_into((q, s), quant.per_block_quant_fp8(w))


def _dequant_fp8(q: torch.Tensor, s: torch.Tensor, group_size: int, out: torch.Tensor) -> None:
    out.copy_(quant.dequant_fp8(q, s, out.dtype, group_size=group_size))


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, y: torch.Tensor) -> None:
    y.copy_(norm.rms_norm(x, weight, eps))


REFERENCES: dict[str, Callable[..., None]] = {
    "per_token_group_quant_fp8": _per_token_group_quant_fp8,
    "per_block_quant_fp8": _per_block_quant_fp8,
    "dequant_fp8": _dequant_fp8,
    "rms_norm": _rms_norm,
}


def _copy_into(outputs: tuple[torch.Tensor, ...], results: tuple[torch.Tensor, ...]) -> None:
    for output, result in zip(outputs, results, strict=True):
        output.copy_(result)


def _checked(op: str, run: Callable[..., None]) -> Callable[..., None]:
    def kernel(*arguments: Any) -> None:
        _library.require(op, *arguments)
        run(*arguments)

    return kernel


def _fake(op: str) -> Callable[..., None]:
    # Symbolic sizes are not checked: that would pin them to one value.
    def fake(*arguments: Any) -> None:
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        if all(type(n) is int for t in tensors for n in (*t.shape, *t.stride())):
            _library.require(op, *arguments)

    return fake


def _refuse_cpu(op: str) -> Callable[..., None]:
    def kernel(*arguments: Any) -> None:
        raise LongcatUnsupportedError(
            f"{op}: LONGCAT_OPS_BACKEND=cuda takes no CPU tensors.\n  fix: use .cuda(), or unset the variable"
        )

    return kernel


def register(backend: str) -> None:
    """Registers fakes, the reference for CUDA tensors and, if `backend` asks for it, for CPU tensors."""
    library = torch.library.Library("longcat_ops", "IMPL")
    _libraries.append(library)  # a Library that is collected takes its registrations along
    for op, run in REFERENCES.items():
        torch.library.register_fake(f"longcat_ops::{op}", _fake(op), lib=library)
        if op not in CUDA_KERNELS:
            library.impl(op, _checked(op, run), "CUDA")
        if backend == "reference":
            library.impl(op, _checked(op, run), "CPU", allow_override=True)
        elif backend == "cuda":
            library.impl(op, _refuse_cpu(op), "CPU", allow_override=True)

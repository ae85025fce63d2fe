"""LONGCAT_OPS_BACKEND=emu: CPU tensors through the CUDA kernels themselves, executed by the host emulator.

liblongcat_emu.so has the C ABI of cuda/include/longcat_ops.h; it is built in a source tree, not shipped in a wheel.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import LongcatError

LIBRARY = Path(__file__).resolve().parent.parent / "liblongcat_emu.so"
_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float8_e4m3fn: 3}  # lc_dtype
POLICIES = {"random": 0, "eager": 1, "lazy": 2}
MMA_MODES = {"exact": 0, "hopper": 1}


class EmulatorError(LongcatError, RuntimeError):
    """The emulator stopped a kernel: race, proxy, protocol, bounds, deadlock. The kernel is at fault, not the call."""


class _Matrix(ctypes.Structure):
    """lc_matrix."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("column_stride", ctypes.c_int64),
    ]


class _Stack(ctypes.Structure):
    """lc_stack."""

    _fields_ = [("matrix", _Matrix), ("count", ctypes.c_int64), ("stride", ctypes.c_int64)]


_loaded: ctypes.CDLL | None = None


def load() -> ctypes.CDLL:
    """The emulator library. Raises OSError when it is not built."""
    global _loaded
    if _loaded is None:
        library = ctypes.CDLL(str(LIBRARY), mode=os.RTLD_LOCAL)
        library.lc_last_error.restype = ctypes.c_char_p
        _loaded = library
    return _loaded


def configure(
    seed: int = 1, policy: str = "random", detectors: bool = True, *, mma: str = "exact", sms: int = 2
) -> None:
    """How the next launches run. Same seed and policy, same run. mma: how tensor cores add up; sms: those of a
    persistent kernel's grid."""
    numbers = (POLICIES[policy], int(detectors), MMA_MODES[mma], sms)
    load().lc_emu_configure(ctypes.c_uint64(seed), *map(ctypes.c_int32, numbers))


@contextlib.contextmanager
def capture() -> Iterator[Callable[[], None]]:
    """Launches inside are kept, not run. What is yielded runs them, as launches of one stream that may overlap, over
    what their tensors hold by then: a CUDA graph, of which each thread has one. The tensors must live."""
    library = load()

    def replay() -> None:
        if library.lc_emu_replay() != 0:
            raise EmulatorError(library.lc_last_error().decode())

    library.lc_emu_capture(ctypes.c_int32(1))
    try:
        yield replay
    finally:
        library.lc_emu_capture(ctypes.c_int32(0))


def _matrix(t: Tensor | None) -> Any:
    if t is None:
        return None
    return ctypes.byref(_Matrix(t.data_ptr(), _DTYPES[t.dtype], *t.shape, *t.stride()))


def _stack(t: Tensor) -> Any:
    matrix = _Matrix(t.data_ptr(), _DTYPES[t.dtype], *t.shape[1:], *t.stride()[1:])
    return ctypes.byref(_Stack(matrix, t.shape[0], t.stride(0)))


def _data(t: Tensor | None) -> Any:
    return ctypes.c_void_p(None if t is None else t.data_ptr())


def _choices(row_of: Tensor) -> tuple[Any, Any]:
    """A table [T, K], and K."""
    return _data(row_of), ctypes.c_int32(row_of.shape[1])


# From the arguments of the schema to those of the C function, the stream left out.
_ARGUMENTS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "per_token_group_quant_fp8": lambda x, group, q, s: (_matrix(x), ctypes.c_int64(group), _matrix(q), _matrix(s)),
    "per_block_quant_fp8": lambda w, q, s: (_matrix(w), _matrix(q), _matrix(s)),
    "silu_and_mul_quant_fp8": lambda gate_up, q, s: (_matrix(gate_up), _matrix(q), _matrix(s)),
    "dequant_fp8": lambda q, s, group, out: (_matrix(q), _matrix(s), ctypes.c_int64(group), _matrix(out)),
    "rms_norm_quant_fp8": lambda x, weight, eps, residual, q, s, y, residual_out: (
        _matrix(x),
        _data(weight),
        ctypes.c_double(eps),
        _matrix(residual),
        *(_matrix(t) for t in (q, s, y, residual_out)),
    ),
    "fp8_gemm_nt": lambda a, sa, b, sb, split_k, out: (
        *map(_matrix, (a, sa, b, sb)),
        ctypes.c_int32(split_k),
        _matrix(out),
    ),
    "m_grouped_fp8_gemm_nt_offset": lambda a, sa, b, sb, offsets, max_m_hint, counts_ready, split_k, out: (
        *map(_matrix, (a, sa)),
        *map(_stack, (b, sb)),
        _data(offsets),
        ctypes.c_int64(-1 if max_m_hint is None else max_m_hint),
        ctypes.c_int32(counts_ready),
        ctypes.c_int32(split_k),
        _matrix(out),
    ),
    "m_grouped_fp8_gemm_nt_masked": lambda a, sa, b, sb, masked_m, expected_m, out: (
        *map(_stack, (a, sa, b, sb)),
        _data(masked_m),
        ctypes.c_int64(expected_m),
        _stack(out),
    ),
    "m_grouped_fp8_gemm_nt_contiguous": lambda a, sa, b, sb, m_indices, out: (
        *map(_matrix, (a, sa)),
        *map(_stack, (b, sb)),
        _data(m_indices),
        _matrix(out),
    ),
    "m_grouped_fp8_swiglu_gemm_nt_offset": lambda a, sa, gate_up, s_gate_up, offsets, max_m_hint, counts_ready, h, sh: (
        *map(_matrix, (a, sa)),
        *map(_stack, (gate_up, s_gate_up)),
        _data(offsets),
        ctypes.c_int64(-1 if max_m_hint is None else max_m_hint),
        ctypes.c_int32(counts_ready),
        *map(_matrix, (h, sh)),
    ),
    "moe_permute_quant": lambda x, row_of, src_of, q, s: (
        _matrix(x),
        *_choices(row_of),
        _data(src_of),
        ctypes.c_int64(len(src_of)),
        _matrix(q),
        _matrix(s),
    ),
    "moe_combine": lambda y, row_of, weights, zero_weight, x, add, out: (
        _matrix(y),
        *_choices(row_of),
        _data(weights),
        _data(zero_weight),
        *(_matrix(t) for t in (x, add, out)),
    ),
    "moe_route": lambda logits, bias, num_valid, top_k, num_experts, num_zero_experts, scale, *outputs: (
        _matrix(logits),
        _data(bias),
        _data(num_valid),
        ctypes.c_int32(top_k),
        ctypes.c_int32(num_zero_experts),
        ctypes.c_double(scale),
        *map(_data, outputs),
    ),
    "moe_plan": lambda ids, num_local, weights, offsets, row_of, src_of: (
        _data(ids),
        ctypes.c_int64(ids.shape[0]),
        ctypes.c_int32(ids.shape[1]),
        ctypes.c_int32(num_local),
        *map(_data, (weights, offsets, row_of, src_of)),
    ),
}

OPS = frozenset(_ARGUMENTS)


def c_arguments(op: str, *arguments: Any) -> tuple[Any, ...]:
    """Those of the C function lc_<op>, the stream left out, from those of the schema. The tensors must live."""
    return _ARGUMENTS[op](*arguments)


def kernel(op: str, check: Callable[..., None]) -> Callable[..., None]:
    """The op as a torch kernel for CPU tensors: checked like any other, then launched over host memory."""
    function = getattr(load(), f"lc_{op}")
    flatten = _ARGUMENTS[op]

    def run(*arguments: Any) -> None:
        check(op, *arguments)
        if function(*flatten(*arguments), None) != 0:
            raise EmulatorError(f"{op}: {load().lc_last_error().decode()}")

    return run

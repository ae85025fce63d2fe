"""What the C++ library does not register itself: fakes (tracing, meta tensors), chains of ops, and the reference as a
kernel.

CUDA tensors run the reference on the GPU until an op has a CUDA kernel; CPU tensors run it where there is no C++ CPU
kernel, and everywhere under LONGCAT_OPS_BACKEND=reference. Under LONGCAT_OPS_BACKEND=emu CPU tensors run the CUDA
kernels in the host emulator, where there are any.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch

from ..errors import LongcatShapeError, LongcatUnsupportedError, message
from . import checking, emulated, tensors
from .parameters import schema_form
from .registry import OPS

# Ops with a C++ CPU kernel, with a CUDA kernel in this build, and with one that the emulator runs, found when the
# library is loaded.
CPU_KERNELS: set[str] = set()
CUDA_KERNELS: set[str] = set()
EMULATED_KERNELS: set[str] = set()

_libraries: list[torch.library.Library] = []


def register(backend: str) -> None:
    """Registers fakes, refusals, and the reference for CUDA tensors and for CPU tensors that nothing else serves."""
    library = torch.library.Library("longcat_ops", "IMPL")
    _libraries.append(library)  # a Library's registrations end when it is garbage-collected
    for op in OPS:
        torch.library.register_fake(f"longcat_ops::{op}", _fake(op), lib=library)
        library.impl(op, _autograd(op), "Autograd", with_keyset=True)
        for key in tensors.REFUSED_KEYS:
            library.impl(op, _refuse_layout(op), key)
        for key, found in (("CPU", CPU_KERNELS), ("CUDA", CUDA_KERNELS)):
            if torch._C._dispatch_has_kernel_for_dispatch_key(f"longcat_ops::{op}", key):
                found.add(op)
        if emulated.has_kernel(op):
            EMULATED_KERNELS.add(op)
        if op not in CUDA_KERNELS:
            library.impl(op, _python(op), "CUDA")
        kernel = _cpu_kernel(op, backend)
        if kernel is not None:
            with warnings.catch_warnings():  # torch warns of any override; this one was asked for
                warnings.filterwarnings("ignore", message="Warning only once for all operators")
                library.impl(op, kernel, "CPU", allow_override=True)


def _cpu_kernel(op: str, backend: str) -> Callable[..., None] | None:
    """The kernel that `backend` puts in place of the C++ CPU kernel; None keeps the C++ one."""
    if backend == "cuda":
        return _refuse_cpu(op)
    if backend == "emu" and op in EMULATED_KERNELS:
        return _emulated(op)
    return _python(op) if backend in ("reference", "emu") or op not in CPU_KERNELS else None


def _emulated(op: str) -> Callable[..., None]:
    kernel, other = emulated.kernel(op), _python(op)
    return lambda *arguments: (kernel if is_emulated(op, arguments) else other)(*arguments)


def is_emulated(op: str, arguments: tuple) -> bool:
    """Whether the emulator runs a call, by the schema's arguments. What the check of a CUDA call alone refuses, as
    products of float32, runs the reference."""
    if op not in EMULATED_KERNELS or OPS[op].module not in ("bf16_gemm", "mla"):
        return op in EMULATED_KERNELS
    return not checking.find_problem(
        op, *(checking.on_cuda(a) if isinstance(a, torch.Tensor) else a for a in arguments)
    )[0]


def _python(op: str) -> Callable[..., None]:
    """A kernel that runs the reference of `op`, or its chain. Checks its arguments; loads what it runs when called."""
    run: Callable[..., None] | None = None

    def kernel(*arguments: Any) -> None:
        nonlocal run
        if run is None:
            run = python_kernel(op)
        _require(op, *arguments)
        run(*arguments)

    return kernel


def _require(op: str, *arguments: Any) -> None:
    """The check of a kernel in Python: no tensor may be None, which torch lets through."""
    for i, name in _tensor_arguments(op):
        if arguments[i] is None:
            raise LongcatShapeError(message(op, name, None, "a torch.Tensor"))
    checking.require(op, *arguments)


@functools.cache
def _tensor_arguments(op: str) -> tuple[tuple[int, str], ...]:
    schema = getattr(torch.ops.longcat_ops, op).default._schema
    return tuple((i, spec.name) for i, spec in enumerate(schema.arguments) if str(spec.type) == "Tensor")


def python_kernel(op: str) -> Callable[..., None]:
    """Runs `op` without a C++ or CUDA kernel, by its chain of other ops or by the reference. Takes the arguments of the
    schema."""
    if OPS[op].chain:  # loaded here only: it imports the ops, whose schemas must be registered by then
        from . import expert_chain as functions
    else:
        from .. import reference as functions
    return schema_form(op, getattr(functions, op))


def _fake(op: str) -> Callable[..., None]:
    # Symbolic sizes are not checked: that would pin them to one value.
    def fake(*arguments: Any) -> None:
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        if all(type(n) is int for t in tensors for n in (*t.shape, *t.stride())):
            checking.require(op, *arguments)

    return fake


def _autograd(op: str) -> Callable[..., None]:
    """Refuses tensors that need a gradient, also under the transforms of torch.func. Inference mode does not reach it,
    nor do the functions of longcat_ops, which have made this check."""
    redispatch = getattr(torch.ops.longcat_ops, op).default.redispatch
    check, below = tensors.gradient_check(op), torch._C._after_autograd_keyset

    def kernel(keyset: Any, *arguments: Any) -> None:
        check(arguments)
        redispatch(keyset & below, *arguments)

    return kernel


def _refuse_layout(op: str) -> Callable[..., None]:
    def kernel(*arguments: Any) -> None:
        tensors.require_dense(op, arguments)

    return kernel


def _refuse_cpu(op: str) -> Callable[..., None]:
    def kernel(*arguments: Any) -> None:
        raise LongcatUnsupportedError(
            f"{op}: LONGCAT_OPS_BACKEND=cuda takes no CPU tensors.\n  fix: use .cuda(), or unset the variable"
        )

    return kernel

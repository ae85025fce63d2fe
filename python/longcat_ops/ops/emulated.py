"""LONGCAT_OPS_BACKEND=emu: CPU tensors through the CUDA kernels themselves, executed by the host emulator.

liblongcat_emu.so has the C ABI of cuda/include/longcat_ops.h; it is built in a source tree, not shipped in a wheel. The
same C++ calls it that calls the kernels on a GPU: torch.ops.longcat_kernels.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from .. import _library
from ..errors import LongcatError

LIBRARY = _library.PACKAGE / "liblongcat_emu.so"
POLICIES = {"random": 0, "eager": 1, "lazy": 2}
MMA_MODES = {"exact": 0, "hopper": 1}
_MARK = "[LC-EMULATION] "  # of an error that the emulator reports


class EmulatorError(LongcatError, RuntimeError):
    """The emulator stopped a kernel: race, proxy, protocol, bounds, deadlock. The kernel is at fault, not the call."""


_loaded: ctypes.CDLL | None = None


def load() -> ctypes.CDLL:
    """The emulator library. Raises OSError when it is not built."""
    global _loaded
    if _loaded is None:
        _loaded = _opened(LIBRARY)
    return _loaded


def use(path: Path = LIBRARY) -> None:
    """Takes the kernels of CPU tensors from the library at `path` from now on. It has the emulator's functions; do
    not call a kernel that it lacks. Raises OSError when it cannot be loaded."""
    global _loaded
    library = _opened(path)
    use_kernels(path, on_gpu=False)
    _loaded = library


def _opened(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path), mode=os.RTLD_LOCAL)
    library.lc_last_error.restype = ctypes.c_char_p
    return library


def use_kernels(path: Path | None, *, on_gpu: bool) -> None:
    """Takes the kernels of CUDA tensors, or of CPU tensors, from the library at `path`; None: from the usual one."""
    native = _native()
    native.lc_use_kernels.restype = ctypes.c_char_p
    problem = native.lc_use_kernels(ctypes.c_int(on_gpu), None if path is None else str(path).encode())
    if problem:
        raise OSError(problem.decode())


def _native() -> ctypes.CDLL:
    _library.load()
    return ctypes.CDLL(str(_library.PACKAGE / "liblongcat_torch.so"))


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Inside, the kernels that this thread calls do not check their arguments, like the C functions."""
    _native().lc_check_arguments(0)
    try:
        yield
    finally:
        _native().lc_check_arguments(1)


def configure(
    seed: int = 1, policy: str = "random", detectors: bool = True, *, mma: str = "exact", sms: int = 2
) -> None:
    """Sets how the next launches run. Same seed and policy, same run. mma: how tensor cores accumulate. sms: the number
    that a persistent kernel sizes its grid by."""
    numbers = (POLICIES[policy], int(detectors), MMA_MODES[mma], sms)
    load().lc_emu_configure(ctypes.c_uint64(seed), *map(ctypes.c_int32, numbers))


@contextlib.contextmanager
def capture() -> Iterator[Callable[[], None]]:
    """Records the launches inside instead of running them. The yielded function runs them as one stream in which they
    may overlap, on what their tensors hold then: like a CUDA graph, of which each thread has one. The tensors must
    stay alive."""
    library = load()

    def replay() -> None:
        if library.lc_emu_replay() != 0:
            raise EmulatorError(library.lc_last_error().decode())

    library.lc_emu_capture(ctypes.c_int32(1))
    try:
        yield replay
    finally:
        library.lc_emu_capture(ctypes.c_int32(0))


def has_kernel(op: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"longcat_kernels::{op}", "CPU")


def kernel(op: str) -> Callable[..., None]:
    """The op as a torch kernel for CPU tensors, with the arguments of its schema."""
    overload = getattr(torch.ops.longcat_kernels, op).default

    def run(*arguments: Any) -> None:
        try:
            overload(*arguments)
        except RuntimeError as error:
            _, mark, report = str(error).partition(_MARK)
            if not mark:
                raise
            raise EmulatorError(f"{op}: {report}") from None

    return run

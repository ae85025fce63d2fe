"""`pytest --backend cuda` copies every test's CPU tensors to the GPU, runs the op's CUDA kernel and copies them back.

A tensor's whole storage is copied, so strides, gaps, alignment and memory shared between arguments are preserved, and
the test sees what a kernel writes outside of its outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

active = False  # whether ops on CPU tensors run on a GPU


def carried(op: Callable[..., None], device: str) -> Callable[..., None]:
    """Wraps `op`, which takes tensors on `device`, as a function of CPU tensors with the same effect."""

    def run(*arguments: Any) -> None:
        copies: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

        def there(argument: Any) -> Any:
            if not isinstance(argument, torch.Tensor):
                return argument
            storage = argument.untyped_storage()
            if storage.data_ptr() not in copies:
                copy = torch.empty(storage.nbytes(), dtype=torch.uint8, device=device).untyped_storage()
                copies[storage.data_ptr()] = storage, copy.copy_(storage)
            empty = torch.empty(0, dtype=argument.dtype, device=device)
            copy = copies[storage.data_ptr()][1]
            return empty.set_(copy, argument.storage_offset(), argument.shape, argument.stride())

        op(*(there(argument) for argument in arguments))
        for storage, copy in copies.values():
            storage.copy_(copy)

    return run


def register(device: str = "cuda") -> torch.library.Library:
    """Runs all ops on CPU tensors on `device` for as long as the result is kept. Imports longcat_ops."""
    global active
    active = True
    import longcat_ops
    from longcat_ops.ops import direct
    from longcat_ops.ops.registry import OPS

    longcat_ops._library.load()
    direct.switch(False)  # direct calls would run the CPU kernels
    library = torch.library.Library("longcat_ops", "IMPL")
    with warnings.catch_warnings():  # torch warns about every override; this one is intended
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for op in OPS:
            library.impl(op, carried(getattr(torch.ops.longcat_ops, op), device), "CPU", allow_override=True)
    return library

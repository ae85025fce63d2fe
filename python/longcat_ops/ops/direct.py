"""Direct calls: a function runs the C++ CPU kernel of an op past torch's dispatcher, which costs more than a small op.

They take plain tensors on the CPU, while nothing in torch watches or changes calls. Any other call goes to torch, and
so does one that fails: torch raises the error. The check of the op is the same, with all that it asks of memory, and so
is the release of the GIL.

NOTE: torch knows nothing of a direct call. A kernel that someone else registers for CPU tensors is not called, and an
`ExecutionTraceObserver` records nothing unless a profiler runs. `switch(False)` leaves all calls to torch.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from torch.autograd import forward_ad, profiler

from .. import _environment, _library

Place = tuple[int, int]  # of a size: (argument, dimension)


def caller(op: str) -> Callable[..., bool]:
    """A function of the schema's arguments that says whether it has run the op."""
    native = _library.load()
    made = native.direct_call(op) if _connect(native) else None
    return made or (lambda *arguments: False)


def maker(op: str, rows: Place, columns: Place, dtype: torch.dtype | int) -> Callable[..., torch.Tensor | None]:
    """A function of the schema's inputs that returns the output, contiguous [rows, columns], of `dtype` or that of an
    argument; None where it has not run the op."""
    native = _library.load()
    made = native.direct_maker(op, rows=rows, columns=columns, dtype=dtype) if _connect(native) else None
    return made or (lambda *inputs: None)


def switch(on: bool) -> bool:
    """Turns direct calls of all threads on or off; returns what they were."""
    native = _library.load()
    _connect(native)
    return native.enable_direct_calls(on)


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Leaves the calls of all threads to torch."""
    before = switch(False)
    try:
        yield
    finally:
        switch(before)


def is_connected() -> bool:
    """Whether CPU kernels can be called past torch here."""
    return _connect(_library.load())


@functools.cache
def _connect(native: ModuleType) -> bool:
    """Tells `native` what it must ask of torch, and turns direct calls on. False where CPU tensors run other kernels,
    and where this torch lacks something."""
    if _environment.backend() != "cpu":
        return False
    try:
        empty = torch._C._dynamo.guards._empty_strided_cpu  # compiled graphs allocate with it
        tensor = empty((1,), (1,), torch.float32)
        if not native.begins_with_tensor(tensor, tensor._cdata):
            return False
        native.set_torch(
            types=(torch.Tensor, torch.nn.Parameter),
            watchers=(
                torch._C._len_torch_function_stack,
                torch._C._len_torch_dispatch_stack,
                torch._C._functorch.peek_interpreter_stack,
                torch._C._is_tracing,
                torch._C._autograd._profiler_enabled,  # in this thread
            ),
            idle=[(vars(forward_ad), "_current_level", -1), (vars(profiler), "_is_profiler_enabled", False)],
            oddities=tuple(_oddities()),
            is_grad_enabled=torch.is_grad_enabled,
            empty_strided=empty,
        )
    except (AttributeError, TypeError):
        return False
    native.enable_direct_calls(True)
    return True


def _oddities() -> Iterator[Callable[[torch.Tensor], bool]]:
    """What tells a tensor that is not what its memory holds. One without memory of its own fails in the kernel's glue;
    before torch 2.13, whose C functions print each failure, it must not get there."""
    yield torch.Tensor.is_neg
    if hasattr(torch.Tensor, "has_names"):
        yield torch.Tensor.has_names
    if _library.parse_version(torch.__version__) < (2, 13):
        is_wrapper = torch._C._functorch.is_functorch_wrapped_tensor
        yield lambda tensor: tensor.layout is not torch.strided or tensor.is_nested or is_wrapper(tensor)

"""The ops: docstring, output allocation and one `torch.ops.longcat_ops` call each. Names load on first use."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from .. import _environment, _library
from ..errors import LongcatUnsupportedError
from .registry import OPS

_TYPES = {"DraftScores": "sampling", "PackedRows": "step", "Placement": "moe", "Plan": "moe", "Routing": "moe"}
_MODULE_OF = {**_TYPES, **{name: op.module for name, op in OPS.items()}}

__all__ = ["supports", *_MODULE_OF]


def supports(op: str, *args: Any, **kwargs: Any) -> tuple[bool, str, str]:
    """Would `longcat_ops.<op>(*args, **kwargs)` be accepted? The same check as the call itself, without running it.

    Tensors may be real or on the meta device: only dtype, shape, strides, device and address are read.

    Returns:
        (True, "", "") or (False, reason, fix); fix may be empty.

    Raises:
        LongcatUnsupportedError: there is no such op.
    """
    if op not in OPS:
        raise LongcatUnsupportedError(f"supports: op {op!r} does not exist; these do: {', '.join(sorted(OPS))}.")
    _library.load()
    from . import checking

    return checking.supports(op, args, kwargs)


def _register(native: ModuleType) -> None:
    from . import registration, tensors

    native.set_fake_types(*tensors.FAKES)
    registration.register(_environment.backend())


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_library.import_module(f"ops.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_library.when_loaded.append(_register)

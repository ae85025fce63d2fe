"""LongCat-Flash on Hopper: PyTorch ops, the model built from them, and a decoder.

Importing this package is silent, needs no torch and never fails. Public names load on first use; if torch or the
native library is missing or does not fit, that use raises `LongcatLibraryError` (an ImportError) with the remedy.
`torch.ops.longcat_ops` is registered by the first use, or by the import itself when torch was imported before.
"""

from __future__ import annotations

import importlib

from . import _environment, _library
from ._library import LongcatLibraryError
from .errors import (
    LongcatCheckpointError,
    LongcatCommError,
    LongcatCorruptionError,
    LongcatError,
    LongcatShapeError,
    LongcatTimeoutError,
    LongcatUnsupportedError,
)
from .ops.registry import OPS

__version__ = "0.1.0"

# Public name -> the module that defines it.
_MODULE_OF = {
    "DraftFilter": "engine.c2t",
    "DraftScores": "ops.sampling",
    "Engine": "engine.engine",
    "FinishReason": "engine.request",
    "LongcatFlashConfig": "model",
    "LongcatFlashForCausalLM": "model",
    "Generation": "engine.generate",
    "PackedRows": "ops.step",
    "Placement": "ops.moe",
    "Plan": "ops.moe",
    "Request": "engine.request",
    "Routing": "ops.moe",
    "explain": "ops.explain",
    "generate": "engine.generate",
    "split_bf16x3": "ops.router",
    "supports": "ops",
    **{name: f"ops.{op.module}" for name, op in OPS.items()},
}
_SUBMODULES = ("comm", "engine", "errors", "integrations", "loading", "model", "ops", "perf", "reference", "training")

__all__ = [
    "LongcatCheckpointError",
    "LongcatCommError",
    "LongcatCorruptionError",
    "LongcatError",
    "LongcatLibraryError",
    "LongcatShapeError",
    "LongcatTimeoutError",
    "LongcatUnsupportedError",
    "__version__",
    *_MODULE_OF,
    *_SUBMODULES,
]


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:
        value = getattr(_library.import_module(_MODULE_OF[name]), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_library.package_version = __version__
_environment.warn_unknown()
_library.load_if_torch_is_imported()

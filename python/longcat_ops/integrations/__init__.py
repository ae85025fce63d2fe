"""Adapters for other frameworks, one module each. Each is loaded on first use, and none loads another."""

from __future__ import annotations

import importlib
from types import ModuleType

_ADAPTERS = ("flash_mla", "transformers")


def __getattr__(name: str) -> ModuleType:
    if name in _ADAPTERS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ADAPTERS})

"""DeepGEMM's Triton kernels for A100: refused by name."""

from __future__ import annotations

from ._refusals import LEGACY, refusals

_refused = refusals(LEGACY)
__all__ = [*_refused]
globals().update(_refused)

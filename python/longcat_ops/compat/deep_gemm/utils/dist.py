"""DeepGEMM's helpers of process groups: refused by name."""

from __future__ import annotations

from .._refusals import DIST, refusals

_refused = refusals(DIST)
__all__ = [*_refused]
globals().update(_refused)

"""DeepGEMM's MoE layer in one launch: refused by name."""

from __future__ import annotations

from ._refusals import MEGA, refusals

_refused = refusals(MEGA)
__all__ = [*_refused]
globals().update(_refused)

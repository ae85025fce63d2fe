"""Imported first by every package that needs torch: a missing one is told here, with the remedy, as everywhere else."""

from __future__ import annotations

from . import _library

_library.require_torch()

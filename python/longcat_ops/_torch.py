"""Every package that needs torch imports this first: without torch it raises the usual error, with the remedy."""

from __future__ import annotations

from . import _library

_library.require_torch()

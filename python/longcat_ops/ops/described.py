"""A tensor that need not exist, for the checks of the ops. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple


class Described(NamedTuple):
    """The descriptor that C++ checks take for a tensor that need not exist."""

    dtype: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    device: str
    index: int
    address: int  # 0: unknown

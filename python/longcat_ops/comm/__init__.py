"""Collectives for tensor and expert parallelism: one interface over several ways to reach the other ranks; and where
experts lie among them.
"""

from __future__ import annotations

from .. import _torch  # noqa: F401
from ..errors import LongcatCommError, LongcatTimeoutError
from ..types import Placement
from .communicator import Communicator
from .expert_parallel import Dispatch, ExpertParallel
from .placement import balance_experts
from .row_exchange import RowExchange
from .rungs.base import Caps

__all__ = [
    "Caps",
    "Communicator",
    "Dispatch",
    "ExpertParallel",
    "LongcatCommError",
    "LongcatTimeoutError",
    "Placement",
    "RowExchange",
    "balance_experts",
]

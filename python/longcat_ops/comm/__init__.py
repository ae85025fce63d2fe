"""Collectives for tensor and expert parallelism: one interface over several ways to reach the other ranks."""

from __future__ import annotations

from .. import _torch  # noqa: F401
from ..errors import LongcatCommError, LongcatTimeoutError
from .communicator import Communicator
from .expert_parallel import Dispatch, ExpertParallel
from .rungs.base import Caps

__all__ = ["Caps", "Communicator", "Dispatch", "ExpertParallel", "LongcatCommError", "LongcatTimeoutError"]

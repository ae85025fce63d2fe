"""Lets a caller observe a decode: each pass of the target and of the MTP head, and each choice of a token."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from typing import Protocol


class Work(Enum):
    """The parts of a decode that an `Observer` sees. None lies inside another; a pass ends with its logits. A step that
    is replayed from a graph is seen as a whole, as STEP.
    """

    PROMPT = "prompt"  # the target over a prompt
    DRAFT_PROMPT = "draft prompt"  # the MTP head over a prompt
    TARGET = "target"  # the target over the newest tokens and their drafts
    DRAFT = "draft"  # the MTP head over the rows of the target's pass
    SAMPLING = "sampling"  # the choice of tokens, or of drafts, one from each row of logits at most
    STEP = "step"  # all of a step, replayed


class Observer(Protocol):
    """Is called around the parts of a decode, for instance to time them."""

    def around(self, work: Work, rows: int) -> AbstractContextManager[object]:
        """A context, entered before `work` on `rows` rows (without padding) and left after it, also by an exception."""
        ...


class Unobserved:
    """The observer of a decode without an observer: does nothing."""

    _nothing = nullcontext()

    def around(self, work: Work, rows: int) -> AbstractContextManager[object]:
        return self._nothing

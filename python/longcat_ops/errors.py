"""The exceptions of longcat_ops and the one shape their texts have.

Every message is built from the checked values: operation, argument, what was got, what was expected, then context and
the fix when one is known.
"""

from __future__ import annotations


def message(
    op: str, argument: str, got: object, expected: object, context: str | None = None, fix: str | None = None
) -> str:
    """`op: argument `x` is GOT, expected EXPECTED.` plus an indented line for context and fix."""
    text = f"{op}: argument `{argument}` is {got}, expected {expected}."
    if context:
        text += f"\n  {context}"
    if fix:
        text += f"\n  fix: {fix}"
    return text


class LongcatError(Exception):
    """Base of every exception raised by longcat_ops, so that one `except` can catch them all."""


class LongcatShapeError(LongcatError, ValueError):
    """An argument has a wrong value: dtype, rank, size, stride, device, alignment or range."""


class LongcatUnsupportedError(LongcatError, NotImplementedError):
    """The request is legal, but this build, device or version of the library cannot serve it."""


class LongcatTimeoutError(LongcatError, TimeoutError):
    """A wait passed its deadline; the text names rank, op, slot, expected and seen."""


class LongcatCheckpointError(LongcatError, RuntimeError):
    """A checkpoint cannot be read: file missing, truncated or lying, tensor missing, unexpected or mis-shaped."""

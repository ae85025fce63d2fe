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
    """A wait on other ranks passed its deadline, or cannot end because the process of one of them has ended.

    rank: the one that waited. op: what it ran. slot: where in it, channel and stage. expected: the call that it waited
    for, counted from 1. seen: for each rank that is missing, what that rank last posted. note: how it was found.
    """

    def __init__(self, rank: int, op: str, slot: str, expected: int, seen: dict[int, str], note: str = "") -> None:
        self.rank, self.op, self.slot, self.expected, self.seen, self.note = rank, op, slot, expected, seen, note
        behind = "; ".join(f"rank {r}: {text}" for r, text in sorted(seen.items())) or "no rank is behind"
        text = f"{op}: rank {rank} waited in {slot} for call {expected}, and missing is: {behind}."
        super().__init__(text + (f"\n  {note}" if note else ""))

    @property
    def missing(self) -> tuple[int, ...]:
        """The ranks that did not come, in order."""
        return tuple(sorted(self.seen))

    def __reduce__(self) -> tuple[type[LongcatTimeoutError], tuple[object, ...]]:
        return type(self), (self.rank, self.op, self.slot, self.expected, self.seen, self.note)


class LongcatCommError(LongcatError, RuntimeError):
    """A communicator cannot serve a call: it is closed, or poisoned by an abort, a failure or a refusal elsewhere."""


class LongcatCheckpointError(LongcatError, RuntimeError):
    """A checkpoint cannot be read: file missing, truncated or lying, tensor missing, unexpected or mis-shaped."""


class LongcatCorruptionError(LongcatError, RuntimeError):
    """Bits of memory or of a result changed although nothing should have changed them: silent data corruption, or a
    computation that is not deterministic.

    op: what looked. step: of the training. names: of the tensors.
    """

    def __init__(self, op: str, step: int, names: list[str], how: str) -> None:
        self.op, self.step, self.names, self.how = op, step, names, how
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        super().__init__(
            f"{op}: at step {step} the bits of {shown} {how}.\n"
            "  fix: go on from the last checkpoint, on another device if it happens again (docs/determinism.md)"
        )

    def __reduce__(self) -> tuple[type[LongcatCorruptionError], tuple[object, ...]]:
        return type(self), (self.op, self.step, self.names, self.how)

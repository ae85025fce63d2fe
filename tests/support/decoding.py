"""Watches and replaces the drafts of `generate`, between its steps: they are tensors there, eager or replayed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from longcat_ops.engine.generate import _Run, _Sequence

Choose = Callable[[_Sequence, int | None], int | None]


def on_drafts(monkeypatch: pytest.MonkeyPatch, choose: Choose) -> None:
    """Calls choose(sequence, draft) once a sequence has its new tokens; draft is None where there is none. An id that
    it returns takes the draft's place.
    """
    own_prefill, own_read = _Run._prefill, _Run._read

    def visit(s, step):
        draft = int(step.inputs[s.index, 1]) if s.num_drafts > 0 else None
        chosen = choose(s, draft)
        if draft is not None and chosen is not None:
            step.inputs[s.index, 1] = chosen

    def prefill(run, s, cache, step):
        own_prefill(run, s, cache, step)
        if not s.done:
            visit(s, step)

    def read(run, made, live, step):
        own_read(run, made, live, step)
        for s in live:
            if not s.done:
                visit(s, step)

    monkeypatch.setattr(_Run, "_prefill", prefill)
    monkeypatch.setattr(_Run, "_read", read)

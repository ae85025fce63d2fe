"""Kernels of a decode step's bookkeeping in the host emulator: every element against loops in plain Python, in every
schedule. Every size follows from `tokens`, so no value of an argument can make them leave the arguments; the planted
bugs that do are in tests/mutations/test_step_mutations.py.
"""

from __future__ import annotations

import pytest

from longcat_ops.ops import emulated
from support import step_calls
from support.emulated_kernels import library, one_thread, schedule  # noqa: F401  (fixtures)

# None, one, a warp's and a block's sequences and one more; rows longer than a block and a warp.
SHAPES = [(0, 1), (0, 3), (1, 1), (1, 300), (3, 40), (7, 4), (32, 2), (33, 1), (256, 1), (257, 2), (600, 3)]


@pytest.mark.parametrize(("sequences", "width"), SHAPES)
def test_pack_rows(sequences: int, width: int) -> None:
    for seed, (copies, gap, offset) in enumerate([(1, 0, 0), (3, 5, 1)]):
        s = step_calls.state(sequences, width, seed)
        step_calls.pack(s, width, copies, gap, offset)
    step_calls.pack(step_calls.idle(s), width)
    step_calls.pack(s._replace(num_drafts=[width] * sequences), width)


def test_the_number_of_rows_is_written_as_often_as_asked() -> None:
    for copies in (255, 256, 1000):
        step_calls.pack(step_calls.state(2, 2), 2, copies)


@pytest.mark.parametrize(("sequences", "width"), SHAPES)
def test_advance_lengths(sequences: int, width: int) -> None:
    for seed, (gap, offset) in enumerate([(0, 0), (5, 1)]):
        s = step_calls.state(sequences, width, seed)
        step_calls.advance(s, width, gap, offset)
    step_calls.advance(step_calls.idle(s), width)


@pytest.mark.parametrize("ends_at", [0, 30, 31, 32, 33, 63, 64, 69])
def test_more_tokens_than_lanes(ends_at: int) -> None:
    step_calls.advance(step_calls.long_text(70, ends_at, [9]), 70)
    step_calls.advance(step_calls.long_text(70, ends_at, [-3, 9, 11]), 70)


def test_in_every_schedule() -> None:
    for policy in emulated.POLICIES:
        for seed in (2, 3, 4):
            emulated.configure(seed, policy, detectors=True)
            step_calls.pack(step_calls.state(300, 2, seed), 2, 2)
            step_calls.advance(step_calls.state(9, 3, seed), 3)

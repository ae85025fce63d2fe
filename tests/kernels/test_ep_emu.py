"""Expert parallelism on several emulated GPUs, the emulator's detectors on: received rows, offsets and combined tokens
have the bits of one rank that has all experts; nothing else is written; calls in a row, in flight, across the wrap."""

from __future__ import annotations

import pytest

from longcat_ops.ops import emulated
from support.emulated_kernels import assert_gaps_untouched, library, schedule  # noqa: F401
from support.ep_checks import SHAPES, calls_in_a_row, one_call, two_calls_in_flight

BEFORE_THE_WRAP = 2**32 - 4  # the fourth call behind it is the first again
PAYLOADS = ["fp8", "bf16"]
SLOW = pytest.mark.slow
every_payload = pytest.mark.parametrize("payload", PAYLOADS)


def configure(seed: int) -> None:
    emulated.configure(seed=seed, policy=list(emulated.POLICIES)[seed % 3])


@every_payload
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", ["mixed", "hot", "full", "twice"])
def test_rows_and_sums_are_those_of_one_rank(name: str, payload: str, kind: str) -> None:
    for seed in range(3):
        configure(seed)
        one_call(name, payload, kind, seed)


@every_payload
@pytest.mark.parametrize("epoch", [
    pytest.param(0, id="fresh", marks=SLOW), pytest.param(2**31 - 3, id="half", marks=SLOW),
    pytest.param(BEFORE_THE_WRAP, id="wrap"),
])  # fmt: skip
@pytest.mark.parametrize("buffers", [1, 2])
def test_calls_in_a_row(buffers: int, epoch: int, payload: str) -> None:
    """Counts alone keep them apart: nobody synchronises. Ranks have other numbers of tokens in each call."""
    for seed, name in enumerate(("two ranks", "four ranks, one without tokens", "three experts each")):
        configure(seed + buffers)
        calls_in_a_row(name, payload, seed, calls=4 if seed == 2 else 6, buffers=buffers, epoch=epoch)


@every_payload
@pytest.mark.parametrize("name", ["two ranks", "four ranks, one without tokens", "no tokens"])
def test_two_calls_in_flight(name: str, payload: str) -> None:
    for seed in range(3):
        configure(seed)
        two_calls_in_flight(name, payload, seed, epoch=BEFORE_THE_WRAP * (seed > 0))  # also with devices far apart

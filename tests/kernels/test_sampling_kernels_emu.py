"""Kernels that choose tokens in the host emulator: values against plain Python, the same in every schedule; accesses
outside the arguments are reported.
"""

from __future__ import annotations

import pytest
import torch

import longcat_ops
from longcat_ops.ops import emulated
from longcat_ops.testing.op_results import bits
from support import filter_calls, sampling_calls
from support import sampling_oracle as oracle
from support.emulated_kernels import library, one_thread, run, schedule  # noqa: F401  (fixtures)
from support.sampling_oracle import Settings
from support.step_oracle import i32

# Rows below, of and beyond a load, a warp's and a block's loads and several of them. Few sequences have clusters.
WIDTHS = [1, 3, 4, 5, 127, 128, 131, 255, 256, 520, 1031]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("v", WIDTHS)
def test_verify_greedy(v: int, packed: bool) -> None:
    for b, q in ((0, 3), (1, 1), (2, 4), (5, 2), (17, 3)):
        for offset in range(4):
            sampling_calls.greedy(b, q, v, seed=offset, packed=packed, offset=offset, gap=offset)


@pytest.mark.parametrize("v", [37, 1031])
def test_verify_greedy_in_every_schedule(v: int) -> None:
    for policy in emulated.POLICIES:
        for seed in (2, 3, 4):
            emulated.configure(seed, policy, detectors=True)
            sampling_calls.greedy(4, 3, v, seed=seed, packed=True, offset=1)


# One id, part of a warp's, a warp's and a block's in one step and in several; from 1024 on there are clusters.
DRAWN_WIDTHS = [1, 2, 31, 32, 33, 64, 65, 200, 1030, 4100]


@pytest.mark.parametrize("v", DRAWN_WIDTHS)
def test_sample_tokens(v: int) -> None:
    for b, gap in ((0, 0), (1, 0), (40 if v < 1000 else 9, 3)):
        sampling_calls.sample(b, v, seed=gap, gap=gap)


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("v", DRAWN_WIDTHS)
def test_verify_sampled(v: int, drawn: bool) -> None:
    for b, q, packed in (
        (0, 3, False),
        (1, 1, False),
        (40 if v < 1000 else 9, 3, True),
        (33 if v < 300 else 9, 2, False),
    ):
        sampling_calls.sampled(b, q, v, seed=q, drawn=drawn, packed=packed, gap=q % 3)


@pytest.mark.parametrize("v", [40, 1100])
def test_draws_in_every_schedule(v: int) -> None:
    for policy in emulated.POLICIES:
        for seed in (2, 3, 4):
            emulated.configure(seed, policy, detectors=True)
            sampling_calls.sample(5, v, seed=seed)
            sampling_calls.sampled(5, 3, v, seed=seed, drawn=True, packed=True)


@pytest.mark.parametrize("kind", filter_calls.KINDS)
@pytest.mark.parametrize("v", DRAWN_WIDTHS)
def test_filter_drafts(v: int, kind: str) -> None:
    """No sequence, one, several; the whole row and parts of it."""
    for b, top, depth, gap in ((0, 5, 1, 0), (1, 1, 2, 0), (12 if v < 1000 else 5, 1000, 1, 3), (6, 40, 3, 1)):
        sampling_calls.filtered(b, v, kind, top=top, depth=depth, gap=gap, seed=depth)


@pytest.mark.parametrize("units", [1, 32, 33, 48, 256])
def test_classifiers_of_every_size(units: int) -> None:
    for seed in range(3):
        sampling_calls.filtered(8, 70, "peaked", units=units, beta=0.2 + 0.3 * seed, seed=seed, gap=seed)


@pytest.mark.parametrize("v", [40, 1100])
def test_filters_in_every_schedule(v: int) -> None:
    for policy in emulated.POLICIES:
        for seed in (2, 3, 4):
            emulated.configure(seed, policy, detectors=True)
            sampling_calls.filtered(5, v, filter_calls.KINDS[seed - 1], seed=seed, top=20)


def test_rows_have_the_bits_of_the_cpu_kernel() -> None:
    """Not promised, as sums have another order, but the order moves no float32 here and no choice."""
    settings = [
        Settings(7 * b, b, (0.8, 1.3, 1e-3)[b % 3], (0, 70, 0)[b // 2 % 3], (0.9, 1.0)[b % 2]) for b in range(6)
    ]
    logits = 2 * torch.randn(6, 5003, generator=torch.Generator().manual_seed(3))
    draws = oracle.tensors(settings)
    tokens, probs = torch.zeros(6, dtype=torch.int64), torch.zeros(6, 5003)
    run("sample_tokens", logits, *draws, tokens, probs)
    assert bits((tokens, probs)) == bits(longcat_ops.sample_tokens(logits, *draws))


def test_weights_that_equal_each_other_by_rounding() -> None:
    """Logits that differ by less than the temperature resolves count as ties, of which the lower ids stay."""
    logits = torch.arange(70.0)[None].repeat(4, 1)
    settings = [Settings(b, temperature=3e38, top_k=(5, 0)[b % 2], top_p=(1.0, 0.5)[b // 2]) for b in range(4)]
    tokens, probs = torch.zeros(4, dtype=torch.int64), torch.zeros(4, 70)
    run("sample_tokens", logits, *oracle.tensors(settings), tokens, probs)
    assert [row.nonzero().flatten().tolist() for row in probs] == [list(range(n)) for n in (5, 70, 3, 35)]


def test_the_lowest_id_of_a_tie_across_blocks_and_warps() -> None:
    for places in ([0, 1030], [500, 501, 502], [64, 63], [1, 2, 3], [1027, 1028], [300, 900, 299]):
        logits = torch.zeros(1, 1, 1031)
        logits[..., places] = 1
        tokens, num_tokens = torch.zeros(1, 1, dtype=torch.int64), i32([0])
        run("verify_greedy", logits, torch.zeros(1, 0, dtype=torch.int64), i32([0]), None, tokens, num_tokens)
        assert (tokens.tolist(), num_tokens.tolist()) == ([[min(places)]], [1])


def test_an_access_outside_the_arguments_is_reported() -> None:
    """Tokens without an element."""
    with pytest.raises(emulated.EmulatorError, match="out-of-bounds"):
        run("verify_greedy", torch.zeros(1, 1, 40), torch.zeros(1, 0, dtype=torch.int64), i32([0]), None,
            torch.zeros(1, 0, dtype=torch.int64), i32([0]))  # fmt: skip

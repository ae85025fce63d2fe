"""Kernels that choose tokens in the host emulator: values against plain Python, the same in every schedule; accesses
outside the arguments are reported.
"""

from __future__ import annotations

import pytest
import torch

from longcat_ops.ops import emulated
from support import sampling_calls
from support.emulated_kernels import library, one_thread, run, schedule  # noqa: F401  (fixtures)
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

"""Split-K of the FP8 GEMM kernel in the host emulator with its detectors on. Bits must equal the unsplit kernel's on
each piece of K, its float32 sums added in order; values are checked against fp64.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from longcat_ops.ops import emulated
from longcat_ops.testing.op_results import bits
from support.emulated_kernels import run
from support.gemm_calls import assert_near
from support.grouped import SENTINEL, Fp8Pair, activations, select, weights
from support.split_gemm_calls import SPLITS, expected, offset

BLOCKS = (1, 2, 3, 5, 16)  # of K: fewer than the pieces, no multiple of them, several rounds of a three-stage ring
SIZES = (0, 9, 1, 0, 33)  # a group of 33 rows has two tiles


def dense(part: Fp8Pair, weight: Fp8Pair, split_k: int, dtype: torch.dtype = torch.float32) -> Tensor:
    out = torch.full((len(part[0]), len(weight[0])), SENTINEL, dtype=dtype)
    run("fp8_gemm_nt", *part, *weight, split_k, out)
    return out


SCHEDULES = list(itertools.product(emulated.POLICIES, (1, 2, 3)))


def check_pieces(split_k: int, policy: str, seed: int, n: int, counts: Sequence[int]) -> None:
    """One to three clusters take several tiles of 128 weight rows; the last block of K may be short. bf16 is stored in
    bulk copies, float32 element by element."""
    mma = "hopper" if seed == 3 else "exact"
    for blocks in counts:
        k = 128 * blocks - 16 * (blocks < 5)
        sums = expected(SIZES, n, k, split_k, mma)
        emulated.configure(seed, policy, mma=mma, sms=split_k * (1 + (seed + blocks) % 3))
        rhs, wide = weights(len(SIZES), n, k)
        parts = activations(SIZES, k)
        dtype = torch.bfloat16 if (seed + blocks) % 2 else torch.float32
        outs = offset(parts, rhs, split_k, dtype, ready=seed == 2)
        assert bits(outs) == bits([t.to(dtype) for t in sums])
        assert_near(outs, parts, wide, mma)


@pytest.mark.parametrize(("policy", "seed"), SCHEDULES, ids=str)
@pytest.mark.parametrize("split_k", SPLITS)
def test_pieces_are_added_in_order(split_k: int, policy: str, seed: int) -> None:
    check_pieces(split_k, policy, seed, 72, BLOCKS if seed == 1 else BLOCKS[:-1])


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "seed"), SCHEDULES, ids=str)
@pytest.mark.parametrize("split_k", SPLITS)
def test_pieces_of_two_weight_tiles_are_added_in_order(split_k: int, policy: str, seed: int) -> None:
    check_pieces(split_k, policy, seed, 136, BLOCKS)


@pytest.mark.parametrize("policy", emulated.POLICIES)
@pytest.mark.parametrize("split_k", SPLITS)
def test_low_tiles(split_k: int, policy: str) -> None:
    """Tiles of 64 weight rows, chosen when there are clusters enough, change no bit; an expert with more rows than its
    hint says takes several tiles."""
    sizes, n, k = (0, 70), 136, 640
    sums = expected(sizes, n, k, split_k, "exact")
    rhs, _ = weights(2, n, k)
    emulated.configure(2, policy, sms=8 * split_k)
    for dtype in (torch.float32, torch.bfloat16):
        assert bits(offset(activations(sizes, k), rhs, split_k, dtype, hint=1)) == bits([t.to(dtype) for t in sums])


@pytest.mark.parametrize("split_k", SPLITS)
def test_rows_that_warps_copy(split_k: int) -> None:
    """No tensor map describes rows whose K is no multiple of 16; warps copy them, with the same bits."""
    sizes, n, k = (9, 0, 33), 72, 136 + 256
    sums = expected(sizes, n, k, split_k, "exact")
    rhs, wide = weights(3, n, k)
    parts = activations(sizes, k)
    for seed, policy in enumerate(emulated.POLICIES):
        emulated.configure(seed, policy, sms=split_k * (1 + seed))
        outs = offset(parts, rhs, split_k)
        assert bits(outs) == bits(sums)
        assert_near(outs, parts, wide, "exact")


@pytest.mark.parametrize("split_k", SPLITS)
def test_a_row_has_the_same_bits_in_any_company(split_k: int) -> None:
    """A row's bits depend on none of tile size, number of blocks, hint, order of experts and op."""
    n, k, sizes = 72, 384, (1, 8, 9, 17, 33)
    (b, sb), _ = weights(1, n, k)
    (pool,) = activations((33,), k)
    whole = dense(pool, (b[0], sb[0]), split_k)
    assert bits(whole) != bits(dense(pool, (b[0], sb[0]), 1))
    assert bits(dense(pool, (b[0], sb[0]), split_k, torch.bfloat16)) == bits(whole.bfloat16())
    for order, hint, sms in ((sizes, None, 1), (sizes[::-1], 0, 40)):
        emulated.configure(sms=sms)
        rhs = b.expand(len(sizes), -1, -1).contiguous(), sb.expand(len(sizes), -1, -1)
        for out in offset([select(pool, range(rows)) for rows in order], rhs, split_k, hint=hint):
            assert bits(out) == bits(whole[: len(out)])


@pytest.mark.parametrize("split_k", SPLITS)
def test_no_rows(split_k: int) -> None:
    rhs, _ = weights(2, 72, 128)
    assert [len(out) for out in offset(activations((0, 0), 128), rhs, split_k)] == [0, 0]
    assert len(dense(activations((0,), 128)[0], (rhs[0][0], rhs[1][0]), split_k)) == 0

"""Split-K of the FP8 GEMM kernel in the host emulator, its detectors on. Oracle of the bits: the kernel without a split
on each piece of K, float32 sums added in order. Oracle of the values: fp64.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from emulated_kernels import library, one_thread, run, schedule  # noqa: F401  (fixtures of every test here)
from grouped import SENTINEL, Fp8Pair, activations, collect, place, select, weights
from longcat_ops.ops import emulated
from op_results import bits
from test_moe_gemm_emu import LEAD, assert_near

SPLITS = (2, 4)
BLOCKS = (1, 2, 3, 5, 16)  # of K: fewer than pieces, no multiple of them, several rounds of a ring of three stages
SIZES = (0, 9, 1, 0, 33)  # a group of 33 rows has two tiles


def offset(parts: Sequence[Fp8Pair], rhs: Fp8Pair, split_k: int, dtype: torch.dtype = torch.float32, *,
           hint: int | None = None, ready: bool = False) -> list[Tensor]:  # fmt: skip
    """Rows of no group are NaN, before and after the groups' rows; the output there must stay as it was."""
    starts = list(itertools.accumulate([LEAD, *(len(q) for q, _ in parts)]))
    a, sa = place(parts, starts[:-1], starts[-1] + 5)
    out = torch.full((len(a), rhs[0].shape[1]), SENTINEL, dtype=dtype)
    run("m_grouped_fp8_gemm_nt_offset", a, sa, *rhs, torch.tensor(starts, dtype=torch.int32), hint, ready, split_k, out)
    return collect(out, parts, starts[:-1])


def dense(part: Fp8Pair, weight: Fp8Pair, split_k: int, dtype: torch.dtype = torch.float32) -> Tensor:
    out = torch.full((len(part[0]), len(weight[0])), SENTINEL, dtype=dtype)
    run("fp8_gemm_nt", *part, *weight, split_k, out)
    return out


def columns(pair: Fp8Pair, begin: int, end: int) -> Fp8Pair:
    """Blocks of 128 columns, as views."""
    return pair[0][..., 128 * begin : 128 * end], pair[1][..., begin:end]


def sums_of_pieces(parts: Sequence[Fp8Pair], rhs: Fp8Pair, split_k: int) -> list[Tensor]:
    blocks = rhs[1].shape[-1]
    piece = -(-blocks // split_k)
    total: list[Tensor] = []
    for i in range(split_k):
        begin, end = i * piece, min((i + 1) * piece, blocks)
        sums = [torch.zeros(len(q), rhs[0].shape[1]) for q, _ in parts]
        if begin < end:
            sums = offset([columns(part, begin, end) for part in parts], columns(rhs, begin, end), 1)
        total = [t + s for t, s in zip(total, sums, strict=True)] if total else sums
    return total


@functools.cache
def expected(sizes: tuple[int, ...], n: int, k: int, split_k: int, mma: str) -> list[Tensor]:
    emulated.configure(mma=mma)
    return sums_of_pieces(activations(sizes, k), weights(len(sizes), n, k)[0], split_k)


SCHEDULES = list(itertools.product(emulated.POLICIES, (1, 2, 3)))


def check_pieces(split_k: int, policy: str, seed: int, n: int, counts: Sequence[int]) -> None:
    """One to three clusters take several tiles of 128 weight rows; the last block of K may be short. bf16 leaves as
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
    """64 weight rows where there are clusters enough; one expert has more rows than its hint says, so that they take
    several tiles."""
    sizes, n, k = (0, 70), 136, 640
    sums = expected(sizes, n, k, split_k, "exact")
    rhs, _ = weights(2, n, k)
    emulated.configure(2, policy, sms=8 * split_k)
    for dtype in (torch.float32, torch.bfloat16):
        assert bits(offset(activations(sizes, k), rhs, split_k, dtype, hint=1)) == bits([t.to(dtype) for t in sums])


@pytest.mark.parametrize("split_k", SPLITS)
def test_rows_that_warps_copy(split_k: int) -> None:
    """K is no multiple of 16, so no tensor map describes the rows."""
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
    """In tiles of every size, in any number of blocks, for any hint and order of experts, in both ops."""
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

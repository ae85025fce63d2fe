"""Block pairs of the grouped FP8 GEMM kernel, which share their tokens by multicast, in the host emulator with its
detectors on: every bucket, odd numbers of weight tiles, rings that wrap, several tiles per block; values against fp64,
bits against a single block. Then planted bugs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from longcat_ops.ops import emulated
from longcat_ops.testing.op_results import bits
from support.emulated_kernels import run
from support.gemm_bugs import PIPELINE, PRODUCER, ROLES, SCHEDULER, gemm
from support.gemm_calls import SCHEDULES, assert_near, contiguous, masked, offset, one_weight
from support.grouped import Fp8Pair, activations, weights
from support.kernel_mutations import Mutation, assert_caught, in_tiers, run_in_every_policy

SMS = 8  # four pairs: six groups with three weight tiles take as many rounds in pairs as alone
HINT = 256
SIZES = (0, 8, 24, 9, 97, 257)  # of groups: buckets 8, 24, 16, 128, and 256 with 8
OTHERS = (33, 1, 49, 129, 0, 65)  # 48, 8, 64, 192, 96


def alone(parts: Sequence[Fp8Pair], rhs: Fp8Pair, mma: str = "exact") -> list[Tensor]:
    """The result of a single block."""
    emulated.configure(mma=mma, sms=1)
    return offset(parts, rhs, hint=HINT)


@pytest.mark.parametrize(("policy", "seed"), SCHEDULES, ids=lambda v: str(v))
def test_every_bucket(policy: str, seed: int) -> None:
    """Every bucket is within its bound; K wraps around three stages, a pair's third tile has 8 rows, the fourth 0."""
    mma = "hopper" if seed == 3 else "exact"
    sizes = OTHERS if seed == 2 else SIZES
    rhs, wide = one_weight(6, 264, 640)
    parts = activations(sizes, 640)
    emulated.configure(seed, policy, mma=mma, sms=SMS)
    outs = offset(parts, rhs, hint=HINT, column_major=seed == 2)
    assert_near(outs, parts, [wide] * 6, mma)
    if policy == "random":
        assert bits(outs) == bits(alone(parts, rhs, mma))


@pytest.mark.parametrize("sms", [2, 5, 6])
def test_the_number_of_blocks_and_a_hint_do_not_matter(sms: int) -> None:
    """One to three pairs, with or without a block left over, give the bits of one block; groups take several tiles."""
    rhs, _ = weights(2, 512, 256)
    parts = activations((70, 300), 256)
    expected = bits(alone(parts, rhs))
    for hint in (128, 10**9):
        emulated.configure(seed=sms, policy="lazy", sms=sms)
        assert bits(offset(parts, rhs, hint=hint)) == expected
        assert bits(offset(parts, rhs, hint=hint, ready=True)) == expected


@pytest.mark.parametrize("sizes", [(0, 130, 7), (9, 0, 0)], ids=str)
def test_the_layouts_have_the_same_bits(sizes: tuple[int, ...]) -> None:
    rhs, _ = weights(3, 200, 256)
    parts = activations(sizes, 256)
    expected = bits(alone(parts, rhs))
    emulated.configure(sms=2)
    assert bits(contiguous(parts, rhs, [-1] * 260)) == expected
    assert bits(masked(parts, rhs, 260, mean=64)) == expected
    (a, sa), (b, sb) = activations((300,), 256)[0], rhs
    outs = [torch.zeros(300, 200, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    for out, sms in zip(outs, (2, 1), strict=True):
        emulated.configure(sms=sms)
        run("fp8_gemm_nt", a, sa, b[0], sb[0], 1, out)
    assert bits(outs[0].bfloat16()) == bits(outs[1])


CLOSE = "    for (uint32_t i = 0; i < p.smem.stages; ++i, stages.advance()) stages.wait_empty();"
MUTATIONS = [
    gemm("refilled_without_the_other_block", PIPELINE, "cluster_rank() ^ 1", "cluster_rank()"),
    gemm("ends_before_the_other_block", PRODUCER, CLOSE, "    {}"),
    gemm("other_block_not_counted", ROLES, "(kPairs ? 2 : 1) * p.smem.consumer_warps)", "p.smem.consumer_warps)"),
    gemm("release_of_nothing", PIPELINE, "  ptx::fence_release_shared_cluster();\n", ""),
    gemm("acquire_of_nothing", PIPELINE, "    ptx::fence_acquire_shared_cluster();\n", ""),
    gemm("other_block_may_not_have_begun", ROLES, "    if constexpr (kPairs) ptx::cluster_wait_acquire();\n    if",
         "    if"),
    gemm("no_start_of_the_cluster", ROLES, "    if constexpr (kPairs) ptx::cluster_arrive_relaxed();\n", ""),
    gemm("barriers_fenced_for_the_block", ROLES, "ptx::fence_mbarrier_init();", "ptx::fence_acq_rel_cta();"),
    gemm("halves_overlap", PRODUCER, "uint32_t done = rank * half;", "uint32_t done = rank * (half - 8);"),
    gemm("gap_between_halves", PRODUCER, "rank == 0 ? half : bucket", "rank == 0 ? half - 8 : bucket"),
    gemm("bytes_of_its_own_half", PRODUCER, "bucket * kBlockK);\n        const auto", "bucket / (kPairs ? 2 : 1) * "
         "kBlockK);\n        const auto"),
    gemm("to_the_first_block_alone", PRODUCER, "0b11", "0b01"),
    gemm("empty_tile_skipped", SCHEDULER, "if (ptx::lane_index() == 0)\n        queue.push({group",
         "if (ptx::lane_index() == 0 && weight_tile * p.smem.tile_rows < p.n)\n        queue.push({group"),
    gemm("scales_beyond_the_weights", PRODUCER, "(row < p.n ? row : 0) / kBlockK", "row / kBlockK"),
    gemm("both_take_the_same_weights", SCHEDULER, "blocks + rank;", "blocks;"),
    gemm("pairs_dealt_to_blocks", SCHEDULER, "block_index() / cluster;  // counted", "block_index();  // counted"),
]  # fmt: skip


def check() -> None:
    """Equal and unequal halves, an empty half, an empty tile, more tiles than pairs. With few rows there would be no
    pairs."""
    rhs, wide = weights(2, 264, 640)
    parts = activations((9, 57), 640)
    assert_near(offset(parts, rhs, hint=HINT), parts, wide, "exact")
    rhs, wide = one_weight(3, 256, 384)
    parts = activations((1, 70, 0), 384)
    assert_near(offset(parts, rhs, hint=HINT), parts, [wide] * 3, "exact")


def test_without_a_bug_nothing_is_caught() -> None:
    run_in_every_policy(check, sms=4)


@pytest.mark.parametrize("mutation", in_tiers(MUTATIONS), ids=lambda mutation: mutation.name)
def test_bug_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    assert_caught(mutation, tmp_path, check, sms=4)

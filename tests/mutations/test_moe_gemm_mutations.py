"""Planted bugs in the grouped FP8 GEMM: each is caught in every policy of the emulator's scheduler."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longcat_ops.testing.op_results import bits
from support import gemm_calls as calls
from support.emulated_kernels import run
from support.gemm_bugs import CONSUMER, PIPELINE, PRODUCER, ROLES, SCHEDULER, gemm
from support.grouped import activations, select, weights
from support.kernel_mutations import Mutation, assert_caught, in_tiers, run_in_every_policy

SIZES = (0, 9, 1, 40, 0, 33)


PARAMS = "gemm/params.cuh"
EPILOGUE = "gemm/epilogue.cuh"
TILE = "device/wgmma_tile.cuh"
WAIT = "  ptx::grid_dependency_wait();\n"
READY_WAIT = "  if (!early) ptx::grid_dependency_wait();\n"
EMPTY = "stages.wait_empty();\n      "
FILL = "if constexpr (kTma) {\n        ptx::mbarrier_arrive_expect_tx(stages.full(), p.smem.weight_bytes"
ACC_WAIT, SCALED = "  ptx::wgmma_wait_for<kPending>(acc);\n", "  LC_UNROLL\n  for (uint32_t c = 0; c < kColumns"
E4M3, STEPS = "ptx::wgmma_e4m3<kWidth>(acc, ", "weights + k / 16, tokens + k / 16, "
BARRIER = "  sync_warpgroup(tile.warpgroup);\n"

MUTATIONS = [
    gemm("lane_0_releases_for_others", PIPELINE, "  ptx::warp_sync();\n", ""),
    gemm("stage_overwritten", PRODUCER, EMPTY + FILL, FILL),
    gemm("copy_before_the_fence", EPILOGUE, "  ptx::fence_proxy_async_shared();\n", ""),
    gemm("neighbour_rows_written", EPILOGUE, " && first_token + thread < tile.tokens", ""),
    gemm("tokens_of_a_later_tile_lost", SCHEDULER, "row + chunk * most, left", "row, left"),
    gemm("accumulators_before_the_wait", CONSUMER, ACC_WAIT + SCALED, SCALED),
    gemm("buffer_still_read", EPILOGUE, "  ptx::bulk_wait_read<0>();", "//"),
    gemm("scales_of_the_first_stage", CONSUMER, "4 * stages.stage * p.smem.max_tokens, sum", "0, sum"),
    gemm("large_scales_of_the_first_stage", CONSUMER, "4 * stages.stage * p.smem.max_tokens;", "0;"),
    gemm("read_before_it_is_full", CONSUMER, "      ahead.wait_full();", "//"),
    gemm("large_read_before_it_is_full", CONSUMER, "        stages.wait_full();", "//"),
    gemm("products_not_fenced", CONSUMER, "  ptx::wgmma_fence();\n", ""),
    gemm("released_early", CONSUMER, "      ahead.wait_full();", "      ahead.wait_full();\n    "
         "device::arrive_warp(ahead.empty()); //"),
    gemm("added_while_it_is_multiplied", CONSUMER, "finish(acc[1], kNone);\n    } else", "finish(acc[1], kOne);\n    } "
         "else"),
    gemm("accumulators_of_the_block_before", CONSUMER, "      start(acc[1]);\n      finish(acc[0], kOne);\n      start",
         "      start(acc[0]);\n      finish(acc[0], kOne);\n      start"),
    gemm("phase_stuck", PIPELINE, "      phase ^= 1;\n", ""),
    gemm("too_few_bytes", PRODUCER, "bucket * kBlockK);\n        const auto", "bucket * kBlockK - 128);\n        const "
         "auto"),
    gemm("too_many_bytes", PRODUCER, "(stages.full(), p.smem.weight_bytes)", "(stages.full(), p.smem.weight_bytes + "
         "128)"),
    gemm("one_consumer_short", ROLES, "2 : 1) * p.smem.consumer_warps)", "2 : 1) * p.smem.consumer_warps - 1)"),
    gemm("one_reader_short", ROLES, "(kOperand) + p.smem.consumer_warps)", "(kOperand) + p.smem.consumer_warps - 1)"),
    gemm("barriers_not_fenced", ROLES, "    ptx::fence_mbarrier_init();\n", ""),
    gemm("barriers_not_shared", ROLES, "  ptx::sync_threads();\n", ""),
    gemm("stride_of_two_atoms", TILE, "ptx::make_descriptor(tile, 16, 1024", "ptx::make_descriptor(tile, 16, 2048"),
    gemm("another_swizzle", TILE, "16, 1024, ptx::Swizzle::k128B", "16, 512, ptx::Swizzle::k64B"),
    gemm("warpgroups_share_rows", CONSUMER, "base + warpgroup * (kWarpgroupRows * kBlockK)", "base"),
    gemm("large_warpgroups_share_rows", CONSUMER, "tile.warpgroup * (kWarpgroupRows * kBlockK)", "0"),
    gemm("steps_of_no_width", CONSUMER, E4M3 + "weights + k / 16", E4M3 + "weights"),
    gemm("second_pass_repeats_the_first", CONSUMER, "tokens + at + i * kWidth * kBlockK / 16", "tokens + at"),
    gemm("scales_of_the_other_column", CONSUMER, "from[1], device::bits_float(both.y)", "from[1], "
         "device::bits_float(both.x)"),
    gemm("one_promotion_at_the_end", CONSUMER, E4M3 + STEPS + "k > 0);", E4M3 + STEPS + "true);"),
    gemm("scales_read_too_soon", PRODUCER, "// blocks in L2\n" + WAIT, "\n"),
    gemm("scales_of_the_block_before", PRODUCER, "load(block + kAhead, at)", "load(block + kAhead - 1, at)"),
    gemm("scales_prefetched_beyond_the_last", PRODUCER, " && block + kL2Ahead < blocks.end", ""),
    gemm("scale_of_another_block", PRODUCER, "block * p.token_scale.column_stride", "0"),
    gemm("scale_of_another_row_of_blocks", PRODUCER, "(row < p.n ? row : 0) / kBlockK)", "0)"),
    gemm("offsets_read_too_soon", SCHEDULER, READY_WAIT, ""),
    gemm("buffer_filled_while_read", EPILOGUE, BARRIER + "  //", "  //"),
    gemm("copied_before_all_wrote", EPILOGUE, "async_shared();\n" + BARRIER, "async_shared();\n"),
    gemm("columns_of_the_next_row", EPILOGUE, "2 * tile.columns);", "128);"),
    gemm("elements_beyond_the_width", EPILOGUE, " || c >= tile.columns", ""),
    gemm("elements_beyond_the_tokens", EPILOGUE, "token >= tile.tokens || ", ""),
    gemm("groups_counted_from_the_start", SCHEDULER, "    next -= tiles;\n", ""),
    gemm("offsets_not_cut_off", SCHEDULER, "start[i] = clamp_row(start[i], rows.rows);\n", ""),
    gemm("runs_merged", SCHEDULER, "        first = row;\n", ""),
    gemm("last_run_lost", SCHEDULER, "  if (group != kNone) emit(group, first, rows.rows - first);\n", ""),
    gemm("first_matrix_for_all", PRODUCER, "RowLayout::kMasked ? tile.group : 0", "RowLayout::kMasked ? 0 : 0"),
    gemm("copies_not_fenced", PRODUCER, "  ptx::fence_proxy_async_shared();", "//"),
    gemm("copies_not_swizzled", PRODUCER, "chunk ^ r % 8", "chunk"),
    gemm("copies_beyond_the_columns", PRODUCER, "if (at < k)", "if (at < k + 8)"),
    gemm("shared_memory_not_rounded", "launch/launch.h", "return round_smem(smem);", "return smem;"),
    gemm("offsets_of_32_bits", PARAMS, "group * group_stride + row", "uint32_t(group * group_stride) + row"),
]  # fmt: skip


def check() -> None:
    """Every layout, small and large tiles, tiles of several rounds, both ways of loading and of storing."""
    rhs, wide = weights(len(SIZES), 136, 640)
    parts = activations(SIZES, 640)
    outs = calls.offset(parts, rhs)
    calls.assert_near(outs, parts, wide, "exact")
    assert bits(calls.offset(parts, rhs, hint=1, ready=True)) == bits(outs)
    assert bits(calls.masked(parts, rhs, 1)) == bits(outs)
    assert bits(calls.contiguous(parts, rhs, [-1])) == bits(outs)
    exact = calls.offset(parts, rhs, torch.float32, column_major=True)
    assert bits([out.bfloat16() for out in exact]) == bits(outs)
    check_large_tile()
    check_rows_of_one_group()
    check_copied_rows()
    check_offsets_beyond_the_rows()
    calls.check_512_experts_need_64_bit_offsets()


def check_large_tile() -> None:
    rhs, wide = weights(1, 72, 256)
    parts = activations((193,), 256)
    calls.assert_near(calls.offset(parts, rhs, hint=256), parts, wide, "exact")


def check_rows_of_one_group() -> None:
    (b, sb), _ = weights(2, 8, 128)
    (part,) = activations((256,), 128)
    out = torch.zeros(256, 8, dtype=torch.bfloat16)
    run("m_grouped_fp8_gemm_nt_contiguous", *part, b, sb, torch.ones(256, dtype=torch.int32), out)
    assert bits(out) == bits(calls.dense(part, (b, sb), 1))


def check_copied_rows() -> None:
    """K is not a multiple of 16, so warps copy the rows."""
    rhs, wide = weights(2, 72, 136)
    parts = activations((9, 33), 136)
    calls.assert_near(calls.offset(parts, rhs), parts, wide, "exact")
    (a, sa), (b, sb) = parts[0], rhs
    codes = torch.full((9, 64 + 136), 0x7F, dtype=torch.uint8)[:, :136].copy_(a.view(torch.uint8))  # NaN behind a row
    out = torch.zeros(9, 72, dtype=torch.bfloat16)
    run("fp8_gemm_nt", codes.view(a.dtype), sa, b[0], sb[0], 1, out)
    calls.assert_near([out], [(a, sa)], wide[:1], "exact")


def check_offsets_beyond_the_rows() -> None:
    rhs, _ = weights(2, 72, 256)
    (part,) = activations((12,), 256)
    out, offsets = torch.zeros(12, 72, dtype=torch.bfloat16), torch.tensor([-5, 4, 99], dtype=torch.int32)
    run("m_grouped_fp8_gemm_nt_offset", *part, *rhs, offsets, None, True, 1, out)
    expected = [calls.dense(select(part, rows), rhs, g) for g, rows in enumerate((range(4), range(4, 12)))]
    assert bits([out[:4], out[4:]]) == bits(expected)


def test_without_a_bug_nothing_is_caught() -> None:
    run_in_every_policy(check)


@pytest.mark.parametrize("mutation", in_tiers(MUTATIONS), ids=lambda mutation: mutation.name)
def test_bug_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    assert_caught(mutation, tmp_path, check)

"""Planted bugs in mla_decode: each is caught in every policy of the emulator's scheduler."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import mla_calls
from support.kernel_mutations import Mutation, assert_caught, in_tiers, run_in_every_policy


def decode(name: str, old: str, new: str, header: str = "mla_decode.cuh") -> Mutation:
    return Mutation(name, "mla/mla_decode.cu", f"mla/{header}", old, new)


DEAL, PARAMS, MERGE = "decode_deal.cuh", "decode_params.cuh", "mla_merge.cuh"
RELEASE = "    device::arrive_warp(stages.empty());\n"
ADD = "    add_page<kHalf>(p, base, stages.stage, group, work.flags & kFirst, place, sums);\n"

MUTATIONS = [
    decode("rows_past_the_position_are_zero_times_nan", "at < bytes; at += 16 * 128", "at < 0; at += 16 * 128"),
    decode("weights_overwritten_while_they_are_read", "    ptx::named_barrier_sync(kWeightsFree, kConsumers);\n", ""),
    decode("cuts_do_not_move", "longest > d.raw_splits && end - unit > d.raw_splits", "false", DEAL),
    decode("unmerged_splits_merged_in_place", "if (!raw && split > 0) work.flags |= kMerges", "if (split > 0) "
           "work.flags |= kMerges"),
    decode("no_factor_for_the_second_head", "sums[i], factor[i / 2 % 2]", "sums[i], factor[0]"),
    decode("row_behind_the_position_seen", "i % 2 >= visible", "i % 2 > visible"),
    decode("weights_not_fenced", "    ptx::fence_proxy_async_shared();  // wgmma reads through the async proxy\n", ""),
    decode("query_not_awaited", "      if (work.flags & kNewQuery) queries.wait_full();\n", ""),
    decode("query_overwritten_while_it_is_read", "    queries.wait_empty();\n", ""),
    decode("page_released_before_its_products", ADD + RELEASE, RELEASE + ADD),
    decode("both_halves_of_the_first_columns", "group * (kHalf / kBoxElements) * kBoxBytes", "0 * group"),
    decode("old_sums_kept", "!first || k > 0", "true"),
    decode("factors_read_before_they_are_written", "    ptx::named_barrier_sync(kSplitEnd, kConsumers);\n", ""),
    decode("result_before_the_last_split", "if (!raw && split + 1 == segment.splits)", "if (!raw)"),
    decode("missing_page_read_as_zeros", "      if (page < 0) work.visible = 0;\n", ""),
    decode("rows_of_values_in_the_order_of_columns", "moved(values, 2048 / 16 * k)", "moved(values, 2 * k)"),
    decode("weights_not_swizzled", "(j + lane / 16) ^ row % 8", "(j + lane / 16)"),
    decode("nan_for_padding", "< 0 ? 0.0f : device", "> 0 ? 0.0f : device"),
    decode("read_before_the_kernel_ahead_ends", "  ptx::grid_dependency_wait();\n  const Run", "  const Run"),
    decode("largest_of_two_lanes", "mask <= 2; mask *= 2", "mask <= 1; mask *= 2"),
    decode("weight_of_two_lanes", "reduce_lanes<4>", "reduce_lanes<2>"),
    decode("scale_left_out", "ptx::multiply_rn(score[i], scale)", "score[i]"),
    decode("first_tile_of_heads_for_all", "row % p.deal.head_tiles * kTileHeads),", "0 * row),"),
    decode("splits_of_the_rows_before", "position) / d.split_rows + 1", "position + d.split_rows - 1) / d.split_rows",
           DEAL),
    decode("remainder_of_the_cut_lost", "each * run + rest * run / runs", "each * run", DEAL),
    decode("second_of_a_pair_dealt_as_the_first", "(i * stride + lane) / d.head_tiles", "(i * stride) / d.head_tiles",
           DEAL),
    decode("splits_of_other_rows", "  return rest < run.units ? rest : run.units;", "  return run.units;", DEAL),
    decode("merged_without_the_factor", "ptx::multiply_rn(all, factors.keep)", "all", PARAMS),
    decode("factor_of_the_other_sign", "ptx::add_rn(own, -largest)", "ptx::add_rn(largest, -own)", PARAMS),
    decode("heads_that_do_not_exist", "head + 8 < p.heads ? to", "head < p.heads ? to", PARAMS),
    decode("columns_that_do_not_exist", "if (8 * j >= result.columns) return;\n", "", PARAMS),
    decode("block_after_the_next", "block += merged.z", "block += merged.z + 1", MERGE),
    decode("merged_split_taken_again", "1 + slot + i)", "slot + i)", MERGE),
    decode("merge_does_not_wait", "  ptx::grid_dependency_wait();\n", "", MERGE),
    Mutation("nothing_for_minus_infinity", "mla/mla_decode.cu", "device/math.cuh", "x < -127.0f ? -127.0f : x", "x"),
]  # fmt: skip


def check() -> None:
    """On four blocks: one split and several, merged by a block, by the second kernel, and where a cut moved; pairs and
    single tokens; padding, no place and a missing page; part of a tile of heads; values that fill boxes or do not."""
    mla_calls.decode([300, 65, 1], [(0, 299), (0, -1), (1, 64), (2, 0), (1, 63), (5, 3)], 2, 80, 64, scale=1.0)
    mla_calls.decode([400], [(0, 399)], 70, 32, 16)
    mla_calls.decode([130, 200], [(0, 127), (0, 128), (1, 198), (1, 199)], 12, 144, 144, 128)
    mla_calls.decode_without_a_page()


def test_without_a_bug_nothing_is_caught() -> None:
    run_in_every_policy(check, sms=4)


@pytest.mark.parametrize("mutation", in_tiers(MUTATIONS, quick=3), ids=lambda m: m.name)
def test_bug_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    assert_caught(mutation, tmp_path, check, sms=4)

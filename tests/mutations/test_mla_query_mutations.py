"""Planted bugs in the kernel of mla_query: each is caught in every policy of the emulator's scheduler."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.kernel_mutations import Mutation, assert_caught, in_tiers, run_in_every_policy
from support.mla_query_calls import check_order_of_sums, checked


def planted(name: str, old: str, new: str) -> Mutation:
    return Mutation(name, "mla/mla_query.cu", "mla/mla_query.cuh", old, new)


BARRIER = "  sync_warpgroup(warpgroup);"
LEFT = BARRIER + "  // the chunk before this one has left\n"
SUM = (
    "ptx::wgmma_bf16<kWidth>({}, weight_stage + k / 16, token_stage + k / 16, {});\n"
    "      ptx::wgmma_commit();\n"
    "      {};"
)

MUTATIONS = [
    planted("stage_overwritten", "  ring.wait_empty();\n  ptx::mbarrier", "  ptx::mbarrier"),
    planted("stored_before_the_chunk_ahead_left", LEFT, ""),
    planted("copies_overwrite_a_stage", "  ring.wait_empty();\n  for", "  for"),
    planted("weights_read_before_they_are_there", "      weights.wait_full();", "//"),
    planted("tokens_read_before_they_are_there", "      tokens.wait_full();\n", ""),
    planted("weights_never_released", "if (!p.resident) device::arrive_warp(weights.empty());", ""),
    planted("weights_that_stay_expected_again", "if (p.resident) weights.phase = 0;", ""),
    planted("weights_of_the_first_chunk_alone", "token == 0 || !p.resident", "token == 0"),
    planted("weights_of_the_first_warpgroup", "ptx::warp_index() / 4 * kRowsStep;", "0 * kRowsStep;"),
    planted("heads_and_tokens_exchanged", "{byte, head, static_cast<int32_t>(token)}",
            "{byte, static_cast<int32_t>(token), head}"),
    planted("first_product_of_a_stage_added", "token_stage + k / 16, k > 0)", "token_stage + k / 16, true)"),
    planted("one_promotion_at_the_end", SUM.format("acc", "k > 0", "device::add_products<0>(acc, sum)"),
            SUM.format("sum", "k > 0 || column > 0", "ptx::wgmma_wait_for<0>(sum)")),
    planted("rows_past_the_last_prefetched", "left < p.warpgroups * kWarpgroupRows ? left : ", ""),
    planted("padding_not_cleared", "if (position[i] >= 0) chunk", "chunk"),
    planted("padding_not_cleared_where_turned", "position < 0 ? 0.0f : bits_float(kNanBits)", "bits_float(kNanBits)"),
    planted("angles_past_the_table", "position < p.positions", "position <= p.positions"),
    planted("positions_of_another_token", "/ 8 + 16 * i;\n      if", "/ 8 + 8 * i;\n      if"),
    planted("tokens_past_the_last", "token + row >= p.tokens || ", ""),
    planted("rows_past_the_latent_part", " || column >= p.latent", ""),
    planted("tokens_of_the_first_trip_turned", "step = 16 * p.warpgroups * p.tiles", "step = p.tokens"),
    planted("same_tokens_turned_by_every_block", "first = work.tile + ", "first = "),
    planted("pairs_of_the_first_trip_turned", "at += 8 * kChunk", "at += p.turned"),
    planted("pairs_past_the_last_stored", "pack<BFloat16>(turned), count)", "pack<BFloat16>(turned), kChunk)"),
    planted("stored_before_it_is_there", BARRIER + "\n  const", "  const"),
    planted("stored_by_the_stride_of_tokens", "work.head * p.stride_out_head + column",
            "work.head * p.stride_out + column"),
    planted("copies_not_fenced", "  ptx::fence_proxy_async_shared();", "//"),
    planted("copies_not_swizzled", "chunk ^ row % 8", "chunk"),
    planted("rows_past_the_last_copied", "row < rows_left && ", ""),
    planted("columns_past_the_last_copied", " && chunk * device::kChunk < columns_left", ""),
    planted("operands_read_too_soon", "  ptx::grid_dependency_wait();\n  device::Pipeline", "  device::Pipeline"),
    planted("positions_read_too_soon", "    ptx::grid_dependency_wait();  // before", "//"),
    planted("one_consumer_short", "p.token_stages, kProducers, consumers)",
            "p.token_stages, kProducers, consumers - 1)"),
]  # fmt: skip


def check() -> None:
    """By TMA and by copies, weights that stay and that are read again, one warpgroup and four, two chunks of tokens."""
    checked(70, 2, 136, 136, 72)
    checked(70, 5, 72, 136, 8)
    checked(35, 5, 72, 136, 10)
    check_order_of_sums()


def test_without_a_bug_nothing_is_caught() -> None:
    run_in_every_policy(check)


@pytest.mark.parametrize("mutation", in_tiers(MUTATIONS, 2), ids=lambda mutation: mutation.name)
def test_bug_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    assert_caught(mutation, tmp_path, check)

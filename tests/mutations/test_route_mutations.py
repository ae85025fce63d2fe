"""Planted bugs in moe_route and moe_plan: each is caught in every policy of the emulator's scheduler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from support import plan_calls as plans
from support import route_calls as routes
from support.kernel_mutations import Mutation, assert_caught, in_tiers, run_in_every_policy
from support.route_oracle import assert_routed, batch, biases


def route(name: str, old: str, new: str) -> Mutation:
    return Mutation(name, "moe_route/moe_route.cu", "moe_route/moe_route.cuh", old, new)


def plan(name: str, old: str, new: str, header: str = "moe_dispatch/moe_plan.cuh") -> Mutation:
    return Mutation(name, "moe_dispatch/moe_plan.cu", header, old, new)


WAIT = "  ptx::grid_dependency_wait();\n"
SYNC = "  ptx::sync_threads();\n"
CLEAR = "  clear_counts(p, threads);\n"
MARK = "    ptx::store_release_gpu(p.ids + place, p.mark.id);\n"
WAIT_FOR_MARK = "  wait_for_mark(p);\n"
COUNT = "ptx::red_add_relaxed_gpu(p.counts + expert, 1);"
EARLY = "  if (p.weights && thread == 0) (void)ptx::load_global(p.weights);\n"
NO_EXPERT = "j >= places.steps || places.first + 32 * j >= p.choices || uint32_t(expert[j]) >= p.groups"

MUTATIONS = [
    route("counts_cleared_while_marks_are_left", CLEAR + SYNC, CLEAR),
    route("ties_to_the_higher_id", "for (uint32_t j = kChunk; j-- > 0;)", "for (uint32_t j = 0; j < kChunk; ++j)"),
    plan("count_stored_while_read", "    ptx::warp_sync();\n    if (local", "    if (local"),
    plan("order_within_a_warp", "same & ((1u << lane) - 1)", "same >> lane >> 1"),
    plan("blocks_before_not_added", "begin.before + before", "begin.before"),
    route("weights_with_bias", COUNT, COUNT + " choice.weight += p.scale * ptx::load_global(p.bias + expert);"),
    route("read_before_the_kernel_ahead_ends", WAIT + "  if (p.mark", "  if (p.mark"),
    route("counts_cleared_too_soon", WAIT + "  clear_counts", "  clear_counts"),
    route("counts_not_cleared", "  clear_counts(p, kRouteMaxThreads);\n", ""),
    route("counts_not_cleared_by_the_first_block", CLEAR, ""),
    route("marks_not_released", MARK, MARK.replace("release", "relaxed")),
    route("marks_not_acquired", "ptx::load_acquire_gpu(p.ids", "ptx::load_relaxed_gpu(p.ids"),
    route("counted_before_they_are_zero", WAIT_FOR_MARK + "  if (lane < p.top_k) {\n    float",
          "  if (lane < p.top_k) {\n    float"),
    route("padding_written_before_the_mark", "  " + WAIT_FOR_MARK + "    store_token", "    store_token"),
    route("bad_row_written_before_the_mark", "  " + WAIT_FOR_MARK + "    if (lane == 0)", "    if (lane == 0)"),
    route("mark_overwritten_while_waited_for", "      ptx::spin_pause();\n  }\n" + SYNC,
          "      ptx::spin_pause();\n  }\n"),
    route("mark_of_the_next_block", "ptx::block_index()) * p.block_tokens * p.top_k;",
          "ptx::block_index()) * p.block_tokens * p.top_k + 1;"),
    route("counts_of_ffn_experts_alone", COUNT, "if (choice.id >= 0) " + COUNT),
    route("bad_rows_missed", "      bad |= biased != biased;\n", ""),
    route("bad_rows_stored_not_counted", "ptx::red_add_relaxed_gpu(p.errors, 1)", "ptx::store_global(p.errors, 1u)"),
    route("padding_wins", "j < size[s] ? ordered_bits(biased) : 0", "ordered_bits(biased)"),
    route("one_row_too_many", "token >= ptx::load_global(p.num_valid)", "token > ptx::load_global(p.num_valid)"),
    route("zero_experts_keep_their_weight", "(choice.id < 0 ? zero : choice.weight) = weight;",
          "if (choice.id < 0) zero = weight;\n    choice.weight = weight;"),
    route("largest_logit_not_subtracted", "e[j] = ptx::exp(ptx::add_rn(e[j], -top))", "e[j] = ptx::exp(e[j])"),
    route("half_of_the_sum", "ptx::add_rn(sum, ptx::add_rn(low, high))", "ptx::add_rn(sum, low)"),
    route("negative_scores_turned", "bits & 0x80000000 ? ~bits : bits | 0x80000000", "bits | 0x80000000"),
    route("chosen_again", "        if (j == place) keys[s][j] = 0;\n", ""),
    route("bias_of_the_first_chunk", "load_chunk<Float32, true>(p.bias + begin)",
          "load_chunk<Float32, true>(p.bias + first)"),
    route("chunks_beyond_the_row", "      if (size[s] == 0) continue;\n", ""),
    route("elements_beyond_the_row", "load_elements<Format>(logits + begin, size[s])",
          "load_elements<Format>(logits + begin, kChunk)"),
    route("tokens_beyond_the_last", "  if (token >= p.tokens) {\n    wait_for_mark(p);\n    return;\n  }\n", ""),
    plan("count_read_before_it_is_stored", "rank[j] + 1);\n    ptx::warp_sync();\n", "rank[j] + 1);\n"),
    plan("counts_not_cleared", "ptx::store_shared(counts + 4 * i, 0u)", "(void)i"),
    plan("counts_cleared_while_counted", "0u);\n" + SYNC, "0u);\n"),
    plan("summed_while_counted", "  }\n" + SYNC + "\n  // Thread g: counts", "  }\n\n  // Thread g: counts"),
    plan("ranked_while_summed", "of_warp[i];\n    }\n  }\n" + SYNC, "of_warp[i];\n    }\n  }\n"),
    plan("scan_without_a_barrier", SYNC, "", "device/block_scan.cuh"),
    plan("scan_of_the_own_warp", "ptx::shuffle(others.before, static_cast<int>(warp)) + own.before", "own.before",
         "device/block_scan.cuh"),
    plan("experts_of_other_ranks", "local = expert[j] < p.groups", "local = expert[j] <= p.groups"),
    plan("rows_beyond_the_last", "row < p.rows ? static_cast<int32_t>(row) : -1", "static_cast<int32_t>(row)"),
    plan("offsets_beyond_the_last", "row < p.rows ? row : p.rows", "row"),
    plan("choices_without_a_row_left", "    ptx::store_global(p.row_of + place, row);",
         "    if (row >= 0) ptx::store_global(p.row_of + place, row);"),
    plan("unused_sources_left", "  if constexpr (kForm != PlanForm::kLaunches) "
         "clear_unused_sources(p, begin.total);\n", ""),
    plan("unused_sources_left_by_several_blocks", "  clear_unused_sources(p, static_cast", "  (void)(static_cast"),
    plan("own_block_added", "block + i < ptx::block_index()", "block + i <= ptx::block_index()"),
    plan("offsets_by_every_block", "\n  if (ptx::block_index() == 0) store_offsets", "\n  store_offsets"),
    plan("offsets_by_every_block_of_a_cluster", "    if (ptx::block_index() == 0) store_offsets", "    store_offsets"),
    plan("cluster_blocks_before_not_added", "begin.before + sums.before", "begin.before"),
    plan("own_block_of_a_cluster_added", "rank < own ? count : 0", "rank <= own ? count : 0"),
    plan("cluster_counts_read_too_soon", "  ptx::cluster_sync();\n", "  ptx::sync_threads();\n"),
    plan("ends_while_others_read_its_counts", "  if constexpr (kForm == PlanForm::kCluster) "
         "ptx::cluster_wait_acquire();\n", ""),
    plan("ids_read_before_the_kernel_ahead_ends", WAIT + "  uint32_t expert", "  uint32_t expert"),
    plan("counts_read_before_the_kernel_ahead_ends", WAIT + "  uint32_t before", "  uint32_t before"),
    plan("rows_read_before_the_kernel_ahead_ends", WAIT + "  int32_t row", "  int32_t row"),
    plan("unused_sources_by_every_block", "       row += p.blocks * p.threads)", "       row += p.threads)"),
    plan("weights_ignored", " && weight[j] != 0.0f", ""),
    plan("a_weight_of_nan_is_none", "weight[j] != 0.0f", "(weight[j] < 0.0f || weight[j] > 0.0f)"),
    plan("negative_weights_are_none", "weight[j] != 0.0f", "!(weight[j] <= 0.0f)"),
    plan("minus_0_is_a_choice", "weight[j] != 0.0f", "(weight[j] != 0.0f || 1.0f / weight[j] < 0.0f)"),
    plan("weight_0_has_a_row_and_no_count", "    if (!local) expert[j] = p.groups;\n", ""),
    plan("weights_of_the_first_step", "load_global(p.weights + place)", "load_global(p.weights + place % 32)"),
    plan("weights_read_before_the_kernel_ahead_ends", WAIT + "  uint32_t expert", EARLY + WAIT + "  uint32_t expert"),
    plan("rows_by_ids_alone_in_several_blocks", "if (rank[j] < 0) continue;", f"if ({NO_EXPERT}) continue;"),
]  # fmt: skip


def check_route() -> None:
    """Every kind of row, one block and several, with and without a clear launch, partial rows, padding, ties."""
    for tokens, experts, zero, top_k, bias_kind, valid in (
        (8, 320, 100, 8, "small", None),
        (29, 40, 16, 20, "two_levels", 20),
        (133, 8, 2, 3, "none", None),
        (11, 13, 5, 6, "none", None),
        (1, 24, 8, 4, "small", None),
    ):
        logits, _ = batch(tokens, experts, zero, seed=tokens)
        bias = biases(bias_kind, experts)
        got = routes.route(logits, bias, top_k, zero, valid, errors=3)
        assert_routed(got, logits, bias, top_k=top_k, zero=zero, scale=routes.SCALE, num_valid=valid, errors=3)
    assert routes.route(torch.zeros(1, 24), torch.zeros(24), 12, 0).ids.tolist() == [list(range(12))]


def check_plan() -> None:
    """One block, a cluster and several launches, ids that no expert has, weights of 0, repeated ids."""
    for tokens, groups, top_k in ((20, 40, 12), (320, 12, 32), (520, 12, 32)):
        plans.check(tokens, groups, top_k, seed=1)
        plans.check_weighted(tokens, groups, top_k, seed=1)
    plans.check_repeated_ids_write_nothing_outside(40)
    plans.check_no_choice_at_all()


CHECKS: dict[str, Callable[[], None]] = {"moe_route.cu": check_route, "moe_plan.cu": check_plan}


@pytest.mark.parametrize("check", CHECKS.values(), ids=list(CHECKS))
def test_without_a_bug_nothing_is_caught(check: Callable[[], None]) -> None:
    run_in_every_policy(check)


@pytest.mark.parametrize(
    "mutation", in_tiers(MUTATIONS), ids=lambda mutation: f"{Path(mutation.launcher).stem}-{mutation.name}"
)
def test_bug_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    assert_caught(mutation, tmp_path, CHECKS[Path(mutation.launcher).name])

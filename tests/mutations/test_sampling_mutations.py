"""Planted bugs in the kernels that choose tokens: each is caught in every policy of the emulator's scheduler."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import sampling_calls
from support.kernel_mutations import Mutation, assert_caught, in_tiers, run_in_every_policy


def greedy(name: str, old: str, new: str, header: str = "verify_greedy") -> Mutation:
    return Mutation(name, "sampling/verify_greedy.cu", f"sampling/{header}.cuh", old, new)


def sample(name: str, old: str, new: str, header: str = "distribution") -> Mutation:
    return Mutation(name, "sampling/sample_tokens.cu", f"sampling/{header}.cuh", old, new)


def sampled(name: str, old: str, new: str, header: str = "verify_sampled") -> Mutation:
    return Mutation(name, "sampling/verify_sampled.cu", f"sampling/{header}.cuh", old, new)


def filtered(name: str, old: str, new: str, header: str = "filter_drafts") -> Mutation:
    return Mutation(name, "sampling/filter_drafts.cu", f"sampling/{header}.cuh", old, new)


def best(name: str, old: str, new: str) -> Mutation:
    return greedy(name, old, new, "row_best")


GREEDY = [
    best("last_of_a_tie", "ptx::redux_min(own.key == key ? own.id : kNoToken)",
         "ptx::redux_max(own.key == key ? own.id : 0)"),
    best("zeros_of_two_signs", "ptx::add_rn(value, 0.0f)", "value"),
    best("nan_passed_over", "odd ? kNanKey : key_of(top)", "key_of(top)"),
    greedy("infinity_is_a_token", "if (is_finite(best)) token", "if (true) token"),
    best("elements_before_16_bytes", "if (place < head) take", "if (false) take"),
    best("elements_behind_16_bytes", "if (place < width - tail) take", "if (false) take"),
    best("one_load_of_four", "const bool inside = first + i * stride < vectors", "const bool inside = i == 0"),
    best("past_the_row", "const bool inside = first + i * stride < vectors", "const bool inside = true"),
    best("order_of_a_thread_reversed", "!(value > top)", "!(value >= top)"),
    best("result_of_the_block_alone", "if (team.blocks == 1) return own;", "return own;"),
    best("results_read_before_the_cluster_has_them", "  ptx::cluster_sync();\n  own", "  own"),
    best("results_read_before_the_block_has_them", "  ptx::sync_threads();\n", ""),
    best("a_block_reads_all_of_the_row", "team.rank * team.threads + team.thread", "team.thread"),
    greedy("one_place_for_two_rows", "given % 2 * kBestScratchBytes", "0"),
    greedy("a_block_leaves_early", "  if (p.cluster > 1) ptx::cluster_sync();", " "),
    greedy("draft_behind_the_last", "given < last && ", ""),
    greedy("draft_of_minus_one", "accepted = token >= 0 && ", "accepted = "),
    greedy("more_drafts_than_there_are", "drafts < v.rows - 1 ? drafts : v.rows - 1", "drafts", "verified"),
    greedy("rows_that_do_not_exist", "return row < v.sequences", "return row <= v.sequences", "verified"),
    greedy("negative_rows", "if (row >= 0)", "if (row != -9)"),
    greedy("nothing_behind_the_tokens", "j < v.rows; j += team.threads", "j < given; j += team.threads", "verified"),
    greedy("read_before_the_kernel_ahead_ends", "  ptx::grid_dependency_wait();\n", ""),
]  # fmt: skip
SAMPLE = [
    sample("a_term_of_exp", "p = p * r + 1.0 / 120;", "p = p * r;"),
    sample("ties_of_one_too_many", "seen + ptx::popcount(lower) < cut.ties", "seen + ptx::popcount(lower) <= cut.ties"),
    sample("ties_of_warps_before_left_out", "uint32_t seen = cut.ties_before;", "uint32_t seen = 0;"),
    sample("ties_of_steps_before_left_out", "      seen += ptx::popcount(ties);\n", ""),
    sample("edge_of_one_token_fewer", "target - level.count_above", "target - level.count_above - 1"),
    sample("edge_of_less_mass", "(target - level.mass_above) / level.weight", "1"),
    sample("one_cut_after_the_other_of_the_whole", "whole = level.mass_above + cut.ties * level.weight", "whole += 0"),
    sample("mass_above_the_interval_forgotten", "above += more;", "above = more;"),
    sample("a_step_of_a_run_left_out", "first = r.begin; first < r.end;", "first = r.begin + 32; first < r.end;"),
    sample("runs_that_leave_ids_out", "(width + step - 1) / step * 32", "width / step * 32"),
    sample("running_sum_of_each_lane", "run = shuffle(sum, 31);", "run = sum;"),
    sample("draw_from_the_start", "double run = owner.before;", "double run = 0;"),
    sample("sum_before_the_first_lane", "lane > 0 ? below : 0.0", "below", "exchange"),
    sample("first_warp_draws", "run > wanted) first", "run > 0) first", "exchange"),
    sample("shown_before_all_have_read", "e.turn = e.turn < 2 ? e.turn + 1 : 0;", "e.turn = 0;", "exchange"),
    sample("read_before_it_is_shown", "  sync_team(e.team);\n", "", "exchange"),
    sample("stored_in_blocks_that_have_not_started", "if (team.blocks > 1) ptx::cluster_sync();", " ", "exchange"),
    sample("another_purpose", "Purpose::kDraft", "Purpose::kTarget", "sample_tokens"),
    sample("number_of_the_token_before", "length + 1 + ", "length + ", "draws"),
    sample("key_of_philox_that_stays", "    low += 0x9E3779B9;\n", "", "philox"),
    sample("greedy_sequences_draw", "temperature > 0 && ", "", "draws"),
    sample("stored_behind_the_row", "if (id < r.end) ptx::store", "ptx::store", "sample_tokens"),
    sample("no_token_of_probability_1", "id == token ? 1.0f : 0.0f", "0.0f", "sample_tokens"),
    sample("probabilities_not_of_the_sum", "weight / d.sums.total)", "weight)", "sample_tokens"),
    sample("read_before_the_kernel_ahead_ends", "  ptx::grid_dependency_wait();\n", "", "sample_tokens"),
]  # fmt: skip
SAMPLED = [
    sampled("ratio_of_a_weight", "d.sums.watched / d.sums.total", "d.sums.watched"),
    sampled("differences_of_both_signs", "return rest > 0 ? rest : 0.0;", "return rest > 0 ? rest : -rest;"),
    sampled("nothing_left_to_draw_from", "if (!(sums.total > 0))", "if (false)"),
    sampled("one_number_for_two_purposes", "number(Purpose::kAccept)", "number(Purpose::kResidual)"),
    sampled("draft_past_the_row", "draft >= 0 && draft < p.v.width &&", "draft >= 0 &&"),
    sampled("number_of_the_first_row", "number_of(p.draws, b, j, purpose)", "number_of(p.draws, b, 0, purpose)"),
    sampled("probabilities_of_the_first_row", "j * p.stride_probs_row", "0 * p.stride_probs_row"),
    sampled("drawn_again_after_the_last", "by_ratio = is_judged && ", "by_ratio = "),
    sampled("replaced_draft_goes_on", "Choice{agreed, false}", "Choice{agreed, true}"),
    sampled("two_places_for_three_sums", "e.turn = e.turn < 2 ? e.turn + 1 : 0;", "e.turn ^= 1;", "exchange"),
]  # fmt: skip
FILTERED = [
    filtered("entropy_of_the_whole_row", "sum_kept(e, r, cut, -1,", "sum_kept(e, r, {0, whole}, -1,"),
    filtered("probabilities_of_twice_the_sum", "{p.top, 1}, whole)", "{p.top, 1}, 2 * whole)"),
    filtered("a_step_of_halley", "i < 3", "i < 1"),
    filtered("weights_of_0", "probability > 0 ? ", "true ? "),
    filtered("logits_not_from_the_top", "(r.top - ptx::load_global(x + id))", "(0 - ptx::load_global(x + id))"),
    filtered("logarithm_left_out", "log_whole + (", "("),
    filtered("joint_of_this_draft_alone", "{before / whole,", "{1 / whole,"),
    filtered("joint_of_the_sequence_before", "p.joint_before + b)", "p.joint_before + (b > 0 ? b - 1 : 0))"),
    filtered("rectified_the_wrong_way", "(unit < 0 ? 0.0 : unit)", "(unit > 0 ? 0.0 : unit)"),
    filtered("units_of_one_round", "u < p.units; u += 32", "u < p.units; u += 256"),
    filtered("units_of_one_lane", "sum = sum_lanes(sum) + ", "sum = sum + "),
    filtered("bias_of_the_output_left_out", "ptx::load_global(p.output + p.units)", "0"),
    filtered("depth_of_one", "weight(2) * p.depth", "weight(2)"),
    filtered("sigmoid_of_one_sign", "(sum < 0 ? other : 1.0)", "1.0"),
    filtered("idle_sequences_judged", "if (ptx::load_global(p.num_drafts + b) < p.depth)", "if (false)"),
    filtered("idle_sequences_not_written", "if (is_writer) store(", "if (false) store("),
    filtered("not_dropped_where_not_finite", "if (!(score >= p.beta))", "if (score < p.beta)"),
    filtered("this_draft_kept", "p.num_drafts + b, p.depth - 1)", "p.num_drafts + b, p.depth)"),
    filtered("infinity_is_measured", "if (!is_finite(best))", "if (false)"),
    filtered("read_before_the_kernel_ahead_ends", "  ptx::grid_dependency_wait();\n", ""),
]  # fmt: skip
MUTATIONS = [*GREEDY[:3], *SAMPLE[:1], *FILTERED[:1], *GREEDY[3:], *SAMPLE[1:], *SAMPLED, *FILTERED[1:]]


def check_sample() -> None:
    """Rows of one warp, of a block and of a cluster; every setting."""
    for b, v in ((24, 40), (16, 100), (8, 1100)):
        sampling_calls.sample(b, v, seed=b, gap=3)


def check_sampled() -> None:
    for v in (37, 90):
        sampling_calls.sampled(33, 3, v, drawn=True, packed=v == 37, gap=2)


def check_greedy() -> None:
    """Rows of one load and of several, blocks alone and in clusters, plain and packed, off 16 bytes."""
    for v in (37, 140, 1031):
        sampling_calls.greedy(2, 3, v, offset=3)
        sampling_calls.greedy(40, 3, v, offset=2)
        sampling_calls.greedy(17, 3, v, packed=True, offset=1)


def check_filtered() -> None:
    """Rows of one warp, of a block and of a cluster; depths, classifiers and tops of several sizes."""
    for b, v, kind, top, depth in (
        (12, 40, "ties", 9, 2),
        (8, 100, "peaked", 1000, 3),
        (8, 90, "bad", 20, 2),
        (5, 1100, "flat", 200, 2),
    ):
        sampling_calls.filtered(b, v, kind, top=top, depth=depth, units=40, gap=3)


CHECKS = {
    "verify_greedy": check_greedy,
    "sample_tokens": check_sample,
    "verify_sampled": check_sampled,
    "filter_drafts": check_filtered,
}


def test_without_a_bug_nothing_is_caught() -> None:
    for check in CHECKS.values():
        run_in_every_policy(check)


@pytest.mark.parametrize("mutation", in_tiers(MUTATIONS), ids=lambda m: f"{Path(m.launcher).stem}-{m.name}")
def test_bug_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    assert_caught(mutation, tmp_path, CHECKS[Path(mutation.launcher).stem])

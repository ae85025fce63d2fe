"""Planted bugs in the kernels that choose tokens: each is caught in every policy of the emulator's scheduler."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import sampling_calls
from support.kernel_mutations import Mutation, assert_caught, in_tiers, run_in_every_policy


def greedy(name: str, old: str, new: str, header: str = "verify_greedy") -> Mutation:
    return Mutation(name, "sampling/verify_greedy.cu", f"sampling/{header}.cuh", old, new)


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
    greedy("more_drafts_than_there_are", "drafts < v.rows - 1 ? drafts : v.rows - 1", "drafts"),
    greedy("rows_that_do_not_exist", "return row < v.sequences", "return row <= v.sequences"),
    greedy("negative_rows", "if (row >= 0)", "if (row != -9)"),
    greedy("nothing_behind_the_tokens", "j < v.rows; j += team.threads", "j < given; j += team.threads"),
    greedy("read_before_the_kernel_ahead_ends", "  ptx::grid_dependency_wait();\n", ""),
]  # fmt: skip
MUTATIONS = GREEDY


def check() -> None:
    """Rows of one load and of several, blocks alone and in clusters, plain and packed, off 16 bytes."""
    for v in (37, 140, 1031):
        sampling_calls.greedy(2, 3, v, offset=3)
        sampling_calls.greedy(40, 3, v, offset=2)
        sampling_calls.greedy(17, 3, v, packed=True, offset=1)


def test_without_a_bug_nothing_is_caught() -> None:
    run_in_every_policy(check)


@pytest.mark.parametrize("mutation", in_tiers(MUTATIONS), ids=lambda m: f"{Path(m.launcher).stem}-{m.name}")
def test_bug_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    assert_caught(mutation, tmp_path, check)

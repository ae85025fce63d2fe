"""Planted bugs in the kernels of a decode step's bookkeeping: each is caught in every policy of the scheduler."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import step_calls
from support.kernel_mutations import Mutation, assert_caught, in_tiers, run_in_every_policy


def pack(name: str, old: str, new: str) -> Mutation:
    return Mutation(name, "step/pack_rows.cu", "step/pack_rows.cuh", old, new)


def advance(name: str, old: str, new: str) -> Mutation:
    return Mutation(name, "step/advance_lengths.cu", "step/advance_lengths.cuh", old, new)


WAIT = "  ptx::grid_dependency_wait();\n"
SYNC = "  ptx::sync_threads();\n"

PACK = [
    pack("rows_before_the_block_left_out", "if (b < first) before += rows", "if (b < 0) before += rows"),
    pack("more_drafts_than_there_are", "p.width ? static_cast<uint32_t>(drafts) + 1 : p.width",
         "p.width ? static_cast<uint32_t>(drafts) + 1 : p.width + 1"),
    pack("idle_sequences_have_a_row", "if (drafts < 0) return 0", "if (drafts < 0) return 1"),
    pack("begins_read_before_they_are_there", SYNC, ""),
    pack("positions_wrap", "position < kMostPosition ? static_cast<int32_t>(position) : kMostPosition",
         "static_cast<int32_t>(position)"),
    pack("padding_of_one_block", "row = total + own; row", "row = total + thread; row < total + kPackThreads && row"),
    pack("first_row_of_an_idle_sequence", "count > 0 ? static_cast<int32_t>(before + begin.before) : -1",
         "static_cast<int32_t>(before + begin.before)"),
    pack("end_of_the_last_sequence_left_out", "if (thread == 0) ptx::store_shared(begins",
         "if (thread == 999) ptx::store_shared(begins"),
    pack("one_number_of_rows", "i < p.copies; i += threads", "i < 1; i += threads"),
    pack("sums_that_share_their_scratch", "total, kWarps, scratch + kPackScanBytes)", "total, kWarps, scratch)"),
    pack("rows_next_to_each_other", "b * p.stride_tokens + j", "b * p.width + j"),
    pack("read_before_the_kernel_ahead_ends", WAIT, ""),
]  # fmt: skip
ADVANCE = [
    advance("tokens_behind_the_stop_kept", "if (ending != 0) return", "if (false) return"),
    advance("token_that_ends_it_not_kept", "begin + 1 + ptx::popcount", "begin + ptx::popcount"),
    advance("only_the_last_stop_id", "ends |= ptx::load_global(p.stop_ids + s)",
            "ends = token < 0 || ptx::load_global(p.stop_ids + s)"),
    advance("limit_of_one_more", "limit - old_length - 1)", "limit - old_length)"),
    advance("negative_counts", "most > 0 ? most : 0", "most"),
    advance("more_tokens_than_there_are", "smaller(ptx::load_global(p.num_tokens + b), p.width)",
            "ptx::load_global(p.num_tokens + b)"),
    advance("state_written_before_all_have_read_it", "  ptx::warp_sync();", " "),
    advance("idle_sequences_advance", "p.num_drafts + b) >= 0", "p.num_drafts + b) >= -2"),
    advance("a_draft_too_many", "limit - length - 2", "limit - length - 1"),
    advance("first_rows_that_are_none", "kept.tokens > 0 && first_row >= 0", "kept.tokens > 0"),
    advance("second_trip_skipped", "begin < most; begin += 32", "begin < most; begin += most"),
    advance("newest_next_to_each_other", "b * p.stride_newest", "b"),
    advance("written_before_the_kernel_ahead_ends", WAIT, ""),
]  # fmt: skip
MUTATIONS = [*PACK[:3], *ADVANCE[:2], *PACK[3:], *ADVANCE[2:]]


def check_pack() -> None:
    """Two blocks, ragged; one block; all idle; every sequence full."""
    s = step_calls.state(300, 3)
    step_calls.pack(s, 3, copies=2)
    step_calls.pack(step_calls.idle(s), 3)
    step_calls.pack(step_calls.state(5, 2), 2, gap=3)
    step_calls.pack(s._replace(num_drafts=[7] * 300), 3)


def check_advance() -> None:
    step_calls.advance(step_calls.state(60, 3), 3)
    step_calls.advance(step_calls.state(7, 2), 2, gap=3)
    for ends_at in (33, 69):
        step_calls.advance(step_calls.long_text(70, ends_at, [9, -3]), 70)


def check(mutation: Mutation) -> None:
    (check_pack if mutation.launcher.endswith("pack_rows.cu") else check_advance)()


def test_without_a_bug_nothing_is_caught() -> None:
    run_in_every_policy(check_pack)
    run_in_every_policy(check_advance)


@pytest.mark.parametrize("mutation", in_tiers(MUTATIONS), ids=lambda m: f"{Path(m.launcher).stem}-{m.name}")
def test_bug_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    assert_caught(mutation, tmp_path, lambda: check(mutation))

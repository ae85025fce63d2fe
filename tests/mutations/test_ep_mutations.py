"""Bugs planted in expert parallelism: each ordering weakened, each wait shortened; epochs, lines, flags, tickets,
aborts, places of rows. Each is caught in every policy of the emulator's scheduler."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import ep_checks as checks
from support import ep_faults as faults
from support.kernel_mutations import Mutation, assert_caught, in_tiers, run_in_every_policy


def counts(name: str, old: str, new: str, header: str = "ep_counts") -> Mutation:
    return Mutation(name, "comm/ep_counts.cu", f"comm/{header}.cuh", old, new)


def dispatch(name: str, old: str, new: str, header: str = "ep_dispatch") -> Mutation:
    return Mutation(name, "comm/ep_dispatch.cu", f"comm/{header}.cuh", old, new)


def wait(name: str, old: str, new: str, header: str = "ep_wait") -> Mutation:
    return Mutation(name, "comm/ep_wait.cu", f"comm/{header}.cuh", old, new)


def combine(name: str, old: str, new: str, header: str = "ep_combine") -> Mutation:
    return Mutation(name, "comm/ep_combine.cu", f"comm/{header}.cuh", old, new)


DONE = "LC_DEVICE bool flag_rows(const ExpertView& e, Traffic traffic) {\n  ptx::sync_threads();\n"
RELEASED = "ptx::store_release_sys(flag_of("
LAST = "atomic_add_acq_rel_gpu(ticket, 1) + 1 == ptx::grid_size()"
PASSED_ON = "  ptx::warp_sync();  // all lanes release what the first has acquired\n"
RESET = "    if (last) ptx::store_global(ticket, 0u);\n"
TOLD = "if (last && is_aborted(e.ranks)) {"
AT_RANK = "flag_of(e, rank, traffic, e.ranks.rank)"
STORED = "ptx::store_relaxed_sys(reinterpret_cast<ptx::Vec8*>(v.memory[rank] + lines)"
ACQUIRED = "ptx::load_acquire_sys(line_of(e, lines, thread, thread))"
HEARD = "static_cast<uint32_t>(got[source] >> 32 != epoch) << source"
AWAITED = "ptx::load_acquire_sys(flag) != epoch"
SENDS = "i < row; i += p.threads) {\n    const ptx::Vec8"
SENT_SHIFT = "first + before - offset(v.rank, thread)"

MUTATIONS = [
    dispatch("rows_not_released", RELEASED, RELEASED.replace("release", "relaxed"), "ep_view"),
    counts("lines_not_acquired", ACQUIRED, ACQUIRED.replace("acquire", "relaxed")),
    wait("flags_not_acquired", AWAITED, AWAITED.replace("acquire", "relaxed")),
    combine("flagged_by_the_first_block", LAST, LAST.replace("+ 1 == ptx::grid_size()", "== 0"), "ep_view"),
    counts("slots_of_the_call_before", "e.lines + kLlLineBytes * (epoch % kLlParities * v.ranks * row)", "e.lines"),
    dispatch("released_to_the_own_gpu", RELEASED, RELEASED.replace("sys", "gpu"), "ep_view"),
    dispatch("flagged_before_the_block_is_done", DONE, DONE.replace("  ptx::sync_threads();\n", ""), "ep_view"),
    dispatch("other_blocks_not_passed_on", PASSED_ON, "", "ep_view"),
    dispatch("ticket_not_reset", RESET, "", "ep_view"),
    combine("ticket_not_reset", RESET, "", "ep_view"),
    dispatch("flags_though_it_was_told", TOLD, "if (false) {", "ep_view"),
    combine("flags_though_it_was_told", TOLD, "if (false) {", "ep_view"),
    dispatch("flag_of_the_first_buffer", " + e.buffer);", ");", "ep_view"),
    wait("waits_for_the_first_buffer", " + e.buffer);", ");", "ep_view"),
    combine("flag_of_the_dispatch", "kMaxBuffers * static_cast<uint32_t>(traffic)", "kMaxBuffers * 0", "ep_view"),
    wait("flags_of_both_are_one", "kMaxBuffers * static_cast<uint32_t>(traffic)", "kMaxBuffers * 0", "ep_view"),
    dispatch("flagged_at_this_rank_alone", AT_RANK, AT_RANK.replace(" rank,", " e.ranks.rank,"), "ep_view"),
    dispatch("flag_of_the_receiver", AT_RANK, AT_RANK.replace("e.ranks.rank", "rank"), "ep_view"),
    wait("any_later_looking_epoch_will_do", AWAITED, AWAITED.replace("!=", "<")),
    wait("any_flag_will_do", AWAITED, AWAITED.replace("epoch", "0")),
    wait("last_rank_not_awaited", "waits = source < v.ranks", "waits = source + 1 < v.ranks"),
    wait("does_not_know_that_it_was_told", "waits && is_aborted(v) ? Status::kPeerAborted : ", ""),
    counts("any_later_looking_line_will_do", HEARD, HEARD.replace("!=", "<")),
    counts("any_line_will_do", HEARD, HEARD.replace("epoch", "0")),
    counts("zero_is_an_epoch", "epoch + 1 : 2", "epoch + 1 : 0", "ep_view"),
    counts("lines_stored_as_if_they_were_memory", STORED, STORED.replace("relaxed_sys", "global")),
    counts("counted_before_all_have_heard", "  ptx::sync_threads();\n  return ptx::any(lane < warps",
           "  return ptx::any(lane < warps"),
    counts("last_line_not_sent", SENDS, SENDS.replace("i <", "i + 1 <")),
    counts("goes_on_though_it_was_told", "  if (load(at.aborted, 0) != 0) return;\n", ""),
    counts("goes_on_without_a_line", "  if (any_of_block(!here, base + at.unheard, warps)) return;\n",
           "  any_of_block(!here, base + at.unheard, warps);\n"),
    counts("epoch_not_saved", "    ptx::store_global(e.head + kHeadEpoch, epoch);\n", ""),
    counts("epoch_of_the_buffer_not_saved", "    ptx::store_global(e.call + kCallEpoch, epoch);\n", ""),
    counts("rows_of_lower_ranks_forgotten", SENT_SHIFT, SENT_SHIFT.replace(" + before", "")),
    counts("own_rows_counted_as_a_lower_rank's", "source < v.rank ? end", "source <= v.rank ? end"),
    counts("base_of_all_ranks_together", "first = begin.before - first_of_rank(owner);", "first = begin.before;"),
    counts("runs_by_source", "run = expert * v.ranks + source", "run = source * e.local + expert"),
    counts("back_to_the_row_it_had_here", "static_cast<int32_t>(there - here)", "static_cast<int32_t>(there)"),
    counts("more_rows_than_there_is_room", "if (rows > e.received) {", "if (false) {"),
    counts("one_row_more_than_there_is_room", "if (rows > e.received) {", "if (rows > e.received + 1) {"),
    counts("one_row_more_than_may_come_back", "end > e.back ||", "end > e.back + 1 ||"),
    counts("offsets_not_checked", "first > end || end > e.back ||", ""),
    counts("first_offset_not_checked", " || (thread == 0 && first != 0)", ""),
    counts("goes_on_with_bad_rows", "  if (any_of_block(bad, base + at.bad, warps)) return;\n",
           "  any_of_block(bad, base + at.bad, warps);\n"),
    counts("kept_rows_counted_as_moved", "received - kept);", "received);"),
    dispatch("row_outside_of_the_buffer", "return place.y < e.received;", "return true;"),
    dispatch("row_just_outside_of_the_buffer", "return place.y < e.received;", "return place.y <= e.received;"),
    dispatch("expert_that_there_is_not", " || expert >= e.experts", ""),
    dispatch("ranks_take_turns_with_experts", "place.x = expert / e.local;", "place.x = expert % e.ranks.ranks;"),
    dispatch("sends_though_it_was_told", "aborted = ptx::any(is_aborted(e.ranks))", "aborted = false"),
    dispatch("scales_of_whole_groups", "groups = ceil_div(p.warps.chunks, moe_dispatch::kGroupLanes)",
             "groups = p.warps.chunks / moe_dispatch::kGroupLanes"),
    dispatch("scales_read_before_they_are_left", "    ptx::sync_threads();\n    send", "    send"),
    dispatch("scales_of_the_first_warp", "left = left_of_warp(of);", "left = left_of_warp(0);"),
    dispatch("scales_of_the_block's_own_token", "moe_dispatch::kListBytes<Place> * of;", "0;"),
    dispatch("row_of_the_sender's_plan", "row + ptx::load_global(ExpertTable(e).send_shift + expert)", "row"),
    dispatch("not_the_last_copy", "i < count; ++i)", "i + 1 < count; ++i)"),
    combine("sends_though_it_was_told", "ptx::any(is_aborted(e.ranks)) ? 0 : rows", "rows"),
    combine("row_outside_of_the_source", "    if (back >= e.back) continue;", "    //"),
    combine("row_just_outside_of_the_source", "if (back >= e.back)", "if (back > e.back)"),
    combine("run_that_begins_at_the_row_missed", "ballot(begin <= row)", "ballot(begin < row)"),
    combine("first_runs_only", "near = kWarpLanes * last_begun(coarse, row)", "near = 0"),
    combine("row_of_another_source", "run % e.ranks.ranks", "(run + 1) % e.ranks.ranks"),
    combine("first_part_twice", "kWarpLanes * kCombinePacks * part + lane", "lane"),
    combine("one_unit_too_few", "unit < units;", "unit + 1 < units;"),
    combine("units_of_another_block", "ptx::block_index() * kCombineWarps + ptx::warp_index()", "ptx::warp_index()"),
]  # fmt: skip


def check() -> None:
    for i, name in enumerate(("two ranks", "four ranks, one without tokens", "rows of two parts",
                              "more experts than a warp has lanes")):  # fmt: skip
        checks.one_call(name, ("fp8", "bf16")[i % 2], "mixed", i)
    checks.one_call("two ranks", "bf16", "hot", 5)
    checks.calls_in_a_row("two ranks", "fp8", 1, calls=6, buffers=1, epoch=2**32 - 4)
    checks.calls_in_a_row("four ranks, one without tokens", "bf16", 2, calls=5, buffers=2, epoch=2**32 - 1)
    checks.two_calls_in_flight("two ranks", "fp8", 3, rounds=3)
    for stage in faults.STAGES:
        faults.absent_ranks(stage, [2], 1)
        faults.calls_after_a_failure(stage)
        faults.host_abort(stage)
    for stage in ("dispatch", "combine"):
        faults.sends_of_a_rank_that_was_told(stage)
    faults.waits_of_a_rank_that_was_told()
    for named in ((9, 6, 3, 9), (4, 6, 0, 3)):  # far more than 12 rows, and one more
        faults.an_expert_named_too_often(named)
    for change in ({3: -1}, {0: 1}, {8: 10**6}, {8: faults.SHAPE.returned + 1}):
        faults.offsets_that_make_no_sense(change)
    faults.rows_outside_of_the_buffer()


def test_without_a_bug_nothing_is_caught() -> None:
    run_in_every_policy(check)


@pytest.mark.parametrize(
    "mutation", in_tiers(MUTATIONS), ids=lambda mutation: f"{Path(mutation.launcher).stem}-{mutation.name}"
)
def test_bug_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    assert_caught(mutation, tmp_path, check, whole=True)

"""Bugs planted in the collectives: each ordering weakened, each barrier removed; epochs, lines, aborts, parts. Each is
caught in every policy of the emulator's scheduler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from device_check.ranks import BEFORE_THE_WRAP
from support import comm_checks as checks
from support import comm_machine as comm
from support.kernel_mutations import Mutation, assert_caught, in_tiers, run_in_every_policy


def exchange(name: str, header: str, old: str, new: str) -> Mutation:
    return Mutation(name, "comm/exchange.cu", f"comm/{header}.cuh", old, new)


def lines(name: str, old: str, new: str, header: str = "low_latency") -> Mutation:
    return Mutation(name, "comm/low_latency.cu", f"comm/{header}.cuh", old, new)


def norm(name: str, old: str, new: str, header: str = "all_reduce_norm") -> Mutation:
    return Mutation(name, "comm/all_reduce_norm.cu", f"comm/{header}.cuh", old, new)


ENTRY, EXIT = (
    "  if (!barrier.wait(Stage::kEntry, staged)) return;\n",
    "  if (!barrier.wait(Stage::kExit, true)) return;\n",
)
INBOX = "ptx::load_acquire_sys(inbox)"
ABORTED = "    if (is_aborted(v)) return Status::kPeerAborted;\n"
HOST = "    if (ptx::load_relaxed_sys(&v.record->host_abort) != 0) return Status::kHostAborted;\n"
CLAIM = """  if (ptx::atomic_add_acq_rel_gpu(word(v, v.rank, kClaim), 1) != 0) {
    while (!is_aborted(v)) ptx::spin_pause();
    return;
  }
"""
TELL = """  uint32_t missing = failure.missing;
  if (failure.status == Status::kPeerAborted) {
    missing = 1u << (ptx::load_relaxed_sys(word(v, v.rank, kAbort)) - 1);
  } else {
    LC_NO_UNROLL
    for (uint32_t i = 0; i < v.ranks; ++i) ptx::store_relaxed_sys(word(v, (v.rank + i) % v.ranks, kAbort), 1 + v.rank);
  }
"""
STICKY = "Status status = aborted ? Status::kPeerAborted : Status::kNone"
OWN_SLOT = "    ptx::store_relaxed_sys(arrival(v, v.rank, cell), epoch);"

MUTATIONS = [
    exchange("no_entry", "exchange", ENTRY, ""),
    lines("one_slot_for_all_calls", "epoch % kLlParities", "0"),
    exchange("results_not_released", "exchange", EXIT, EXIT.replace("true", "false")),
    exchange("arrivals_not_acquired", "rank_barrier", INBOX, "ptx::load_relaxed_sys(inbox)"),
    exchange("abort_not_seen", "rank_view", ABORTED, ""),
    exchange("no_exit", "exchange", EXIT, ""),
    exchange("staged_input_not_released", "exchange", ENTRY, ENTRY.replace("staged", "false")),
    exchange("peers_not_acquired", "rank_barrier", "ptx::load_acquire_sys(slot)", "ptx::load_relaxed_sys(slot)"),
    exchange("peers_not_released", "rank_barrier", "ptx::store_release_sys(slot", "ptx::store_relaxed_sys(slot"),
    exchange("released_to_the_own_gpu", "rank_barrier", "red_add_release_sys", "red_add_release_gpu"),
    exchange("arrived_before_the_block_is_done", "rank_barrier",
             "    ptx::sync_threads();\n    if (ptx::warp_index", "    if (ptx::warp_index"),
    exchange("gone_on_before_the_wait", "rank_barrier",
             "    ptx::sync_threads();\n    return ptx::load", "    return ptx::load"),
    exchange("one_arrival_too_few", "rank_barrier", "- v.ranks * epoch)", "- (v.ranks * epoch - 1))"),
    exchange("epoch_not_saved", "exchange", "  if (ptx::thread_index() == 0) barrier.save();\n", ""),
    exchange("epoch_not_counted", "rank_barrier", "        ptx::store_shared(base() + kEpochOffset, epoch);\n", ""),
    exchange("stored_at_this_rank_alone", "switch",
             "ptx::multimem_store_relaxed_sys(reinterpret_cast<ptx::Vec16*>(v.multicast + at), pack)",
             "ptx::store_global(reinterpret_cast<ptx::Vec16*>(v.memory[v.rank] + at), pack)"),
    exchange("stored_as_if_it_were_memory", "switch", "ptx::multimem_store_relaxed_sys(", "ptx::store_global("),
    exchange("loaded_from_this_rank_alone", "switch",
             "ptx::multimem_load_add_relaxed_sys<Element::kMultimem>(\n"
             "        reinterpret_cast<const ptx::Vec16*>(v.multicast + at))",
             "ptx::load_global(reinterpret_cast<const ptx::Vec16*>(v.memory[v.rank] + at))"),
    exchange("summed_from_this_rank_on", "switch",
             "Element::unpack(ptx::load_global(reinterpret_cast<const ptx::Vec16*>(v.memory[rank] + at)), other)",
             "Element::unpack(ptx::load_global(reinterpret_cast<const ptx::Vec16*>("
             "v.memory[(v.rank + rank) % v.ranks] + at)), other)"),
    exchange("edges_in_every_block", "spans", "  if (ptx::block_index() != 0) return;\n", ""),
    exchange("tail_forgotten", "spans", "i < span.head + span.tail;", "i < span.head;"),
    exchange("edges_of_every_rank", "spans", "    if (index > 0) shard.head = shard.tail = 0;\n", ""),
    exchange("last_part_too_long", "spans", "first + size < packs ? size : packs - first", "size"),
    exchange("one_trip_too_many", "spans", "left > kPacks * stride ? left - kPacks * stride : 0",
             "left - kPacks * stride"),
    exchange("copied_by_another_block", "exchange", "      const Span span = part(rank);\n",
             "      const Span span = part((rank + ptx::block_index()) % v.ranks);\n"
             "      if (rank == 0 && ptx::block_index() == 1) continue;\n"),
    exchange("pack_of_the_next_trip", "spans", "      now[j] = next[j];\n", ""),
    exchange("row_counts_below_0", "exchange", "fit &= ptx::load_global(p.device_rows + r) >= 0", "fit &= true"),
    exchange("own_rows_not_checked", "exchange", "<= p.max_own_rows", "<= p.max_rows"),
    exchange("row_counts_not_checked", "exchange", "kWhat != Collective::kAllReduce && !rows_fit(p)", "false"),
    exchange("host_not_asked", "rank_view", HOST, ""),
    exchange("time_never_up", "rank_view", "now - start > v.timeout_ns", "now < start"),
    exchange("peers_not_told", "rank_view", "(v.rank + i) % v.ranks, kAbort)", "v.rank, kAbort)"),
    exchange("report_overwritten", "rank_view", CLAIM, ""),
    lines("told_before_it_is_claimed", CLAIM + TELL, TELL + CLAIM, "rank_view"),
    exchange("arrives_after_an_abort", "rank_barrier", STICKY, "Status status = Status::kNone"),
    exchange("own_arrival_not_kept", "rank_barrier", OWN_SLOT, "    //"),
    exchange("waits_for_unsigned_epochs", "rank_barrier",
             "while (static_cast<int32_t>(ptx::load_acquire_sys(inbox) - v.ranks * epoch) < 0)",
             "while (ptx::load_acquire_sys(inbox) < v.ranks * epoch)"),
    lines("flag_of_every_call", "flag = epoch | 1u << 31", "flag = 1u << 31"),
    lines("first_flag_only", "low.y == flag && low.w == flag && high.y == flag && high.w == flag", "low.y == flag"),
    lines("lines_loaded_as_if_they_were_memory",
          "low = ptx::load_relaxed_sys_two_words(lines)", "low = ptx::load_global(lines)"),
    lines("lines_stored_as_if_they_were_memory",
          "ptx::store_relaxed_sys_two_words(lines, ", "ptx::store_global(lines, "),
    lines("lines_never_cleaned", "epoch % kCleanPeriod >= kCleanPeriod - 2", "false"),
    lines("epoch_read_after_it_is_saved", "    ptx::sync_threads();  // all have read the epoch\n", ""),
    lines("line_epoch_not_saved", "  if (ptx::thread_index() == 0) lines.save();\n", ""),
    lines("cut_pack_read_whole", "from + kPackBytes <= bytes) {", "from < bytes) {"),
    lines("cut_pack_stored_whole", "rest >= kPackBytes && output", "output"),
    lines("abort_not_seen_in_lines", ABORTED, "", "rank_view"),
    norm("no_exit_before_the_norm", EXIT, ""),
    norm("h_not_released", EXIT, EXIT.replace("true", "false")),
    norm("staged_x_not_released", ENTRY, ENTRY.replace("staged", "false")),
    norm("residual_of_the_first_row", "residual.load(at))", "residual.load(p.payload + at % row_bytes))"),
    norm("blocks_take_turns_by_their_rank", "(block + rank) % ptx::grid_size()",
         "(block + p.view.rank) % ptx::grid_size()"),
    norm("scratch_used_while_it_is_read", "    team.sync();  // the scratch is free again\n", ""),
    norm("teams_share_their_scratch", "kBarrierBytes + team.index * kReduceScratchBytes", "kBarrierBytes"),
    norm("teams_of_all_threads", "threads(device::norm_threads(p.chunks))", "threads(p.threads)"),
    norm("scale_of_every_chunk", "      if (chunk % kGroupChunks == 0)\n", ""),
    norm("residual_not_rounded_apart", "sum[i] = ptx::add_rn(sum[i], other[i]);\n  return Element::pack(sum);",
         "sum[i] = other[i];\n  return Element::pack(sum);", "switch"),
    norm("second_pack_of_a_chunk_forgotten", "chunk * kChunkPacks + j);", "chunk * kChunkPacks);"),
    norm("lines_of_fewer_rows", "p.rows * row_packs * kPackBytes", "(p.rows - 1) * row_packs * kPackBytes"),
    norm("norm_epoch_not_saved", "  if (ptx::thread_index() == 0) barrier.save();\n", ""),
    norm("norm_line_epoch_not_saved", "  if (ptx::thread_index() == 0) lines.save();\n", ""),
]  # fmt: skip


def check_exchange() -> None:
    for form in comm.FORMS:
        with comm.of_form(3, form) as m:
            m.start_epochs(BEFORE_THE_WRAP + 14)
            for seed in range(2):
                checks.mixed(m, seed, 2113, [3, 0, 9], checks.TWO_BARRIERS)
        for count, staged in ((1027, False), (67, True)):
            tensors = comm.inputs(3, count, torch.bfloat16, exact=False, seed=count)
            with comm.of_form(3, form) as m:
                for call in range(2):
                    for out in comm.all_reduce(m, tensors, staged=staged, offset=call):
                        comm.assert_sum(out, tensors, fixed_order=form != "multicast")
        for epoch in (0, 0xFFFFFFFF):
            checks.absent_rank(form, "all_reduce", [2], epoch)
        checks.host_abort(form, "reduce_scatter")
        checks.calls_after_a_failure(form, "all_gather", "all_reduce")
        checks.rows_that_do_not_fit(form, [3, -1, 2])
        checks.rows_that_do_not_fit(form, [1, 5, 2], most=4)


def check_lines() -> None:
    for form in comm.FORMS:
        with comm.of_form(3, form) as m:
            checks.mixed(m, 1, 131, [], ["low_latency"] * 3)
        for seed in range(4):
            with comm.of_form(4, form, blocks=1) as m:
                checks.mixed(m, seed, 8, [], ["low_latency"] * 8)
        for absent in ([0], [1], [2], [3], [0, 1], [1, 3], [0, 2, 3]):
            checks.absent_rank(form, "low_latency", absent)
        checks.host_abort(form, "low_latency")
        checks.flags_that_come_round_again(form)


def check_norm() -> None:
    checks.residual_norm("peers", (1, 2056), torch.bfloat16, 5, ranks=2, threads=512)  # a thread has two chunks
    for form in comm.FORMS:
        for seed, (shape, dtype) in enumerate((((7, 256), torch.bfloat16), ((5, 264), torch.float32))):
            checks.residual_norm(form, shape, dtype, seed, staged=True)
            checks.residual_norm(form, shape, dtype, seed, staged=False)
        for shape, dtype in (((3, 72), torch.bfloat16), ((2, 128), torch.float32)):
            checks.residual_norm(form, shape, dtype, 3, lines=True)
        checks.residual_norm(form, (21, 232), torch.bfloat16, 4, threads=96)  # three teams
        checks.absent_rank(form, "norm", [2])
        checks.absent_rank(form, "low_latency_norm", [0])


CHECKS: dict[str, Callable[[], None]] = {
    "exchange.cu": check_exchange,
    "low_latency.cu": check_lines,
    "all_reduce_norm.cu": check_norm,
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=list(CHECKS))
def test_without_a_bug_nothing_is_caught(check: Callable[[], None]) -> None:
    run_in_every_policy(check)


@pytest.mark.parametrize(
    "mutation", in_tiers(MUTATIONS), ids=lambda mutation: f"{Path(mutation.launcher).stem}-{mutation.name}"
)
def test_bug_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    launcher = Path(mutation.launcher).name
    assert_caught(mutation, tmp_path, CHECKS[launcher], whole=launcher == "all_reduce_norm.cu")

"""Planted bugs in split-K: each is caught in every policy of the emulator's scheduler."""

from __future__ import annotations

from pathlib import Path

import pytest

from longcat_ops.testing.op_results import bits
from support import split_gemm_calls as calls
from support.grouped import activations, weights
from support.kernel_mutations import Mutation, assert_caught, in_tiers, run_in_every_policy

SIZES, N, K = (9, 40), 136, 640
SPLIT, PRODUCER, CONSUMER, ROLES, SCHEDULER = (
    f"gemm/{name}.cuh" for name in ("split", "producer", "consumer", "roles", "scheduler")
)
START = "    ptx::cluster_arrive_relaxed();  // the fence above orders the barriers\n    ptx::cluster_wait_acquire();\n"


def split(name: str, file: str, old: str, new: str) -> Mutation:
    return Mutation(name, "gemm/moe_gemm.cu", file, old, new)


MUTATIONS = [
    split("buffer_reused_before_it_was_read", SPLIT, "    ptx::mbarrier_wait_cluster(free, phase ^ 1);\n", ""),
    split("pieces_added_in_another_order", SPLIT, "buffer + piece * stride", "buffer + (split - 2 - piece) * stride"),
    split("ends_before_it_is_freed", CONSUMER, "pieces.finish();", ";"),
    split("no_start_barrier", ROLES, START, "    ptx::sync_threads();\n"),
    split("too_few_bytes", SPLIT, "(split - 1) * kCount * 4 * 32", "(split - 1) * kCount * 4 * 32 - 16"),
    split("too_many_bytes", SPLIT, "(split - 1) * kCount * 4 * 32", "split * kCount * 4 * 32"),
    split("blocks_of_the_last_piece_lost", PRODUCER, "(blocks + p.split - 1) / p.split", "blocks / p.split"),
    split("freed_for_all_lanes_by_one", SPLIT, "    ptx::warp_sync();  // all lanes have read\n", ""),
    split("freed_without_a_release", SPLIT, "      ptx::fence_release_shared_cluster();", "//"),
    split("filled_seen_in_the_block_only", SPLIT, "mbarrier_wait_cluster(full", "mbarrier_wait(full"),
    split("freed_seen_in_the_block_only", SPLIT, "mbarrier_wait_cluster(free", "mbarrier_wait(free"),
    split("freed_to_the_second_block_only", SPLIT, "rank > 0 && rank < split", "rank == 1"),
    split("pieces_on_top_of_each_other", SPLIT, " + (rank - 1) * stride", ""),
    split("phase_stuck", SPLIT, "    phase ^= 1;\n", ""),
    split("every_block_stores", SPLIT, "return rank == 0;", "return true;"),
    split("tiles_dealt_to_blocks", SCHEDULER, "kCluster == Cluster::kSplit ? p.split : 1;", "1;"),
    split("pieces_barriers_not_made", ROLES, "    if (split) PieceExchange::init(p, base);\n", ""),
]  # fmt: skip


def check() -> None:
    rhs, _ = weights(len(SIZES), N, K)
    parts = activations(SIZES, K)
    for split_k in calls.SPLITS:
        assert bits(calls.offset(parts, rhs, split_k)) == bits(SUMS[split_k])


SUMS: dict[int, list] = {}


@pytest.fixture(scope="module", autouse=True)
def sums(library: None) -> None:
    """The oracle, from the library without a bug."""
    SUMS.update({split_k: calls.expected(SIZES, N, K, split_k, "exact") for split_k in calls.SPLITS})


def test_without_a_bug_nothing_is_caught() -> None:
    run_in_every_policy(check, sms=4)


@pytest.mark.parametrize("mutation", in_tiers(MUTATIONS), ids=lambda mutation: mutation.name)
def test_bug_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    assert_caught(mutation, tmp_path, check, sms=4)

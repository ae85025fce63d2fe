"""Planted bugs in the kernels of latent attention: each is caught in every policy of the emulator's scheduler."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support import mla_calls
from support.kernel_mutations import Mutation, assert_caught, in_tiers, run_in_every_policy


def write(name: str, old: str, new: str, header: str = "mla/mla_write.cuh") -> Mutation:
    return Mutation(name, "mla/mla_write.cu", header, old, new)


PAGES = "mla/pages.cuh"
WAIT = "  ptx::grid_dependency_wait();\n"
SECOND = "inverse_rms_of(sum, static_cast<float>(p.latent), p.eps);\n  for (uint32_t at = kChunk * thread;"

MUTATIONS = [
    write("page_of_the_position_not_of_its_page", "p.rows) + page * p.stride_page", "p.rows) + page * p.stride_row"),
    write("sine_of_the_other_sign", "-ptx::multiply_rn(pair[1], angle[1])", "ptx::multiply_rn(pair[1], angle[1])",
          "mla/rope.cuh"),
    write("padding_written", "position >= 0 && position / kPageRows", "position / kPageRows", PAGES),
    write("sums_of_one_warp", "reduce_block(sum, Sum(), p.threads / 32", "reduce_block(sum, Sum(), 1"),
    write("angles_past_the_table", "position < p.positions", "position <= p.positions"),
    write("pages_that_do_not_exist", "page < view.pages ? page : -1", "page", PAGES),
    write("sequences_that_do_not_exist", "sequence < view.sequences && ", "", PAGES),
    write("negative_sequences", "sequence >= 0 && ", "", PAGES),
    write("positions_past_the_table", " && position / kPageRows < view.width", "", PAGES),
    write("row_of_the_page_not_taken", "position % kPageRows * p.stride_row", "0 * p.stride_row"),
    write("second_trip_of_the_sum_skipped", "at < p.latent; at += kChunk * p.threads) {\n    unpack",
          "at < p.latent; at += kChunk * p.latent) {\n    unpack"),
    write("second_trip_of_the_row_skipped", SECOND + " at < p.latent; at += kChunk * p.threads",
          SECOND + " at < p.latent; at += kChunk * p.latent"),
    write("elements_past_the_latent_part", "load_elements<Format>(x + at, p.latent - at);",
          "load_elements<Format>(x + at, kChunk);"),
    write("stored_past_the_latent_part", "inverse_rms, weight), p.latent - at);", "inverse_rms, weight), kChunk);"),
    write("weight_of_the_first_chunk", "load_floats<true>(p.weight + at, weight)",
          "load_floats<true>(p.weight + kChunk * thread, weight)"),
    write("eps_left_out", "static_cast<float>(p.latent), p.eps", "static_cast<float>(p.latent), 0.0f"),
    write("pairs_of_the_first_trip", "pair < p.pairs; pair += p.threads", "pair < p.pairs; pair += p.pairs"),
    write("key_not_turned", "store_elements<Format>(y + 2 * pair, pack<Format>(turned), 2)",
          "store_elements<Format>(y + 2 * pair, pack<Format>(values), 2)"),
    write("read_before_the_kernel_ahead_ends", WAIT, ""),
]  # fmt: skip


def check() -> None:
    """Whole chunks and partial ones, one warp, several, and several trips; tokens with and without a place."""
    for latent, width in ((136, 66), (2056, 8), (9, 2), (264, 600)):
        mla_calls.write(latent, width, torch.bfloat16)
    mla_calls.write(264, 8, torch.float32, scale=1e-4)


def test_without_a_bug_nothing_is_caught() -> None:
    run_in_every_policy(check)


@pytest.mark.parametrize("mutation", in_tiers(MUTATIONS), ids=lambda m: f"{Path(m.launcher).stem}-{m.name}")
def test_bug_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    assert_caught(mutation, tmp_path, check)

"""Planted bugs in the kernels of rows: each is caught in every policy of the emulator's scheduler."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from support import rows_calls
from support.kernel_mutations import Mutation, assert_caught, in_tiers, run_in_every_policy


def norm(name: str, old: str, new: str) -> Mutation:
    return Mutation(name, "rows/rms_norm.cu", "rows/rms_norm.cuh", old, new)


def embed(name: str, old: str, new: str) -> Mutation:
    return Mutation(name, "rows/embed_rows.cu", "rows/embed_rows.cuh", old, new)


def add(name: str, old: str, new: str, header: str = "rows/add_rows.cuh") -> Mutation:
    return Mutation(name, "rows/add_rows.cu", header, old, new)


def silu(name: str, old: str, new: str) -> Mutation:
    return Mutation(name, "rows/silu_and_mul.cu", "rows/silu_and_mul.cuh", old, new)


WAIT = "  ptx::grid_dependency_wait();\n"
PART = "static_cast<uint32_t>(rest < kRowsChunk ? rest : kRowsChunk)"
PLACES = "rows/row_chunks.cuh"
UNPACKED = "    unpack(input, values);\n"

MUTATIONS = [
    norm("sums_of_one_warp", "reduce_block(sum, Sum(), p.threads / 32", "reduce_block(sum, Sum(), 1"),
    embed("ids_past_the_table", "id < p.vocabulary", "id <= p.vocabulary"),
    add("idle_threads_not_idle", "tile_row < tiles.tile_rows && ", "", PLACES),
    silu("gate_as_up", "load_part<Format, kWide>(gate + p.tiles.width", "load_part<Format, kWide>(gate"),
    norm("second_reading_without_the_residual", "load(has_residual ? residual_out : x, at)", "load(x, at)"),
    norm("eps_left_out", "static_cast<float>(p.width), p.eps", "static_cast<float>(p.width), 0.0f"),
    norm("residual_beyond_the_held_left_out", "input = add_chunks(input, load(residual, at));", "load(residual, at);"),
    norm("held_residual_left_out", "held[i] = add_chunks(held[i], other[i]);", ""),
    norm("sum_beyond_the_held_not_stored", "      store(residual_out, at, input);\n", ""),
    norm("squares_beyond_the_held_left_out", UNPACKED + "    sum = ptx::add_rn(sum, sum_of_squares(values));\n",
         UNPACKED),
    norm("chunk_skipped_behind_the_held", "first + kHeld * step", "first + (kHeld + 1) * step"),
    norm("held_past_the_row", "if (first + i * step < p.width) store(residual_out", "store(residual_out"),
    norm("weight_of_the_first_chunk", "load_weight(first + i * step, weight[i])", "load_weight(first, weight[i])"),
    norm("weight_of_the_first_chunk_beyond", "load_weight(at, weight[0])", "load_weight(first, weight[0])"),
    norm("residual_by_the_stride_of_x", "row * p.stride_residual;", "row * p.stride_x;"),
    norm("sum_by_the_stride_of_y", "row * p.stride_residual_out", "row * p.stride_y"),
    norm("read_before_the_kernel_ahead_ends", WAIT, ""),
    embed("negative_ids", "id >= 0 && ", ""),
    embed("ids_of_32_bits", "const int64_t id = ", "const int32_t id = "),
    embed("row_of_the_token", "id * p.stride_table", "place.row * p.stride_table"),
    embed("read_before_the_kernel_ahead_ends", WAIT, ""),
    add("y_by_the_stride_of_x", "place.row * p.stride_y", "place.row * p.stride_x"),
    add("x_twice", "add_chunks(first, second)", "add_chunks(first, first)"),
    add("read_before_the_kernel_ahead_ends", WAIT, ""),
    add("rows_past_the_last", "row < tiles.rows && ", "", PLACES),
    add("columns_past_the_last", " && column < tiles.width", "", PLACES),
    add("column_tiles_of_one_place", "block - row_tile * tiles.column_tiles", "0 * block", PLACES),
    add("rows_of_one_place", "row_tile) * tiles.tile_rows + tile_row", "row_tile) * tiles.tile_rows", PLACES),
    add("read_past_the_row", f"load_elements<Format>(from, {PART})", "load_elements<Format>(from, kRowsChunk)", PLACES),
    add("stored_past_the_row", f"store_elements<Format>(to, chunk, {PART})",
        "store_elements<Format>(to, chunk, kRowsChunk)", PLACES),
    silu("gate_and_up_exchanged", "ptx::silu(h[i]), up[i]", "h[i], ptx::silu(up[i])"),
    silu("out_by_the_stride_of_gate_up", "place.row * p.stride_out", "place.row * p.stride_gate_up"),
    silu("read_before_the_kernel_ahead_ends", WAIT, ""),
]  # fmt: skip


def check_norm() -> None:
    """One warp and several, whole chunks and partial ones, what is held and what lies beyond."""
    for width in (97, 264, 4104, 6408):
        rows_calls.norm(2, width, torch.bfloat16, residual=True)
    rows_calls.norm(2, 2056, torch.bfloat16, (3, 0, 1, 0), residual=True)
    rows_calls.norm(2, 6408, torch.float32, scale=1e-4)


def check_embed() -> None:
    for width in (9, 264):
        rows_calls.embed(width, torch.bfloat16)


def check_add() -> None:
    """Several rows a block, not all of its threads, several blocks a row; whole chunks and partial ones."""
    for rows, width in ((19, 97), (5, 576), (3, 1032)):
        rows_calls.add(rows, width, torch.bfloat16)


def check_silu() -> None:
    for width in (97, 576):
        rows_calls.silu(3, width, torch.float32)


CHECKS = {"rms_norm": check_norm, "embed_rows": check_embed, "add_rows": check_add, "silu_and_mul": check_silu}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_without_a_bug_nothing_is_caught(check) -> None:
    run_in_every_policy(check)


@pytest.mark.parametrize("mutation", in_tiers(MUTATIONS), ids=lambda m: f"{Path(m.launcher).stem}-{m.name}")
def test_bug_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    assert_caught(mutation, tmp_path, CHECKS[Path(mutation.launcher).stem])

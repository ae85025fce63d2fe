"""Planted bugs in the grouped bf16 GEMM: each is caught in every policy of the emulator's scheduler. Bugs in the code
that it shares with the FP8 GEMM are in test_moe_gemm_mutations.py, too.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from longcat_ops.testing.op_results import bits
from support import bf16_calls as calls
from support.bf16_calls import activations, weights
from support.gemm_bugs import CONSUMER, PRODUCER, ROLES, SCHEDULER
from support.kernel_mutations import Mutation, assert_caught, in_tiers, run_in_every_policy


def gemm(name: str, file: str, old: str, new: str) -> Mutation:
    return Mutation(name, "gemm/bf16_moe_gemm.cu", file, old, new)


TILE, EPILOGUE, LAYOUT, OPERANDS = "device/wgmma_tile.cuh", "gemm/epilogue.cuh", "gemm/layout.h", "gemm/operands.h"
PRODUCT = "ptx::wgmma_bf16<kWidth>(acc, weights + k / 16, tokens + k / 16, k > 0)"
EMPTY = "stages.wait_empty();\n      "
FILL = "if constexpr (kTma) {\n        ptx::mbarrier_arrive_expect_tx(stages.full(), p.smem.weight_bytes"

MUTATIONS = [
    gemm("accumulators_before_the_wait", TILE, "  ptx::wgmma_wait_for<kPending>(acc);\n", ""),
    gemm("one_promotion_at_the_end", CONSUMER, PRODUCT, PRODUCT.replace("k > 0", "true")),
    gemm("half_of_k", LAYOUT, "Operand::kFp8 ? 1 : 2; }", "Operand::kFp8 ? 1 : 1; }"),
    gemm("columns_of_one_byte", OPERANDS, "size * m.columns", "m.columns"),
    gemm("rows_of_one_byte", OPERANDS, "size * m.row_stride", "m.row_stride"),
    gemm("groups_of_one_byte", OPERANDS, "size * stack.stride", "stack.stride"),
    gemm("three_producers", LAYOUT, "Operand::kFp8 ? 3 : 2; }", "Operand::kFp8 ? 3 : 3; }"),
    gemm("promoted_twice", TILE, "ptx::add_rn(sum[i], acc[i])", "ptx::add_rn(sum[i], ptx::add_rn(acc[i], acc[i]))"),
    gemm("steps_of_no_width", CONSUMER, PRODUCT, PRODUCT.replace("weights + k / 16", "weights")),
    gemm("tokens_of_the_first_step", CONSUMER, PRODUCT, PRODUCT.replace("tokens + k / 16", "tokens")),
    gemm("products_not_fenced", CONSUMER, "  ptx::wgmma_fence();\n", ""),
    gemm("read_before_it_is_full", CONSUMER, "      ahead.wait_full();", "//"),
    gemm("large_read_before_it_is_full", CONSUMER, "        stages.wait_full();", "//"),
    gemm("stage_overwritten", PRODUCER, EMPTY + FILL, FILL),
    gemm("added_while_it_is_multiplied", CONSUMER, "finish(acc[1], kNone);\n    } else", "finish(acc[1], kOne);\n    } "
         "else"),
    gemm("second_pass_repeats_the_first", CONSUMER, "tokens + at + i * kWidth * kBlockK / 16", "tokens + at"),
    gemm("warpgroups_share_rows", CONSUMER, "base + warpgroup * (kWarpgroupRows * kBlockK)", "base"),
    gemm("one_reader_short", ROLES, "producers(kOperand) + p.smem.consumer_warps)",
         "producers(kOperand) + p.smem.consumer_warps - 1)"),
    gemm("copies_not_fenced", PRODUCER, "  ptx::fence_proxy_async_shared();", "//"),
    gemm("copies_beyond_the_columns", PRODUCER, "if (at < k)", "if (at < k + 8)"),
    gemm("columns_of_the_next_row", EPILOGUE, "2 * tile.columns);", "128);"),
    gemm("groups_counted_from_the_start", SCHEDULER, "    next -= tiles;\n", ""),
]  # fmt: skip


@functools.cache
def operands() -> tuple[list[torch.Tensor], torch.Tensor]:
    return activations((0, 9, 1, 40, 33), 200), weights(5, 136, 200)


def check() -> None:
    """Every layout, small and large tiles, tiles of several rounds and of two passes, both ways of loading."""
    parts, b = operands()
    outs = calls.offset(parts, b)
    calls.assert_near(outs, parts, b, "exact")
    assert bits(calls.offset(parts, b, hint=1, ready=True)) == bits(outs)
    assert bits(calls.masked(parts, b, 1)) == bits(outs)
    assert bits(calls.contiguous(parts, b, [-1])) == bits(outs)
    check_order()
    large, one = activations((193,), 264), weights(1, 136, 264)
    calls.assert_near(calls.offset(large, one, hint=256), large, one, "exact")
    rows = torch.full((9, 137), torch.nan, dtype=torch.bfloat16)[:, 1:].copy_(parts[1][:, :136])  # off 16 bytes
    calls.assert_near([calls.dense(rows, b[1, :, :136])], [rows], b[1:2, :, :136], "exact")


def check_order() -> None:
    """The sums of 64 of K, exact within an instruction, that are added one after the other."""
    a, b = operands()[0][1], operands()[1][1]
    total = torch.zeros(len(a), len(b))
    for stage in range(0, a.shape[1], 64):
        part = torch.zeros_like(total)
        for k in range(stage, min(stage + 64, a.shape[1]), 16):
            part = (part.double() + a[:, k : k + 16].double() @ b[:, k : k + 16].double().mT).float()
        total = total + part
    assert bits(calls.dense(a, b, torch.float32)) == bits(total)


def test_without_a_bug_nothing_is_caught() -> None:
    run_in_every_policy(check)


@pytest.mark.parametrize("mutation", in_tiers(MUTATIONS, 3), ids=lambda mutation: mutation.name)
def test_bug_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    assert_caught(mutation, tmp_path, check)

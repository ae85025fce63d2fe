"""Planted bugs in the GEMM with SwiGLU: each is caught in every policy of the emulator's scheduler. Bugs in the code
that it shares with the other GEMMs are in test_moe_gemm_mutations.py.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from longcat_ops.testing.op_results import bits
from support import swiglu_gemm_calls as calls
from support.grouped import Fp8Pair
from support.kernel_mutations import Mutation, assert_caught, in_tiers, run_in_every_policy
from support.swiglu_oracle import weights


def swiglu(name: str, file: str, old: str, new: str) -> Mutation:
    return Mutation(name, "gemm/moe_swiglu_gemm.cu", f"gemm/{file}.cuh", old, new)


MULTIPLY, CONSUMER, EPILOGUE, PRODUCER = "consumer", "swiglu_consumer", "swiglu_epilogue", "producer"
WAIT = "  ptx::grid_dependency_wait();"
READY_WAIT = "  if (!early) ptx::grid_dependency_wait();\n"
BARRIER = "  sync_consumers();\n"

MUTATIONS = [
    swiglu("up_with_the_scale_of_gate", MULTIPLY, "at + j * panel + 32 * c", "at + 32 * c"),
    swiglu("a_warp_left_out_of_amax", EPILOGUE, ", high.z, high.w}", ", high.z}"),
    swiglu("copy_before_the_fence", EPILOGUE, "  ptx::fence_proxy_async_shared();\n", ""),
    swiglu("tokens_read_too_soon", PRODUCER, "(&map);\n" + WAIT, "(&map);\n"),
    swiglu("stored_too_soon", CONSUMER, WAIT, "  ptx::store_global(p.sh.data, 0.0f);\n" + WAIT),
    swiglu("offsets_read_too_soon", "scheduler", READY_WAIT, ""),
    swiglu("scales_read_too_soon", PRODUCER, "// blocks in L2\n" + WAIT, "\n"),
    swiglu("amax_read_before_all_left_it", EPILOGUE, "all copies\n" + BARRIER, "all copies\n"),
    swiglu("scale_read_before_it_is_made", EPILOGUE, "  " + BARRIER + "    quantise", "    quantise"),
    swiglu("next_amax_while_scales_are_read", EPILOGUE, "  sync_consumers();  // after", "  //"),
    swiglu("buffer_still_read", EPILOGUE, "  ptx::bulk_wait_read<0>();", "//"),
    swiglu("shared_memory_gone", CONSUMER, "  ptx::bulk_wait_read<0>();", "//"),
    swiglu("channels_and_tokens_swapped", EPILOGUE, "[0][0], ratio[0][1], ratio[1][0],", "[0][0], ratio[1][0], "
           "ratio[0][1],"),
    swiglu("lanes_left_out_of_amax", EPILOGUE, "mask < 32", "mask < 16"),
    swiglu("amax_of_channels_that_are_not", EPILOGUE, ">= channels) continue;", ">= channels + 128) continue;"),
    swiglu("amax_of_signed_values", EPILOGUE, " & device::kAbsMask", ""),
    swiglu("one_slab_twice", CONSUMER, "weights + at + slab * (kWarpgroupRows * kBlockK / 16)", "weights + at"),
    swiglu("one_slab_twice_of_few_tokens", CONSUMER, "weights + at + kWarpgroupRows * kBlockK / 16", "weights + at"),
    swiglu("panels_of_half_a_stage", CONSUMER, "4 * (2 * stages.stage", "4 * (stages.stage"),
    swiglu("one_scale_for_both", PRODUCER, "j * p.weight_scale.row_stride", "0"),
    swiglu("tokens_of_no_group_written", EPILOGUE, "} else if (thread < tile.tokens) {", "} else if (thread < kWidth) "
           "{"),
    swiglu("scales_of_no_group_written", EPILOGUE, "  if (thread < tile.tokens) {", "  if (thread < kWidth) {"),
    swiglu("channels_of_the_next_row", EPILOGUE, "thread * pitch, size * channels", "thread * pitch, kChannels"),
    swiglu("chunks_of_the_next_row", EPILOGUE, "tile, size * channel, size * channels)", "tile, size * channel, "
           "kChannels)"),
    swiglu("scales_of_one_block", EPILOGUE, "tile.weight_tile * p.sh.column_stride", "0"),
    swiglu("up_in_the_place_of_gate", EPILOGUE, "ptx::silu(h), sum[slab][4 * c + 2 + i]", "h, ptx::silu(sum[slab][4 * "
           "c + 2 + i])"),
]  # fmt: skip


@functools.cache
def cases() -> list[tuple[list[Fp8Pair], Fp8Pair, dict[str, Any], list[bytes]]]:
    """Both kernel instances and the one that copies rows, h in bulk and in chunks; with the unfused kernels' bits."""
    made = []
    for width, k, sizes, options in (
        (160, 384, (9, 40, 33), {}),
        (160, 384, (9, 40, 33), {"max_m_hint": 1, "counts_ready": True}),
        (136, 256, (97, 8), {"max_m_hint": 97}),
        (24, 136, (9, 33), {}),
    ):
        rhs = weights(len(sizes), width, k)
        parts = [calls.special(size, k) for size in sizes]
        made.append((parts, rhs, options, bits(calls.unfused(parts, rhs))))
    return made


def check() -> None:
    for parts, rhs, options, expected in cases():
        assert bits(calls.fused(parts, rhs, **options)) == expected
    calls.check_channels_beyond_the_width_take_no_part()
    calls.check_rows_apart(160, 0, 0)  # the first tokens of all, which the kernel ahead still writes


def test_without_a_bug_nothing_is_caught() -> None:
    run_in_every_policy(check)


@pytest.mark.parametrize("mutation", in_tiers(MUTATIONS), ids=lambda mutation: mutation.name)
def test_bug_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    cases()  # filled by the library without bugs
    assert_caught(mutation, tmp_path, check)

"""Planted bugs in what the GEMM with SwiGLU has for bf16: h that is not quantised, operands without scales. Each is
caught in every policy of the emulator's scheduler. What it shares with FP8 is in test_swiglu_gemm_mutations.py.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from longcat_ops.testing.op_results import bits
from support.kernel_mutations import Mutation, assert_caught, in_tiers, run_in_every_policy
from support.swiglu_forms import PLAIN, QUANTISED, Form, check_rows_apart


def swiglu(name: str, file: str, old: str, new: str) -> Mutation:
    return Mutation(name, "gemm/bf16_moe_swiglu_gemm.cu", f"gemm/{file}", old, new)


CONSUMER, EPILOGUE, LAUNCH = "swiglu_consumer.cuh", "swiglu_epilogue.cuh", "moe_swiglu_gemm_launch.h"
SUMS = "sum[0][4 * c], sum[0][4 * c + 1]"
BARRIER = "  sync_consumers();\n"

MUTATIONS = [
    swiglu("rows_of_e4m3_apart", EPILOGUE, "p.quantised ? kStorePitch : kWidePitch", "kStorePitch"),
    swiglu("both_slabs_in_one_place", EPILOGUE, "warp_channel + lane / 8 % 2 * kSlabChannels)", "warp_channel)"),
    swiglu("copied_rows_at_elements", EPILOGUE, "pitch, tile, size * channel,", "pitch, tile, channel,"),
    swiglu("bulk_copy_before_the_fence", EPILOGUE, "  ptx::fence_proxy_async_shared();\n", ""),
    swiglu("half_of_each_row", EPILOGUE, "thread * pitch, size * channels", "thread * pitch, channels"),
    swiglu("half_of_each_copied_row", EPILOGUE, "size * channel, size * channels)", "size * channel, channels)"),
    swiglu("rows_at_elements", EPILOGUE, "+ size * channel, rows + thread", "+ channel, rows + thread"),
    swiglu("tokens_as_near_as_codes", EPILOGUE, "lane % 8 * kWidePitch", "lane % 8 * kStorePitch"),
    swiglu("eights_of_tokens_as_near_as_codes", EPILOGUE, "c * 8 * kWidePitch", "c * 8 * kStorePitch"),
    swiglu("channels_of_one_byte", EPILOGUE, "+ 2 * (warp_channel +", "+ (warp_channel +"),
    swiglu("tokens_swapped", EPILOGUE, SUMS, "sum[0][4 * c + 1], sum[0][4 * c]"),
    swiglu("one_slab_twice", EPILOGUE, "sum[1][4 * c], sum[1][4 * c + 1]", SUMS),
    swiglu("rows_still_read", EPILOGUE, "  ptx::bulk_wait_read<0>();", "//"),
    swiglu("rows_others_still_read", EPILOGUE, "all copies\n" + BARRIER, "all copies\n"),
    swiglu("copied_before_all_wrote", EPILOGUE, "  sync_consumers();  // after", "  //"),
    swiglu("never_quantised", LAUNCH, "problem.quantised = h->dtype == LC_E4M3", "problem.quantised = false"),
    swiglu("always_quantised", LAUNCH, "problem.quantised = h->dtype == LC_E4M3", "problem.quantised = true"),
    swiglu("bulk_copies_off_16_bytes", LAUNCH, "bulk_rows(values) &&", ""),
    swiglu("room_for_codes", "layout.h", "(swiglu && !quantised ? kWidePitch : kStorePitch)", "kStorePitch"),
    swiglu("first_slab_still_multiplied", CONSUMER, "add_products<1>(acc[0], sum[0])", "add_products<2>(acc[0], "
           "sum[0])"),
    swiglu("second_slab_still_multiplied", CONSUMER, "add_products<0>(acc[1], sum[1])", "add_products<1>(acc[1], "
           "sum[1])"),
    swiglu("slabs_still_multiplied", CONSUMER, "add_products<0>(acc[slab]", "add_products<1>(acc[slab]"),
    swiglu("a_producer_of_scales", "layout.h", "operand == Operand::kFp8 ? 3 : 2", "3"),
    swiglu("bytes_of_e4m3", "layout.h", "operand == Operand::kFp8 ? 1 : 2; }", "1; }"),
]  # fmt: skip


@functools.cache
def cases() -> list[tuple[Form, Any, Any, dict[str, Any], list[bytes]]]:
    """Both kernel instances and the one that copies rows, both h, with the bits of the kernel without bugs."""
    made = []
    for width, k, sizes, options in (
        (160, 200, (9, 40, 33), {}),
        (160, 200, (9, 40, 33), {"max_m_hint": 1, "counts_ready": True}),
        (136, 136, (49, 8), {"max_m_hint": 97}),
        (24, 72, (9, 33), {}),
    ):
        for form in (PLAIN, QUANTISED):
            parts, weights = form.activations(sizes, k), form.weights(len(sizes), width, k)
            made.append((form, parts, weights, options, bits(form.call(parts, weights, **options))))
    return made


def check() -> None:
    for form, parts, weights, options, expected in cases():
        assert bits(form.call(parts, weights, **options)) == expected
    check_rows_apart(PLAIN, 160, 4, 4)  # rows of h off 16 bytes
    check_rows_apart(PLAIN, 160, 0, 0)


def test_without_a_bug_nothing_is_caught() -> None:
    run_in_every_policy(check)


@pytest.mark.parametrize("mutation", in_tiers(MUTATIONS, quick=2), ids=lambda mutation: mutation.name)
def test_bug_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    cases()  # filled by the library without bugs
    assert_caught(mutation, tmp_path, check)

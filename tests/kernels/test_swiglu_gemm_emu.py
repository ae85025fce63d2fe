"""The GEMM of gate_up with SwiGLU and quantisation in the host emulator with its detectors on: every bucket of tokens,
ragged ends, rings that wrap, several tiles per block; values against fp64, bits against the unfused kernels. The op's
own tests run on the kernel too (test_emu_backend.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch

from longcat_ops.ops import emulated
from longcat_ops.testing.op_results import bits
from support.emulated_kernels import run
from support.gemm_calls import far_apart
from support.grouped import NAN_CODE, Fp8Pair, activations, select
from support.swiglu_gemm_calls import (
    FP8,
    NAME,
    check_channels_beyond_the_width_take_no_part,
    check_rows_apart,
    fused,
    special,
    unfused,
)
from support.swiglu_oracle import assert_quantised, expected, weights

# A ragged and a full end of every bucket, and past the largest one, where a group takes two tiles.
RAGGED = (1, 0, 9, 17, 25, 33, 49, 65, 97, 129)
FULL = (8, 16, 24, 32, 48, 64, 96, 128)


def assert_near(outs: Sequence[Fp8Pair], parts: Sequence[Fp8Pair], rhs: Fp8Pair, mma: str = "exact") -> None:
    """Every scale and code is within the bound of its own terms."""
    for out, oracle in zip(outs, expected(parts, rhs, mma == "hopper"), strict=True):
        assert_quantised(*out, *oracle)


@pytest.mark.parametrize(("policy", "seed"), list(itertools.product(emulated.POLICIES, (1, 2, 3))))
def test_every_bucket(policy: str, seed: int) -> None:
    """Blocks of K wrap around three stages, and 1 to 3 thread blocks share the tiles, in both accumulation modes and
    both kernel instances: the small one takes larger groups in tiles of 32 tokens."""
    mma, sizes = ("hopper", FULL) if seed == 3 else ("exact", RAGGED)
    emulated.configure(seed, policy, mma=mma, sms=seed)
    rhs = weights(len(sizes), 72, 384)
    parts = activations(sizes, 384)
    outs = fused(parts, rhs, max_m_hint=128, column_major=seed == 2)
    assert_near(outs, parts, rhs, mma)
    few = [min(size, 41) for size in sizes]
    small = fused([select(part, range(size)) for part, size in zip(parts, few, strict=True)], rhs, max_m_hint=1)
    assert bits(small) == bits([(h[:size], sh[:size]) for (h, sh), size in zip(outs, few, strict=True)])


@pytest.mark.parametrize("mma", emulated.MMA_MODES)
@pytest.mark.parametrize(
    ("width", "k", "sizes"),
    [
        (8, 128, (9, 0, 3)),
        (136, 136, (9, 40)),  # rows that no tensor map describes
        (160, 384, (33, 10, 66)),
        (128, 640, (0, 25, 130)),
        (256, 128, (97, 1)),
        (24, 256, (17,)),  # rows of h off 16 bytes
    ],
    ids=str,
)
def test_the_bits_of_the_unfused_kernels(width: int, k: int, sizes: tuple[int, ...], mma: str) -> None:
    emulated.configure(4, mma=mma)
    rhs = weights(len(sizes), width, k)
    parts = [special(size, k) if size else select(activations((1,), k)[0], []) for size in sizes]
    outs = fused(parts, rhs)
    assert bits(outs) == bits(unfused(parts, rhs))
    assert all(h.isnan().any() and not sh.isnan().all() for h, sh in outs if len(h) > 8)


def test_channels_beyond_the_width_take_no_part() -> None:
    check_channels_beyond_the_width_take_no_part()


@pytest.mark.parametrize("sms", [1, 2, 7])
def test_hints_order_and_number_of_blocks_do_not_change_a_bit(sms: int) -> None:
    sizes = (0, 9, 1, 33, 0, 140)
    rhs = weights(6, 136, 256)
    parts = activations(sizes, 256)
    plain = fused(parts, rhs)
    emulated.configure(sms + 1, sms=sms)
    for hint, ready in ((0, True), (33, False), (10**12, True)):
        assert bits(fused(parts, rhs, max_m_hint=hint, counts_ready=ready)) == bits(plain)
    order = [5, 3, 0, 4, 2, 1]
    mixed = fused([parts[g] for g in order], (rhs[0].view(torch.uint8)[order].view(FP8), rhs[1][order]))
    assert bits([mixed[order.index(g)] for g in range(6)]) == bits(plain)


@pytest.mark.parametrize(("gap", "start"), [(0, 0), (16, 16), (8, 8), (0, 3), (5, 7)])
@pytest.mark.parametrize("width", [136, 160])
def test_rows_apart(width: int, gap: int, start: int) -> None:
    check_rows_apart(width, gap, start)


@pytest.mark.parametrize("active", [[], [0, 31, 255, 256, 511, 699]], ids=str)
def test_many_groups_of_which_few_have_rows(active: list[int]) -> None:
    sizes = [0] * 700
    for i, g in enumerate(active):
        sizes[g] = 1 + 7 * i
    one = weights(1, 8, 128)
    rhs = one[0].expand(700, -1, -1).contiguous(), one[1].expand(700, -1, -1)
    parts = activations(sizes, 128)
    outs = fused(parts, rhs)
    for g in active:
        assert_near([outs[g]], [parts[g]], one)


def test_512_experts_need_64_bit_offsets() -> None:
    """Weights and scales lie as far apart as the weights of a gate_up projection; three of the groups have rows."""
    stride = 4096 * 6144
    rhs = weights(1, 24, 256)
    codes, s = far_apart(rhs[0][0].view(torch.uint8), stride), far_apart(rhs[1][0], stride)
    (part,) = activations((12,), 256)
    offsets = torch.tensor([0, *[2] * 256, *[4] * 255, 12], dtype=torch.int32)
    h, sh = torch.empty(12, 24, dtype=FP8), torch.empty(12, 1)
    run(NAME, *part, codes.view(FP8), s, offsets, None, False, h, sh)
    assert_near([(h, sh)], [part], rhs)


def test_rows_of_the_next_group_do_not_matter() -> None:
    """A tile loads the next group's rows but does not store them: NaN and infinite scales there change nothing."""
    rhs = weights(2, 72, 384)
    parts = [select(part, range(len(part[0]))) for part in activations((3, 6), 384)]
    before = fused(parts, rhs)
    parts[1][0].view(torch.uint8).fill_(NAN_CODE)
    parts[1][1].fill_(torch.inf)
    after = fused(parts, rhs)
    assert bits(after[0]) == bits(before[0])
    assert bool(after[1][0].isnan().all()) and bool(after[1][1].isnan().all())

"""The grouped FP8 GEMM kernel in the host emulator with its detectors on: every bucket of tokens, ragged ends, rings
that wrap, several tiles per block, all layouts; values against fp64, bits against each other. The ops' own tests run on
the kernel too (test_emu_backend.py).
"""

from __future__ import annotations

import pytest
import torch

from longcat_ops import per_block_quant_fp8, per_token_group_quant_fp8
from longcat_ops.ops import emulated
from longcat_ops.testing.op_results import bits
from support import grouped
from support.emulated_kernels import run
from support.gemm_calls import (
    SCHEDULES,
    assert_near,
    check_512_experts_need_64_bit_offsets,
    contiguous,
    dense,
    masked,
    offset,
    one_weight,
)
from support.grouped import (
    SENTINEL,
    activations,
    select,
    weights,
)
from support.matrix_cases import VALUES, WEIGHTS, operand

# Below, at and past every bucket of a tile, and past the largest one, where a group takes two tiles.
SIZES = (0, 1, 7, 8, 9, 16, 17, 24, 25, 32, 33, 48, 49, 64, 65, 96, 97, 128, 129, 192, 193, 256, 257)


@pytest.mark.parametrize(("policy", "seed"), SCHEDULES, ids=lambda v: str(v))
def test_every_bucket(policy: str, seed: int) -> None:
    """Every bucket is within its fp64 bound: five blocks of K wrap around three stages, 1 to 3 thread blocks share the
    tiles, one of two weight tiles has 8 rows, in both accumulation modes."""
    mma = "hopper" if seed == 3 else "exact"
    emulated.configure(seed, policy, mma=mma, sms=seed)
    rhs, wide = one_weight(len(SIZES), 136 if policy == "random" else 72, 640)
    parts = activations(SIZES, 640)
    assert_near(offset(parts, rhs, column_major=seed == 2), parts, [wide] * len(SIZES), mma)


@pytest.mark.parametrize("mma", ["exact", "hopper"])
def test_a_row_has_the_same_bits_in_every_bucket(mma: str) -> None:
    """All groups start with the same rows, whose bits must not depend on the other rows of a tile."""
    emulated.configure(mma=mma)
    rhs, _ = one_weight(len(SIZES), 72, 384)
    (pool,) = activations((max(SIZES),), 384)
    outs = offset([select(pool, range(size)) for size in SIZES], rhs)
    for out in outs:
        assert bits(out) == bits(outs[-1][: len(out)])
    assert len(set(bits(list(outs[-1])))) == max(SIZES)


@pytest.mark.parametrize("hint", [0, 1, 32, 33, 65, 129, 10**12])
def test_hints_choose_a_kernel_but_no_bit(hint: int) -> None:
    """No hint changes a bit, not even one below the true row count, with which a group takes several tiles."""
    sizes = (0, 5, 130, 33)
    rhs, _ = weights(4, 72, 256)
    parts = activations(sizes, 256)
    expected = bits(offset(parts, rhs))
    for ready in (False, True):
        assert bits(offset(parts, rhs, hint=hint, ready=ready)) == expected


@pytest.mark.parametrize("sizes", [(0, 0, 7, 40, 1), (129, 8, 0, 0, 0), (0, 0, 0, 0, 9)], ids=str)
def test_the_layouts_have_the_same_bits(sizes: tuple[int, ...]) -> None:
    rhs, _ = weights(len(sizes), 136, 256)
    parts = activations(sizes, 256)
    expected = bits(offset(parts, rhs))
    assert bits([dense(part, rhs, g) for g, part in enumerate(parts)]) == expected
    for spare in (0, 1):
        assert bits(masked(parts, rhs, spare)) == expected
    for gap in ([], [-1], [len(sizes)] * 2 + [-(2**31), 2**31 - 1] * 40):
        assert bits(contiguous(parts, rhs, gap)) == expected


def test_the_order_of_experts_and_the_number_of_blocks_do_not_matter() -> None:
    sizes = [0, 9, 1, 33, 0, 70]
    (b, sb), _ = weights(6, 136, 256)
    parts = activations(sizes, 256)
    expected = bits(offset(parts, (b, sb)))
    for order, sms in (([5, 4, 3, 2, 1, 0], 1), ([3, 0, 5, 1, 4, 2], 3), ([0, 1, 2, 3, 4, 5], 7)):
        emulated.configure(sms=sms)
        outs = offset([parts[g] for g in order], (b[order], sb[order]))
        assert bits([outs[order.index(g)] for g in range(6)]) == expected


@pytest.mark.parametrize("policy", emulated.POLICIES)
def test_low_tiles_have_the_same_bits(policy: str) -> None:
    """Tiles of 64 weight rows, chosen when tiles are few for many blocks, change no bit: every bucket up to 64, one of
    two tiles 8 rows high; then three tiles per weight, with blocks that take several in turn."""
    emulated.configure(2, policy, sms=1)
    rhs, _ = one_weight(len(SIZES), 72, 384)
    parts = activations(SIZES, 384)
    other, others = weights(3, 136, 256)[0], activations((0, 130, 33), 256)
    expected = bits(offset(parts, rhs, hint=64)), bits(offset(others, other, hint=1))
    emulated.configure(3, policy, sms=2 * (len(SIZES) + 1))
    assert bits(offset(parts, rhs, hint=64)) == expected[0]
    emulated.configure(3, policy, sms=12)
    assert bits(offset(others, other, hint=1)) == expected[1]
    for dtype in (torch.float32, torch.float16):
        offset(others, other, dtype)


@pytest.mark.parametrize("active", [[], [0], [699], [0, 31, 32, 255, 256, 257, 511, 698]], ids=str)
def test_many_groups_of_which_few_have_rows(active: list[int]) -> None:
    """The scheduler finds the rows among more groups than one batch of its loads."""
    sizes = [0] * 700
    for i, g in enumerate(active):
        sizes[g] = 1 + 7 * i
    rhs, wide = one_weight(700, 8, 128)
    parts = activations(sizes, 128)
    outs = offset(parts, rhs)
    assert_near([outs[g] for g in active], [parts[g] for g in active], [wide] * len(active), "exact")


@pytest.mark.parametrize("rows", [31, 32, 33, 256, 300])
def test_rows_of_groups_in_any_order(rows: int) -> None:
    """Rows find their groups whether indices change with every row or never, around batches of 32 and 256 rows."""
    (b, sb), _ = weights(3, 8, 128)
    (part,) = activations((rows,), 128)
    a, sa = part
    expected = torch.stack([dense(part, (b, sb), g) for g in range(3)])
    for index in (torch.arange(rows) % 5 - 1, torch.arange(rows) * 0 + 2, torch.arange(rows) // 31 % 4 - 1):
        out = torch.full((rows, 8), SENTINEL, dtype=torch.bfloat16)
        run("m_grouped_fp8_gemm_nt_contiguous", a, sa, b, sb, index.int(), out)
        for row, g in enumerate(index.tolist()):
            assert bits(out[row]) == bits(expected[g, row] if 0 <= g < 3 else torch.full_like(out[row], SENTINEL))


def test_512_experts_need_64_bit_offsets() -> None:
    check_512_experts_need_64_bit_offsets()


def test_large_activations_of_one_group_do_not_reach_another() -> None:
    """NaN and infinite scales in the next group's rows, which a tile loads but does not store, change nothing."""
    (b, sb), wide = weights(2, 72, 384)
    parts = [select(part, range(len(part[0]))) for part in activations((3, 6), 384)]
    expected = offset(parts, (b, sb))
    parts[1][0].view(torch.uint8).fill_(0x7F)
    parts[1][1].fill_(torch.inf)
    outs = offset(parts, (b, sb))
    assert bits(outs[0]) == bits(expected[0])
    assert bool(outs[1].isnan().all())
    assert_near(outs[:1], parts[:1], wide[:1], "exact")


@pytest.mark.parametrize("mma", ["exact", "hopper"])
@pytest.mark.parametrize("values", WEIGHTS)
def test_values_at_the_edges(values: str, mma: str) -> None:
    """Each kind of activations, in its own group, is within its bound; tensor cores truncate equal terms all in one
    direction, and small ones beside a peak almost to zero."""
    emulated.configure(mma=mma)
    b, sb = operand(values, 72, 384, per_block_quant_fp8)
    parts = [operand(kind, 9, 384, per_token_group_quant_fp8) for kind in VALUES]
    codes = b.view(torch.uint8).expand(len(parts), -1, -1).contiguous()
    outs = offset(parts, (codes.view(b.dtype), sb.expand(len(parts), -1, -1)), torch.float32)
    assert_near(outs, parts, [grouped.wide(b, sb, block_rows=128)] * len(parts), mma)

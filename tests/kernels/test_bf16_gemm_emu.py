"""The grouped bf16 GEMM kernel in the host emulator with its detectors on: every bucket of tokens, ragged ends, rings
that wrap, several tiles per block, pairs, splits, all layouts; values against fp64, bits against each other. What it
shares with the FP8 kernel has its other cases in test_moe_gemm_emu.py.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from longcat_ops.ops import emulated
from longcat_ops.testing.op_results import bits
from support.bf16_calls import activations, assert_near, contiguous, dense, masked, offset, weights
from support.emulated_kernels import run
from support.gemm_calls import SCHEDULES, far_apart
from support.grouped import SENTINEL

# Below, at and past every bucket of a tile, and past the largest one, where a group takes two tiles.
SIZES = (0, 1, 7, 8, 9, 16, 17, 24, 25, 32, 33, 48, 49, 64, 65, 96, 97, 128, 129, 192, 193, 256, 257)
K, STAGES = 328, 6  # five whole stages of 64 and an eighth of one: more than the emulator's three


def one_weight(groups: int, n: int, k: int) -> Tensor:
    return weights(1, n, k).expand(groups, -1, -1)


@pytest.mark.parametrize(("policy", "seed"), SCHEDULES, ids=lambda v: str(v))
def test_every_bucket(policy: str, seed: int) -> None:
    """Every bucket is within its fp64 bound, with 1 to 3 thread blocks, in both accumulation modes."""
    mma = "hopper" if seed == 3 else "exact"
    emulated.configure(seed, policy, mma=mma, sms=seed)
    b = one_weight(len(SIZES), 136 if policy == "random" else 72, K)
    parts = activations(SIZES, K)
    assert_near(offset(parts, b, torch.float32), parts, b, mma)


@pytest.mark.parametrize("mma", emulated.MMA_MODES)
def test_a_row_has_the_same_bits_in_every_bucket(mma: str) -> None:
    """All groups start with the same rows, whose bits must not depend on the other rows of a tile, nor on a split."""
    emulated.configure(mma=mma)
    b = one_weight(len(SIZES), 72, K)
    (pool,) = activations((max(SIZES),), K)
    for split_k in (1, 2):
        outs = offset([pool[:size] for size in SIZES], b, split_k=split_k)
        for out in outs:
            assert bits(out) == bits(outs[-1][: len(out)])
        assert len(set(bits(list(outs[-1])))) == max(SIZES)


@pytest.mark.parametrize("hint", [0, 1, 32, 33, 65, 129, 10**12])
def test_hints_choose_a_kernel_but_no_bit(hint: int) -> None:
    b, parts = weights(4, 72, 256), activations((0, 5, 130, 33), 256)
    expected = bits(offset(parts, b))
    for ready in (False, True):
        assert bits(offset(parts, b, hint=hint, ready=ready)) == expected


@pytest.mark.parametrize("sizes", [(0, 0, 7, 40, 1), (129, 8, 0, 0, 0), (0, 0, 0, 0, 9)], ids=str)
def test_the_layouts_have_the_same_bits(sizes: tuple[int, ...]) -> None:
    b, parts = weights(len(sizes), 136, 200), activations(sizes, 200)
    expected = bits(offset(parts, b))
    assert bits([dense(part, b[g]) for g, part in enumerate(parts)]) == expected
    for spare in (0, 1):
        assert bits(masked(parts, b, spare)) == expected
    for gap in ([], [-1], [len(sizes)] * 2 + [-(2**31), 2**31 - 1] * 40):
        assert bits(contiguous(parts, b, gap)) == expected


def test_the_order_of_experts_and_the_number_of_blocks_do_not_matter() -> None:
    b, parts = weights(6, 136, 256), activations([0, 9, 1, 33, 0, 70], 256)
    expected = bits(offset(parts, b))
    for order, sms in (([5, 4, 3, 2, 1, 0], 1), ([3, 0, 5, 1, 4, 2], 3), ([0, 1, 2, 3, 4, 5], 7)):
        emulated.configure(sms=sms)
        outs = offset([parts[g] for g in order], b[order])
        assert bits([outs[order.index(g)] for g in range(6)]) == expected


@pytest.mark.parametrize("policy", ["random", *(pytest.param(p, marks=pytest.mark.slow) for p in ("eager", "lazy"))])
def test_low_tiles_and_pairs_have_the_same_bits(policy: str) -> None:
    """Tiles of 64 weight rows, where tiles are few for many blocks; pairs of blocks, with an odd number of tiles."""
    emulated.configure(2, policy, sms=1)
    b, parts = one_weight(6, 264, K), activations((0, 8, 24, 9, 97, 257), K)
    expected = bits(offset(parts, b, hint=256))
    for seed, sms in ((3, 8), (4, 100)):
        emulated.configure(seed, policy, sms=sms)
        assert bits(offset(parts, b, hint=256)) == expected
        assert bits(offset(parts, b, hint=64)) == expected
    for dtype in (torch.float32, torch.float16):
        assert_near(offset(parts, b, dtype), parts, b, "exact")


@pytest.mark.parametrize("mma", emulated.MMA_MODES)
@pytest.mark.parametrize("split_k", [2, 4])
def test_a_split_adds_the_pieces_in_order(split_k: int, mma: str) -> None:
    """K of five stages and a part: the pieces are unequal, and the last of four is empty."""
    emulated.configure(2, mma=mma, sms=8)
    b, parts = weights(3, 136, K), activations((9, 0, 33), K)
    piece = 64 * -(-STAGES // split_k)
    total: list[Tensor] = []
    for at in range(0, piece * split_k, piece):
        columns = slice(min(at, K), min(at + piece, K))
        sums = [torch.zeros(len(part), 136) for part in parts]
        if columns.start < columns.stop:
            sums = offset([part[:, columns] for part in parts], b[..., columns], torch.float32)
        total = [t + s for t, s in zip(total, sums, strict=True)] if total else sums
    assert bits(offset(parts, b, torch.float32, split_k=split_k)) == bits(total)
    assert_near(total, parts, b, mma)


@pytest.mark.parametrize(("gap", "start"), [(0, 1), (1, 0), (8, 0), (4, 4), (3, 5)])
def test_rows_anywhere(gap: int, start: int) -> None:
    """Rows off 16 bytes, which warps copy, and rows apart; of tokens, of weights and of the output."""
    a, b = activations((40,), 136)[0], weights(1, 72, 136)[0]
    expected = dense(a, b)

    def apart(t: Tensor) -> Tensor:
        rows, columns = t.shape
        memory = torch.full((start + (rows + 1) * (columns + gap) + 16,), torch.nan, dtype=t.dtype)
        return memory[start:].as_strided(t.shape, (columns + gap, 1)).copy_(t)

    for x, w in itertools.product((a, apart(a)), (b, apart(b))):
        out = apart(torch.full((40, 72), SENTINEL, dtype=torch.bfloat16))
        run("bf16_gemm_nt", x, w, 1, out)
        assert bits(out.contiguous()) == bits(expected)
        around = torch.empty(0, dtype=out.dtype).set_(out.untyped_storage())
        assert int((~around.isnan()).sum()) == out.numel()


def test_heads_of_a_weight_and_of_its_tokens() -> None:
    """A group per head: weights are rows of one matrix, tokens columns of another, outputs lie between each other."""
    heads, rows, n, k = 3, 20, 72, 128
    w = weights(1, heads * (n + 8), k)[0].view(heads, n + 8, k)[:, :n]
    x = activations((rows,), heads * (k + 64))[0].view(rows, heads, k + 64)[..., :k].transpose(0, 1)
    out = torch.full((rows, heads, n), SENTINEL, dtype=torch.bfloat16)
    counts = torch.full((heads,), rows, dtype=torch.int32)
    run("m_grouped_bf16_gemm_nt_masked", x, w, counts, rows, out.transpose(0, 1))
    for h in range(heads):
        assert bits(out[:, h].contiguous()) == bits(dense(x[h].contiguous(), w[h].contiguous()))


def test_512_experts_need_64_bit_offsets() -> None:
    """Weights lie as far apart as those of a gate_up projection; three of the groups have rows."""
    b, (part,) = weights(1, 40, 256), activations((12,), 256)
    apart = far_apart(b[0], 4096 * 6144)
    offsets = torch.tensor([0, *[2] * 256, *[4] * 255, 12], dtype=torch.int32)
    out = torch.full((12, 40), SENTINEL, dtype=torch.bfloat16)
    run("m_grouped_bf16_gemm_nt_offset", part, apart, offsets, None, False, 1, out)
    assert_near([out], [part], b, "exact")


def test_rows_of_the_next_group_do_not_matter() -> None:
    """A tile loads the next group's rows but does not store them: NaN and infinity there change nothing."""
    b, parts = weights(2, 72, 192), activations((3, 6), 192)
    expected = offset(parts, b)
    for value in (torch.nan, torch.inf):
        outs = offset([parts[0], torch.full_like(parts[1], value)], b)
        assert bits(outs[0]) == bits(expected[0])
        assert not bool(outs[1].isfinite().any())


@pytest.mark.parametrize("mma", emulated.MMA_MODES)
def test_values_at_the_edges(mma: str) -> None:
    """Equal terms, which tensor cores truncate all in one direction, a peak beside small ones, tiny and huge ones."""
    emulated.configure(mma=mma)
    k = 1024
    b = torch.stack([torch.full((8, k), 1 + 2.0**-7), *weights(3, 8, k).float()]).bfloat16()
    equal, peak, tiny, huge = torch.full((3, k), 1 - 2.0**-8), *(part.float() for part in activations((2, 5, 4), k))
    peak[:, 77] = 2.0**20
    parts = [part.bfloat16() for part in (equal, peak, tiny * 2.0**-60, huge * 2.0**60)]
    assert_near(offset(parts, b, torch.float32), parts, b, mma)

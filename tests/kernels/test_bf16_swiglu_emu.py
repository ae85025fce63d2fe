"""The GEMM with SwiGLU over bf16 operands, and with h in bf16 over either, in the host emulator with its detectors on:
every bucket of tokens, ragged ends, rings that wrap, several tiles per block; values against fp64, bits against the
unfused kernels. FP8 operands with e4m3 h are in test_swiglu_gemm_emu.py.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from longcat_ops.ops import emulated
from longcat_ops.testing.op_results import bits
from support.bf16_calls import activations
from support.bf16_swiglu_oracle import weights
from support.emulated_kernels import run
from support.gemm_calls import far_apart
from support.swiglu_forms import FORMS, PLAIN, QUANTISED, Form, check_against_unfused, check_rows_apart, each, special

# A ragged and a full end of every bucket, and past the largest one, where a group takes two tiles.
RAGGED = (1, 0, 9, 17, 25, 33, 49, 65, 97, 129)
FULL = (8, 16, 24, 32, 48, 64, 96, 128)
K = 200  # three whole stages of 64 and an eighth of one: more than the emulator's three
EVERY_FORM = pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.operand}-{form.quantise}")
SCHEDULES = list(itertools.product(emulated.POLICIES, (1, 2, 3)))


@EVERY_FORM
@pytest.mark.parametrize(
    ("policy", "seed"),
    [pytest.param(*one, marks=() if one in (("random", 1), ("lazy", 3)) else pytest.mark.slow) for one in SCHEDULES],
)
def test_every_bucket(policy: str, seed: int, form: Form) -> None:
    """1 to 3 thread blocks share the tiles, in both accumulation modes and both kernel instances: the small one takes
    larger groups in tiles of 32 tokens."""
    mma, sizes = ("hopper", FULL) if seed == 3 else ("exact", RAGGED)
    emulated.configure(seed, policy, mma=mma, sms=seed)
    gate_up, parts = form.weights(len(sizes), 72, K), form.activations(sizes, K)
    outs = form.call(parts, gate_up, max_m_hint=128)
    form.assert_near(outs, parts, gate_up, mma)
    few = [min(size, 41) for size in sizes]
    cut = [each(lambda t, size=size: t[:size], part) for part, size in zip(parts, few, strict=True)]
    small = form.call(cut, gate_up, max_m_hint=1)
    assert bits(small) == bits([each(lambda t, m=m: t[:m], out) for out, m in zip(outs, few, strict=True)])


SHAPES = [
    (8, 64, (9, 0, 3)),
    (136, 136, (9, 40)),
    (160, 200, (33, 10, 66)),
    (24, 72, (17,)),  # 16 bytes do not divide a row of h
    pytest.param(128, 256, (0, 25, 130), marks=pytest.mark.slow),
    pytest.param(256, 8, (97, 1), marks=pytest.mark.slow),
]


@EVERY_FORM
@pytest.mark.parametrize("mma", ["exact", pytest.param("hopper", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("width", "k", "sizes"), SHAPES, ids=str)
def test_against_the_unfused_kernels(width: int, k: int, sizes: tuple[int, ...], mma: str, form: Form) -> None:
    emulated.configure(4, mma=mma)
    gate_up, parts = form.weights(len(sizes), width, k), form.activations(sizes, k)
    check_against_unfused(form, parts, gate_up)
    form.assert_near(form.call(parts, gate_up), parts, gate_up, mma)


def test_special_values_have_the_bits_of_the_unfused_kernels() -> None:
    gate_up, parts = weights(2, 136, 72), [special(9, 72), special(40, 72)]
    check_against_unfused(QUANTISED, parts, gate_up)
    for plain, (h, sh) in zip(PLAIN.call(parts, gate_up), QUANTISED.call(parts, gate_up), strict=True):
        assert plain.isfinite().all(1).tolist() == sh.isfinite().all(1).tolist()
        assert not plain[1].any() and not h[1].float().any()


def test_channels_beyond_the_width_take_no_part() -> None:
    """They have zero weights: an infinite token makes their sums NaN, but the real, positive sums infinite."""
    gate_up, (part,) = weights(1, 24, 72).abs(), activations((9,), 72)
    part = part.abs()
    part[:, 5] = torch.inf
    ((_, sh),) = QUANTISED.call([part], gate_up)
    assert bool((sh == torch.inf).all())
    (h,) = PLAIN.call([part], gate_up)
    assert bool((h == torch.inf).all())


@EVERY_FORM
@pytest.mark.parametrize("sms", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_hints_order_and_number_of_blocks_do_not_change_a_bit(sms: int, form: Form) -> None:
    sizes = (0, 9, 1, 33, 0, 140)
    gate_up, parts = form.weights(6, 136, 72), form.activations(sizes, 72)
    plain = bits(form.call(parts, gate_up))
    emulated.configure(sms + 1, sms=sms)
    for hint, ready in ((0, True), (33, False), (10**12, True)):
        assert bits(form.call(parts, gate_up, max_m_hint=hint, counts_ready=ready)) == plain
    order = [5, 3, 0, 4, 2, 1]
    mixed = form.call([parts[g] for g in order], each(lambda t: t[order], gate_up))
    assert bits([mixed[order.index(g)] for g in range(6)]) == plain


@EVERY_FORM
@pytest.mark.parametrize(("gap", "start"), [(0, 0), (16, 16), (8, 8), (4, 4), (0, 3), (5, 7)])
@pytest.mark.parametrize("width", [24, 136, pytest.param(160, marks=pytest.mark.slow)])
def test_rows_apart(width: int, gap: int, start: int, form: Form) -> None:
    check_rows_apart(form, width, gap, start)


@pytest.mark.parametrize("form", [PLAIN, QUANTISED], ids=str)
@pytest.mark.parametrize(("gap", "start"), [(0, 1), (8, 0), (4, 4)])
def test_operands_apart(gap: int, start: int, form: Form) -> None:
    """Rows of tokens and of weights off 16 bytes, which warps copy, and apart."""
    gate_up, (part,) = weights(1, 24, 136), activations((20,), 136)
    plain = form.call([part], gate_up)

    def apart(t: torch.Tensor) -> torch.Tensor:
        *_, rows, columns = t.shape
        memory = torch.full((start + (rows + 1) * (columns + gap) + 16,), torch.nan, dtype=t.dtype)
        return memory[start:].as_strided((rows, columns), (columns + gap, 1)).copy_(t.view(rows, columns))

    for a, w in itertools.product((part, apart(part)), (gate_up, apart(gate_up)[None])):
        out = [torch.empty_like(t) for t in (plain[0] if form.quantise else plain)]
        run(form.op, a, w, torch.tensor([0, 20], dtype=torch.int32), None, False, *out, *[None] * (2 - len(out)))
        assert bits(out) == bits(plain)


@EVERY_FORM
@pytest.mark.parametrize("active", [[], [0, 31, 255, 256, 511, 699]], ids=str)
def test_many_groups_of_which_few_have_rows(active: list[int], form: Form) -> None:
    sizes = [0] * 700
    for i, g in enumerate(active):
        sizes[g] = 1 + 7 * i
    one = form.weights(1, 8, 64)
    gate_up, parts = each(lambda t: t.expand(700, -1, -1).contiguous(), one), form.activations(sizes, 64)
    outs = form.call(parts, gate_up)
    for g in active:
        form.assert_near([outs[g]], [parts[g]], one)


def test_512_experts_need_64_bit_offsets() -> None:
    """Weights lie as far apart as those of a gate_up projection; three of the groups have rows."""
    gate_up, (part,) = weights(1, 24, 136), activations((12,), 136)
    offsets = torch.tensor([0, *[2] * 256, *[4] * 255, 12], dtype=torch.int32)
    h = torch.empty(12, 24, dtype=torch.bfloat16)
    run(PLAIN.op, part, far_apart(gate_up[0], 4096 * 6144), offsets, None, False, h, None)
    PLAIN.assert_near([h], [part], gate_up)


@EVERY_FORM
def test_rows_of_the_next_group_do_not_matter(form: Form) -> None:
    """A tile loads the next group's rows but does not store them: NaN and infinity there change nothing."""
    gate_up, parts = form.weights(2, 72, 200), form.activations((3, 6), 200)
    before = form.call(parts, gate_up)
    values = (torch.nan, torch.inf)
    for value in values:
        fill = each(lambda t, v=value: torch.full_like(t, 0x7F if t.dtype == torch.uint8 else v), parts[1])
        after = form.call([parts[0], fill], gate_up)
        assert bits(after[0]) == bits(before[0])
        last = after[1][1] if form.quantise else after[1]
        assert not bool(last.isfinite().any())

"""Scales, values and sums at the edge of float32: every implementation has NaN and inf where a float64 oracle has them,
and they never become a number or the code of one.
"""

from __future__ import annotations

import pytest
import torch

import longcat_ops
from longcat_ops import reference
from longcat_ops.ops import emulated
from longcat_ops.ops.parameters import schema_form
from support.emulated_kernels import library  # noqa: F401  (the emulator, built when it is out of date)

pytestmark = pytest.mark.long

E4M3, INF, NAN = torch.float8_e4m3fn, float("inf"), float("nan")
KINDS = {
    "plain": lambda u: torch.exp2(10 * u - 5),
    "large": lambda u: torch.exp2(40 + 30 * u),
    "huge": lambda u: torch.exp2(90 + 37.9 * u),
    "tiny": lambda u: torch.exp2(-149 + 49 * u),
    "any": lambda u: torch.exp2(253 * u - 126),
    "inf and NaN": lambda u: torch.where(u < 0.15, INF, torch.where(u < 0.3, NAN, torch.where(u < 0.4, 0.0, 1 + u))),
    "negative": lambda u: -torch.exp2(90 + 37.9 * u),
}


def implementations(op):
    """name -> a function of the schema's arguments."""
    emu = emulated.kernel(op)
    plain = schema_form(op, getattr(reference, op))
    return {"cpu": getattr(torch.ops.longcat_ops, op), "reference": plain, "emu": emu}


def codes(generator, *sizes, nans=0.0):
    """Random e4m3 codes, a share of `nans` of them NaN."""
    values = torch.randint(0, 256, sizes, dtype=torch.uint8, generator=generator)
    values = torch.where(values & 127 == 127, values - 1, values)
    return torch.where(torch.rand(sizes, generator=generator) < nans, 127, values).view(E4M3)


def sums(a, sa, b, sb):
    """[M, N] in float32 by the stated rule, one block after the other, each step rounded from float64."""
    total = torch.zeros(len(a), len(b))
    rows = sb.repeat_interleave(128, 0)[: len(b)]
    for block in range(sa.shape[1]):
        columns = slice(128 * block, 128 * block + 128)
        part = (a[:, columns].double() @ b[:, columns].double().T).float()
        scale = sa[:, block, None] * rows[:, block]
        total = (part.double() * scale.double() + total.double()).float()
    return total


def magnitudes(a, sa, b, sb):
    """[M, N] in float64: the same sums of magnitudes, the measure of rounding errors in any order."""
    left = a.double().abs() * sa.double().abs().repeat_interleave(128, 1)[:, : a.shape[1]]
    scales = sb.double().abs().repeat_interleave(128, 0)[: len(b)].repeat_interleave(128, 1)
    return left @ (b.double().abs() * scales[:, : b.shape[1]]).T


def kind_of(values):
    """0 finite, 1 inf, 2 -inf, 3 NaN."""
    wide = values.float()
    return wide.isposinf() + 2 * wide.isneginf() + 3 * wide.isnan()


@pytest.mark.parametrize("right", KINDS)
@pytest.mark.parametrize("left", KINDS)
def test_products(left, right):
    generator = torch.Generator().manual_seed(len(left) * 100 + len(right))
    seen = torch.zeros(4, dtype=torch.int64)
    for k in (8, 128, 200, 384):
        a, b = codes(generator, 5, k, nans=0.001), codes(generator, 136, k, nans=0.0005)
        blocks = -(-k // 128)
        sa = KINDS[left](torch.rand(5, blocks, generator=generator))
        sb = KINDS[right](torch.rand(2, blocks, generator=generator))
        expected = sums(a, sa, b, sb)
        seen += torch.bincount(kind_of(expected).flatten(), minlength=4)
        size = magnitudes(a, sa, b, sb)
        for name, run in implementations("fp8_gemm_nt").items():
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                out = torch.zeros(5, 136, dtype=dtype)
                run(a, sa, b, sb, 1, out)
                rounded = expected.to(dtype)
                assert torch.equal(kind_of(out), kind_of(rounded)), (name, dtype)
                finite = rounded.isfinite()
                step = {torch.float32: 2.0**-18, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}[dtype]
                underflow = 2.0**-24 if dtype == torch.float16 else 2.0**-118 * blocks  # of a scale, times its block
                near = (out.double() - rounded.double()).abs() <= size * step + underflow
                assert near[finite].all(), (name, dtype)
    assert seen[0] or {left, right} & {"huge", "negative", "inf and NaN", "any"}
    assert seen[1:].any() or not {left, right} & {"huge", "negative", "inf and NaN"} or "tiny" in (left, right)


def test_rows_of_safe_scales_keep_their_bits_beside_extreme_ones():
    generator = torch.Generator().manual_seed(1)
    a, b = codes(generator, 4, 384), codes(generator, 256, 384)
    sa, sb = torch.rand(4, 3, generator=generator) + 0.5, torch.rand(2, 3, generator=generator) + 0.5
    for name, run in implementations("fp8_gemm_nt").items():
        expected, out = torch.zeros(4, 256), torch.zeros(4, 256)
        run(a, sa, b, sb, 1, expected)
        mixed = sa.clone()
        mixed[1, 1], mixed[2, 2] = INF, 2.0**120
        run(a, mixed, b, sb, 1, out)
        for row in (0, 3):
            assert torch.equal(out[row], expected[row]), name
        assert not out[1].isfinite().any(), name
        assert out[2].isfinite().all() == kind_of(sums(a, mixed, b, sb)[2]).eq(0).all(), name


@pytest.mark.parametrize("op", ["offset", "masked", "contiguous"])
def test_grouped_products_follow_the_same_rule(op):
    generator, rows, groups = torch.Generator().manual_seed(2), 6, 2
    a, b = codes(generator, groups * rows, 200, nans=0.001), codes(generator, groups, 136, 200)
    sa = KINDS["any"](torch.rand(groups * rows, 2, generator=generator))
    sb = KINDS["any"](torch.rand(groups, 2, 2, generator=generator))
    sa[0, 0], sb[1, 0, 1] = INF, NAN
    expected = torch.cat([sums(*(t[g * rows : (g + 1) * rows] for t in (a, sa)), b[g], sb[g]) for g in range(groups)])
    assert kind_of(expected).unique().tolist() == [0, 1, 2, 3]
    for name, run in implementations(f"m_grouped_fp8_gemm_nt_{op}").items():
        out = torch.zeros(groups * rows, 136)
        if op == "offset":
            run(a, sa, b, sb, torch.tensor([0, rows, 2 * rows], dtype=torch.int32), None, False, 1, out)
        elif op == "contiguous":
            run(a, sa, b, sb, torch.arange(groups, dtype=torch.int32).repeat_interleave(rows), out)
        else:
            stacked = [t.view(groups, rows, -1) for t in (a, sa, out)]
            run(*stacked[:2], b, sb, torch.full((groups,), rows, dtype=torch.int32), rows, stacked[2])
        assert torch.equal(kind_of(out), kind_of(expected)), name


def silu(v):
    return (v.double() / (1 + torch.exp(-v.double()).float().double())).float()


def quantised(h):
    """kinds of scales [M, blocks], and the codes that must be NaN [M, I], by the rule of the quantiser."""
    parts = h.split(128, 1)
    amax = torch.stack([part.abs().amax(1) for part in parts], 1)
    spread = amax.repeat_interleave(128, 1)[:, : h.shape[1]]
    return kind_of(amax), spread.isnan() | (spread.isinf() & h.isinf())


@pytest.mark.parametrize("right", KINDS)
@pytest.mark.parametrize("left", KINDS)
def test_swiglu_of_products(left, right):
    generator = torch.Generator().manual_seed(len(left) * 100 + len(right))
    rows, width, k = 6, 136, 200
    a, gate_up = codes(generator, rows, k, nans=0.0005), codes(generator, 1, 2 * width, k)
    sa = KINDS[left](torch.rand(rows, 2, generator=generator))
    sw = KINDS[right](torch.rand(1, 4, 2, generator=generator))
    gate, up = (sums(a, sa, gate_up[0, half * width :][:width], sw[0, 2 * half : 2 * half + 2]) for half in (0, 1))
    values = (silu(gate).double() * up.double()).float()
    scales, nans = quantised(values)
    w, s = longcat_ops.interleave_gate_up(gate_up, sw)
    offsets = torch.tensor([0, rows], dtype=torch.int32)
    for name, run in implementations("m_grouped_fp8_swiglu_gemm_nt_offset").items():
        h, sh = torch.zeros(rows, width).to(E4M3), torch.zeros(rows, 2)
        run(a, sa, w, s, offsets, None, False, h, sh)
        assert torch.equal(kind_of(sh), scales), name
        assert torch.equal(h.float().isnan(), nans), name
        infinite = sh.isinf().repeat_interleave(128, 1)[:, :width]
        assert (h.float()[infinite & ~nans] == 0).all(), name  # code 0, which is NaN times an infinite scale
        wide = longcat_ops.dequant_fp8(h, sh, torch.float32)
        assert wide[infinite].isnan().all(), name
        plain = torch.zeros(rows, width, dtype=torch.bfloat16)
        run(a, sa, w, s, offsets, None, False, plain, None)
        assert torch.equal(kind_of(plain), kind_of(values.bfloat16())), name


VALUES = [INF, -INF, NAN, 3.0e38, -3.0e38, 1.0e20, 88.5, -88.5, -89.5, -3.0e38, 0.0, -0.0, 1.0e-38]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_of_values(dtype):
    """Every pair of VALUES, in its own group with small numbers around it, gives the oracle's NaN and inf."""
    pairs = torch.cartesian_prod(torch.tensor(VALUES), torch.tensor(VALUES)).to(dtype)
    gate, up = (torch.ones(len(pairs), 136).to(dtype) for _ in range(2))
    gate[:, 7], up[:, 7] = pairs[:, 0], pairs[:, 1]
    scales, nans = quantised((silu(gate.float()).double() * up.double()).float())
    for name, run in implementations("silu_and_mul_quant_fp8").items():
        q, s = torch.zeros(len(pairs), 136).to(E4M3), torch.zeros(len(pairs), 2)
        run(torch.cat([gate, up], 1), q, s)
        assert torch.equal(kind_of(s), scales), name
        assert torch.equal(q.float().isnan(), nans), name

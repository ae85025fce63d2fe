"""Calls of the kernels of rows in the emulator, whose results are checked: values, and nothing written elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from longcat_ops.testing.op_results import bits
from support.emulated_kernels import apart, assert_gaps_untouched, copied, run
from support.grouped import ROUNDING
from support.mla_oracle import drawn
from support.norm_oracle import assert_normed

EPS = 1e-6
Layout = tuple[int, int, int, int]  # gap and offset of inputs, of outputs
ALIGNED = (0, 0, 0, 0)
RAW = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
VOCABULARY = 11
# Rows at both ends and in between, one twice, and ids that are no row, also none in their low 32 bits.
IDS = [10, 0, 7, 7, -1, 11, 3, 2**32, 2**32 + 3, -(2**63), 2**63 - 1]


def weight_of(width: int, offset: int = 0) -> Tensor:
    """offset: elements after a 16-byte boundary."""
    return copied(drawn(1, width, seed=1).abs() + 0.5, 0, offset)[0]


def norm(rows: int, width: int, dtype: torch.dtype, layout: Layout = ALIGNED, residual: bool = False,
         scale: float = 1.0, weight_offset: int = 0) -> Tensor:  # fmt: skip
    """y of a call with x and, if asked for, a residual whose rows lie one element further apart than those of x."""
    gap, offset, out_gap, out_offset = layout
    x = copied((scale * drawn(rows, width, seed=width)).to(dtype), gap, offset)
    weight, y = weight_of(width, weight_offset), apart(rows, width, dtype, out_gap, out_offset)
    other = total = None
    if residual:
        other = copied((scale * drawn(rows, width, seed=rows)).to(dtype), gap + 8, offset)
        total = apart(rows, width, dtype, out_gap + 16, out_offset)
    run("rms_norm", x, weight, EPS, other, y, total)
    if total is not None:
        assert bits(total) == bits(x + other)
        assert_gaps_untouched(total)
    assert_normed(y, x if total is None else total, weight, EPS)
    assert_gaps_untouched(y)
    return y


def embed(width: int, dtype: torch.dtype, layout: Layout = ALIGNED, ids: list[int] = IDS) -> Tensor:
    """Rows of all bits, NaNs of every payload included."""
    gap, offset, out_gap, out_offset = layout
    info, g = torch.iinfo(RAW[dtype]), torch.Generator().manual_seed(width)
    raw = torch.randint(info.min, info.max, (VOCABULARY, width), generator=g, dtype=RAW[dtype])
    table, out = copied(raw, gap, offset).view(dtype), apart(len(ids), width, dtype, out_gap, out_offset)
    run("embed_rows", table, torch.tensor(ids, dtype=torch.int64), out)
    want = torch.zeros(len(ids), width, dtype=RAW[dtype])
    for t, i in enumerate(ids):
        if 0 <= i < VOCABULARY:
            want[t] = raw[i]
    assert bits(out) == bits(want)
    assert_gaps_untouched(out)
    return out


def add(rows: int, width: int, dtype: torch.dtype, layout: Layout = ALIGNED) -> Tensor:
    gap, offset, out_gap, out_offset = layout
    x = copied(drawn(rows, width, seed=width).to(dtype), gap, offset)
    y = copied((1e-2 * drawn(rows, width, seed=rows)).to(dtype), gap + 8, offset)
    if x.numel():
        x[0, 0], y[0, 0] = torch.inf, -torch.inf
        x[-1, -1] = torch.nan
    out = apart(rows, width, dtype, out_gap, out_offset)
    run("add_rows", x, y, out)
    want = x + y
    assert torch.equal(out.isnan(), want.isnan()) and bits(out.nan_to_num(7.0)) == bits(want.nan_to_num(7.0))
    assert_gaps_untouched(out)
    return out


def silu(rows: int, width: int, dtype: torch.dtype, layout: Layout = ALIGNED) -> Tensor:
    """Every row has the edges of silu that fit: those of torch, within the bound of float32 and one rounding."""
    gap, offset, out_gap, out_offset = layout
    x = (4 * drawn(rows, 2 * width, seed=width)).to(dtype)
    edges = torch.tensor([torch.inf, -0.0, -torch.inf, torch.nan, 89.0, -89.0, 0.0]).to(dtype)[:width]
    x[:, : len(edges)] = edges
    x, out = copied(x, gap, offset), apart(rows, width, dtype, out_gap, out_offset)
    run("silu_and_mul", x, out)
    gate, up = x.double().chunk(2, 1)
    truth = F.silu(gate) * up
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps + 2.0**-121 * up.abs()
    error = (out.double() - truth).abs()
    assert torch.equal(out.isnan(), truth.isnan())
    assert ((error <= (ROUNDING[dtype] + 2**-21) * truth.abs() + tiny) | (out == truth) | truth.isnan()).all()
    assert_gaps_untouched(out)
    return out

"""Calls of the kernel of mla_query in the emulator, with checks: values, and nothing written elsewhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from support import bf16_grouped, mla_oracle
from support.emulated_kernels import apart, assert_gaps_untouched, run
from support.grouped import assert_close
from support.mla_oracle import drawn

BF16 = torch.bfloat16
ANGLES = 70  # positions past them turn into NaN
POSITIONS = [0, 7, -1, ANGLES - 1, ANGLES, 3, -5, 2**31 - 1, 64, -(2**31)]
# (gap between rows, elements after a 16-byte boundary) of q, w_k, rope and out.
Layout = tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]
ALIGNED: Layout = ((0, 0), (0, 0), (0, 0), (0, 0))
LAYOUTS: list[Layout] = [
    ALIGNED,
    ((8, 8), (16, 8), (4, 4), (8, 16)),  # on 16 bytes, apart
    ((0, 1), (0, 0), (0, 0), (0, 0)),
    ((0, 0), (3, 0), (0, 0), (0, 0)),
    ((0, 0), (0, 0), (0, 2), (0, 0)),
    ((0, 0), (0, 0), (0, 0), (2, 0)),
    ((3, 5), (1, 7), (1, 3), (5, 1)),
]


def positions(tokens: int) -> Tensor:
    """Both ends of the table, past it, and padding."""
    return torch.tensor((POSITIONS * tokens)[:tokens], dtype=torch.int32)


def operands(tokens: int, heads: int, nope: int, latent: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, w_k, rope, position. Queries of padding are NaN; those of the last token are NaN where they are turned."""
    q, w_k = drawn(tokens, heads, nope + width, seed=nope), drawn(heads, latent, nope, seed=latent)
    position = positions(tokens)
    q[position < 0] = torch.nan
    q[-1:, :, nope:] = torch.nan
    return q.to(BF16), w_k.to(BF16), mla_oracle.rope(ANGLES, width), position


def spread(t: Tensor, gap: int, offset: int) -> Tensor:
    """A copy in memory full of NaN, whose rows lie `gap` elements apart, and stacks a row more if there is a gap."""
    sizes = *t.shape[:-2], t.shape[-2] + int(gap > 0), t.shape[-1] + gap
    storage = torch.full((offset + math.prod(sizes),), torch.nan, dtype=t.dtype)
    return storage[offset:].view(sizes)[..., : t.shape[-2], : t.shape[-1]].copy_(t)


def query(q: Tensor, w_k: Tensor, rope: Tensor, position: Tensor, layout: Layout = ALIGNED) -> Tensor:
    """out, in rows that have gaps between them, which stay as they were."""
    q, w_k, rope = (spread(t, *where) for t, where in zip((q, w_k, rope), layout, strict=False))
    tokens, heads, width = *q.shape[:2], w_k.shape[1] + rope.shape[1]
    gap, offset = layout[3]
    stacked = heads + int(gap > 0)
    rows = apart(tokens * stacked, width, BF16, gap, offset)
    out = rows.as_strided((tokens, heads, width), (stacked * rows.stride(0), rows.stride(0), 1), rows.storage_offset())
    run("mla_query", q, w_k, rope, position, out)
    assert_gaps_untouched(out)
    return out.contiguous()


def checked(tokens: int, heads: int, nope: int, latent: int, width: int, layout: Layout = ALIGNED) -> Tensor:
    q, w_k, rope, position = operands(tokens, heads, nope, latent, width)
    out = query(q, w_k, rope, position, layout)
    no_angle = position >= ANGLES
    no_angle[-1:] = position[-1:] >= 0
    rest = ~no_angle
    mla_oracle.assert_query(q[rest], w_k, rope, position[rest], out[rest])
    assert out[no_angle, :, latent:].isnan().all()
    for h in range(heads):
        assert_close(out[no_angle, h, :latent], *bf16_grouped.product(q[no_angle, h, :nope], w_k[h]))
    return out


def check_order_of_sums(nope: int = 200) -> None:
    """Sums of 64 columns each, in the order of the columns; the products of either half nearly cancel."""
    tokens, heads, latent, half = 9, 2, 72, nope // 2
    q, w_k = drawn(tokens, heads, nope + 8, seed=3).to(BF16), drawn(heads, latent, nope, seed=4).to(BF16)
    q[..., half:nope] = -q[..., :half].flip(-1)
    w_k[..., half:] = w_k[..., :half].flip(-1)
    position = torch.arange(tokens, dtype=torch.int32)
    total = torch.zeros(tokens, heads, latent)
    for first in range(0, nope, 64):
        stage = torch.zeros(tokens, heads, latent)
        for k in range(first, min(first + 64, nope), 16):
            part = slice(k, min(k + 16, first + 64, nope))
            stage = (
                stage.double() + torch.einsum("thk,hnk->thn", q[..., part].double(), w_k[..., part].double())
            ).float()
        total = total + stage
    for layout in (ALIGNED, LAYOUTS[-1]):
        out = query(q, w_k, mla_oracle.rope(ANGLES, 8), position, layout)
        assert torch.equal(out[..., :latent], total.to(BF16))

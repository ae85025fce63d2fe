"""Calls of the kernels of latent attention in the emulator, and what they must leave behind."""

from __future__ import annotations

import torch
from torch import Tensor

from support import mla_oracle
from support.emulated_kernels import FILLER, apart, assert_gaps_untouched, copied, run
from support.grouped import ROUNDING, assert_close
from support.norm_oracle import assert_normed

EPS = 1e-6
TABLE = torch.tensor([[4, 0, 2], [1, 5, 3], [6, -1, 9]], dtype=torch.int32)  # of 7 pages: the last row has one
ANGLES = 150  # positions past them turn into NaN
# (sequence, position): whole pages, both ends of one, past the angles, and tokens without a place.
PLACES = [(0, 0), (0, 63), (1, 64), (0, 150), (1, 191), (2, 5), (0, -1), (3, 0), (-1, 3), (1, 192), (2, 70), (2, 130)]


def write(latent: int, width: int, dtype: torch.dtype, layout: tuple[int, int, int, int] = (0, 0, 0, 0),
          places: list[tuple[int, int]] = PLACES, scale: float = 1.0) -> Tensor:  # fmt: skip
    """rows [7, 64, latent + width] after a call whose values are checked. layout: gap and offset of kv, of the rows."""
    gap, offset, row_gap, row_offset = layout
    size = latent + width
    kv = copied((scale * mla_oracle.drawn(len(places), size, seed=latent)).to(dtype), gap, offset)
    weight = mla_oracle.drawn(latent, seed=1).abs() + 0.5
    rope, rows = mla_oracle.rope(ANGLES, width), apart(7 * 64, size, dtype, row_gap, row_offset)
    paged = rows.as_strided((7, 64, size), (64 * rows.stride(0), rows.stride(0), 1), rows.storage_offset())
    sequence, position = torch.tensor(places, dtype=torch.int32).view(-1, 2).unbind(1)
    run("mla_write", kv, weight, EPS, rope, TABLE, sequence.contiguous(), position.contiguous(), paged)
    written = torch.zeros(7 * 64, dtype=torch.bool)
    for t, (s, p) in enumerate(places):
        if not (0 <= s < len(TABLE) and 0 <= p < 64 * TABLE.shape[1] and 0 <= TABLE[s, p // 64] < 7):
            continue
        at = int(TABLE[s, p // 64]) * 64 + p % 64
        written[at] = True
        assert_normed(rows[at : at + 1, :latent], kv[t : t + 1, :latent], weight, EPS)
        turned, source = rows[at, latent:], kv[t, latent:]
        if p >= ANGLES:
            assert turned.isnan().all()
            continue
        bound = (ROUNDING[dtype] + 2**-22) * 2 * source.double().abs().max()
        assert ((turned.double() - mla_oracle.turned(source, rope[p])).abs() <= bound).all()
    rest = torch.empty(0, dtype=dtype).set_(rows.untyped_storage())
    inside = torch.zeros(rest.numel(), dtype=torch.bool)
    inside.as_strided(rows.shape, rows.stride(), rows.storage_offset())[written] = True
    assert (rest.view(torch.uint8).view(-1, rows.element_size())[~inside] == FILLER).all()
    return paged


def decode(lengths: list[int], tokens: list[tuple[int, int]], heads: int, width: int, latent: int, split_rows: int = 64,
           *, scale: float | None = None, order: int = 0, gap: int = 0, first_head: int = 0) -> Tensor:  # fmt: skip
    """[T, heads, latent] of `tokens`, (sequence, position) each, after a call whose values are checked; NaN where a
    token has no place. The rows of a sequence are the same in any order of the pages; rows that none has are NaN. A
    head has the same query in any company: `first_head` is that of the first. gap: elements between rows of the result.
    """
    c = mla_oracle.cache(lengths, width, torch.bfloat16, order=order)
    sequence, position = torch.tensor(tokens, dtype=torch.int32).view(-1, 2).unbind(1)
    q = torch.empty(len(tokens), first_head + heads, width, dtype=torch.bfloat16)
    for t, (s, p) in enumerate(tokens):
        q[t] = mla_oracle.drawn(first_head + heads, width, seed=1 + 997 * s + p)
    q, scale = q[:, first_head:].contiguous(), width**-0.5 if scale is None else scale
    flat = apart(len(tokens) * heads, latent, torch.bfloat16, gap)
    out = flat.as_strided((len(tokens), heads, latent), (heads * flat.stride(0), flat.stride(0), 1))
    run("mla_decode", q, c.rows, c.page_table, sequence.contiguous(), position.contiguous(), latent, scale, split_rows,
        out)  # fmt: skip
    for t, (s, p) in enumerate(tokens):
        if p < 0:
            assert (out[t] == 0).all()
        elif 0 <= s < len(lengths) and p < 64 * c.page_table.shape[1]:
            assert_close(out[t], *mla_oracle.decode(q[t], c, s, p, latent, scale, tensor_cores=True))
        else:
            assert out[t].isnan().all()
    assert_gaps_untouched(flat)
    return out


def decode_without_a_page() -> None:
    """A token that would see a page that does not exist is NaN, whatever else its block computes."""
    rows, table = mla_oracle.drawn(2, 64, 32, seed=5, dtype=torch.bfloat16), torch.tensor([[1, 2], [0, 1]])
    out, at = torch.empty(2, 1, 16, dtype=torch.bfloat16), torch.tensor([0, 1], dtype=torch.int32)
    run("mla_decode", rows[0, :2, None], rows, table.int(), at, torch.full_like(at, 100), 16, 0.2, 64, out)
    assert out[0].isnan().all() and out[1].isfinite().all()

"""Calls of the kernels of latent attention in the emulator, and what they must leave behind."""

from __future__ import annotations

import torch
from torch import Tensor

from support import mla_oracle
from support.emulated_kernels import FILLER, apart, copied, run
from support.grouped import ROUNDING
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

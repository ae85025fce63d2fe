"""Plain-torch attention over pages of latent rows: the oracle, and the path where there is no kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from .norm import rms_norm
from .sums import acc_dtype, product

__all__ = ["mla_decode", "mla_query", "mla_write"]


def mla_write(kv: Tensor, weight: Tensor, eps: float, rope: Tensor, page_table: Tensor, sequence: Tensor,
              position: Tensor, rows: Tensor) -> Tensor:  # fmt: skip
    """Row position[t] of sequence[t] = rms_norm of the first len(weight) elements of kv[t], then the others, turned."""
    latent, turned = kv.split([len(weight), rope.shape[1]], -1)
    new = torch.cat([rms_norm(latent, weight, eps), _turn(turned[:, None], rope, position)[:, 0]], -1)
    for t, (s, p) in enumerate(zip(sequence.tolist(), position.tolist(), strict=True)):
        page = _page(page_table, s, p, len(rows))
        if page >= 0:
            rows[page, p % rows.shape[1]] = new[t]
    return rows


def mla_query(q: Tensor, w_k: Tensor, rope: Tensor, position: Tensor) -> Tensor:
    """[q[t, h, :nope] @ w_k[h].T | the rest of q, turned]; 0 where the position is negative."""
    nope, rest = q.split([w_k.shape[2], rope.shape[1]], -1)
    # Token by token, head by head: libraries sum several rows in another order than one.
    absorbed = [torch.cat([product(x[None], w) for x, w in zip(row, w_k, strict=True)]) for row in nope]
    absorbed = torch.stack(absorbed).to(q.dtype) if absorbed else q.new_empty((0, *w_k.shape[:2]))
    out = torch.cat([absorbed, _turn(rest, rope, position)], -1)
    return out.masked_fill_((position < 0)[:, None, None], 0)


def mla_decode(q: Tensor, rows: Tensor, page_table: Tensor, sequence: Tensor, position: Tensor, *, latent: int,
               scale: float, split_rows: int = 512) -> Tensor:  # fmt: skip
    """softmax(scale * q[t] @ past.T) @ past[:, :latent] of rows 0 .. position[t]; split_rows changes nothing here."""
    wide, size = acc_dtype(q.dtype), rows.shape[1]
    out = q.new_zeros((*q.shape[:2], latent))
    for t, (s, p) in enumerate(zip(sequence.tolist(), position.tolist(), strict=True)):
        if p < 0:
            continue
        pages = [_page(page_table, s, at, len(rows)) for at in range(0, p + 1, size)]
        if min(pages) < 0:
            out[t] = torch.nan
            continue
        past = rows[pages].flatten(0, 1)[: p + 1].to(wide)
        weights = (product(q[t], past) * scale).softmax(-1)
        out[t] = (weights @ past[:, :latent]).to(q.dtype)
    return out


def _turn(x: Tensor, rope: Tensor, position: Tensor) -> Tensor:
    """The pairs (2j, 2j+1) of x [T,h,R] turned by rows of rope [L,R], which holds (cos, sin); NaN past its end."""
    angle = (
        rope[position.long().clamp(0, max(len(rope) - 1, 0))] if len(rope) else rope.new_zeros(len(x), rope.shape[1])
    )
    angle = angle.masked_fill((position >= len(rope))[:, None], torch.nan)[:, None].unflatten(-1, (-1, 2))
    even, odd = x.to(acc_dtype(x.dtype)).unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angle.unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).to(x.dtype)


def _page(page_table: Tensor, sequence: int, position: int, pages: int, size: int = 64) -> int:
    """The page of a row; -1 where no page of the table holds it."""
    if not (0 <= sequence < len(page_table) and 0 <= position < page_table.shape[1] * size):
        return -1
    page = int(page_table[sequence, position // size])
    return page if 0 <= page < pages else -1

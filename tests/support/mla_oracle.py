"""Latent attention in fp64, token by token, with an error bound for every element; and its operands."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from support import bf16_grouped
from support.grouped import ROUNDING, assert_close

PAGE = 64
EPS = 2.0**-24


class Cache(NamedTuple):
    """rows [pages, 64, W] with NaN in every row that no sequence has; page_table i32 [B, P]."""

    rows: Tensor
    page_table: Tensor


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def cache(lengths: list[int], width: int, dtype: torch.dtype, *, order: int = 0, spare: int = 2) -> Cache:
    """Each sequence has the same rows whatever the order of its pages, which `order` shuffles, and its neighbours."""
    each = max(1, *(-(-n // PAGE) for n in lengths))
    shuffled = torch.randperm(len(lengths) * each + spare, generator=torch.Generator().manual_seed(order))
    table = shuffled[: len(lengths) * each].view(len(lengths), each).int()
    rows = torch.full((len(shuffled), PAGE, width), torch.nan, dtype=dtype)
    for b, n in enumerate(lengths):
        values = drawn(n, width, seed=100 + b, dtype=dtype)
        for i in range(0, n, PAGE):
            rows[table[b, i // PAGE], : min(PAGE, n - i)] = values[i : i + PAGE]
    return Cache(rows, table)


def rope(positions: int, width: int) -> Tensor:
    """f32 [positions, width], (cos, sin) of each pair."""
    angle = torch.arange(positions)[:, None] * 1e4 ** (-2.0 * torch.arange(width // 2) / width)
    return torch.stack([angle.cos(), angle.sin()], -1).flatten(1)


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Pairs of x [..., R] as complex numbers, times those of angles [R], in fp64."""
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.view_as_complex(angles.double().unflatten(-1, (-1, 2)))).flatten(-2)


def past_of(c: Cache, sequence: int, position: int) -> Tensor:
    pages = c.page_table[sequence, : position // PAGE + 1].long()
    return c.rows[pages].flatten(0, 1)[: position + 1].double()


def decode(q: Tensor, c: Cache, sequence: int, position: int, latent: int, scale: float,
           tensor_cores: bool = bf16_grouped.BACKEND in ("emu", "cuda")) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(value, bound) [h, latent] of one token's q [h, W].

    A score is off by at most d: the rounding of W products and their sums, of the factor `scale` and of the difference
    to the largest. So each weight is off by a share of 2 d and 4 EPS of its exp, numerator and denominator alike, and
    each sums n terms; a merge of splits rounds a few times more. Tensor cores truncate up to 17 times for each 16
    terms, and take weights that are rounded to bf16.
    """
    terms, rounded = (17 / 16, 2 * ROUNDING[torch.bfloat16]) if tensor_cores and q.dtype == torch.bfloat16 else (1, 0)
    past, wide = past_of(c, sequence, position), q.double()
    scores = scale * wide @ past.T
    sizes = abs(scale) * (wide.abs() @ past.abs().T)
    weights = scores.softmax(-1)
    span = scores.amax(-1, keepdim=True) - scores
    off = (terms * q.shape[1] + 3) * sizes + scores.abs() + span
    share = 2 * (off * EPS).amax(-1, keepdim=True) + (2 * terms * len(past) + 40) * EPS + rounded
    values = past[:, :latent]
    return weights @ values, share * (weights @ values.abs())


def assert_query(q: Tensor, w_k: Tensor, rope_table: Tensor, position: Tensor, out: Tensor) -> None:
    """out [T,h,latent+R] is what `mla_query` promises of tokens with a position in the table; 0 for padding."""
    (heads, latent, nope), kept = w_k.shape, position >= 0
    assert (out[~kept] == 0).all()
    for h in range(heads):
        assert_close(out[kept, h, :latent], *bf16_grouped.product(q[kept, h, :nope], w_k[h]))
    for t, p in enumerate(position.tolist()):
        if p >= 0:
            truth = turned(q[t, :, nope:], rope_table[p])
            bound = (ROUNDING[out.dtype] + 2**-22) * 2 * q[t, :, nope:].double().abs().amax(-1, keepdim=True)
            assert ((out[t, :, latent:].double() - truth).abs() <= bound).all()


def assert_decoded(q: Tensor, rows: Tensor, page_table: Tensor, sequence: Tensor, position: Tensor, latent: int,
                   scale: float, split_rows: int, out: Tensor) -> None:  # fmt: skip
    """out [T,h,latent] is what `mla_decode` promises of tokens that the table has; 0 for padding."""
    for t, (s, p) in enumerate(zip(sequence.tolist(), position.tolist(), strict=True)):
        if p < 0:
            assert (out[t] == 0).all()
        else:
            assert_close(out[t], *decode(q[t], Cache(rows, page_table), s, p, latent, scale))

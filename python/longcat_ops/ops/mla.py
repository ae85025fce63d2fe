"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434) of a decode step, over pages of latent rows.

A token is a row of each tensor: its sequence and position, i32 [T], say where its latent row lies and what it may see,
the rows 0 .. position of its own sequence. Nothing else enters its result, which has the same bits in any company, page
order and number of threads. Position -1 is padding: it writes nothing, its query is 0 and so is what it attends to.
rows [pages, 64, W] are those of one attention; page_table i32 [B, P] names the page of rows 64 i .. 64 i + 63 of a
sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .calling import kernel, public

_mla_write = kernel("mla_write")
_mla_query = kernel("mla_query")
_mla_decode = kernel("mla_decode")

SPLIT_ROWS = 512


@public
def mla_write(kv: Tensor, weight: Tensor, eps: float, rope: Tensor, page_table: Tensor, sequence: Tensor,
              position: Tensor, rows: Tensor) -> Tensor:  # fmt: skip
    """Writes the latent row of each token: RMSNorm of kv's first elements, and its last R turned by RoPE.

    A token whose sequence, position or page does not exist writes nothing. Two tokens of one place are a race.

    Args:
        kv: [T, latent + R], bf16, f16 or f32; last stride 1, rows any distance apart. T may be 0.
        weight: f32 [latent], of the norm. eps: 0 or a small positive number.
        rope: f32 [L, R], (cos, sin) of each pair of elements at each position; R even. A position from L on turns the
            pairs into NaN.
        page_table: i32 [B, P]. sequence, position: i32 [T].
        rows: [pages, 64, latent + R] of kv's dtype; written.

    Returns:
        rows.

    Raises:
        LongcatShapeError: the arguments do not fit each other.
    """
    _mla_write(kv, weight, eps, rope, page_table, sequence, position, rows)
    return rows


@public
def mla_query(q: Tensor, w_k: Tensor, rope: Tensor, position: Tensor) -> Tensor:
    """The query as latent rows meet it: the key half of kv_b absorbed, q[t, h, :nope] @ w_k[h].T, summed in float32 and
    rounded once, then the last R elements turned by RoPE.

    Args:
        q: [T, h, nope + R], bf16, on a CPU also f32; last stride 1. T may be 0.
        w_k: [h, latent, nope] of q's dtype; latent and nope multiples of 8.
        rope: f32 [L, R], as in `mla_write`. position: i32 [T].

    Returns:
        [T, h, latent + R] of q's dtype.

    Raises:
        LongcatShapeError: the arguments do not fit each other.
    """
    out = torch.empty((*q.shape[:2], w_k.shape[1] + rope.shape[1]), dtype=q.dtype, device=q.device)
    _mla_query(q, w_k, rope, position, out)
    return out


@public
def mla_decode(q: Tensor, rows: Tensor, page_table: Tensor, sequence: Tensor, position: Tensor, *, latent: int,
               scale: float, split_rows: int = SPLIT_ROWS) -> Tensor:  # fmt: skip
    """softmax(scale * q[t, h] . row) over the rows 0 .. position[t] of sequence[t], times their first `latent`
    elements: multi-query attention in float32, rounded once. On CUDA the weights of the rows are rounded to bf16 first,
    as tensor cores take them.

    Rows past the position are not read into the result, whatever they hold. A token whose sequence, position or page
    does not exist gets NaN. Splits of split_rows rows are summed apart and merged in order, so this value is part of
    what fixes a row's bits; it must not follow the batch.

    Args:
        q: [T, h, W], bf16 or f32; last stride 1, from `mla_query`. T may be 0. On CUDA bf16, W a multiple of 16 up to
            576, latent up to 512, rows of q and of the pages on 16 bytes.
        rows: [pages, 64, W] of q's dtype. page_table: i32 [B, P]. sequence, position: i32 [T].
        latent: 1 .. W. scale: of the scores. split_rows: a multiple of 64.

    Returns:
        [T, h, latent] of q's dtype.

    Raises:
        LongcatShapeError: the arguments do not fit each other, or latent or split_rows has another value.
    """
    out = torch.empty((*q.shape[:2], latent), dtype=q.dtype, device=q.device)
    _mla_decode(q, rows, page_table, sequence, position, latent, scale, split_rows, out)
    return out

"""FlashMLA (github.com/deepseek-ai/FlashMLA) in place of `mla_decode` on a GPU, by choice: it should be ahead where the
tensor cores are the limit (docs/mla_decode.md). It promises no bits: a token's may change with its batch, so a text
decoded with drafts may differ from one without. Steps run eagerly, since torch's ops prepare its arguments.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch import Tensor

from ..errors import LongcatShapeError, LongcatUnsupportedError, message
from ..model import products

LATENT, ROPE = 512, 64  # the sizes that it is compiled for


def mla_decode(q: Tensor, rows: Tensor, page_table: Tensor, sequence: Tensor, position: Tensor, *, latent: int,
               scale: float, split_rows: int = 0) -> Tensor:  # fmt: skip
    """`longcat_ops.mla_decode` by FlashMLA, which takes each token as a sequence of its own; split_rows has no meaning.

    Args: as `longcat_ops.mla_decode`, bf16, W = 576 and latent = 512. Padding is 0, a token without a place NaN; a page
        that the table does not have must not lie before a token's position.

    Raises: LongcatShapeError for other sizes or dtypes; LongcatUnsupportedError where FlashMLA cannot be imported.
    """
    if (latent, q.shape[-1], q.dtype) != (LATENT, LATENT + ROPE, torch.bfloat16):
        got, want = f"{q.dtype} {list(q.shape)}, latent {latent}", f"torch.bfloat16 [T, h, {LATENT + ROPE}], {LATENT}"
        raise LongcatShapeError(message("flash_mla.mla_decode", "q", got, want))
    library, (sequences, pages) = _library(), page_table.shape
    exists = (sequence >= 0) & (sequence < sequences) & (position < pages * rows.shape[1])
    lengths = torch.where(exists, position + 1, 1).clamp(min=1)  # it reads one row for a token without any
    tables = page_table[torch.where(exists, sequence, 0).long()].clamp(min=0)
    metadata, num_splits = library.get_mla_metadata(lengths, q.shape[1], 1)
    of_each, pages_of_one = q[:, None].contiguous(), rows[:, :, None]
    out, _ = library.flash_mla_with_kvcache(of_each, pages_of_one, tables, lengths, LATENT, metadata, num_splits,
                                            softmax_scale=scale, causal=True)  # fmt: skip
    out = out[:, 0].masked_fill(~exists[:, None, None], torch.nan)
    return out.masked_fill((position < 0)[:, None, None], 0)


@contextmanager
def enabled() -> Iterator[None]:
    """Inside, models on a GPU decode with FlashMLA, in every thread; `generate(graph=True)` is refused."""
    _library()
    before = products.replace_attention(SimpleNamespace(mla_decode=mla_decode))
    try:
        yield
    finally:
        products.replace_attention(before)


def _library() -> object:
    try:
        return importlib.import_module("flash_mla")
    except ImportError as error:
        fix = "install it (github.com/deepseek-ai/FlashMLA), or decode with mla_decode"
        raise LongcatUnsupportedError(f"FlashMLA cannot be imported: {error}\n  fix: {fix}") from None

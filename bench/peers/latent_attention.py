"""Public kernels of latent attention over pages of 64 rows, which promise no bits: FlashMLA and flashinfer."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .peer import not_importable

LATENT, ROPE = 512, 64


@dataclass(frozen=True)
class Problem:
    """A decode pass: q [T,h,576], rows [pages,64,576], page_table i32 [B,P]; `each` tokens of every sequence, whose
    last sees lengths[b] rows. i32 [B]."""

    q: Tensor
    rows: Tensor
    page_table: Tensor
    lengths: Tensor
    each: int
    scale: float

    @property
    def heads(self) -> int:
        return self.q.shape[1]


Run = Callable[[], Tensor]  # [T,h,512]


def flash_mla(p: Problem) -> Run:
    """flash_mla_with_kvcache of deepseek-ai/FlashMLA; how work is dealt out is computed once, ahead."""
    module = importlib.import_module("flash_mla")
    metadata, num_splits = module.get_mla_metadata(p.lengths, p.each * p.heads, 1)
    q = p.q.view(-1, p.each, p.heads, LATENT + ROPE)
    pages = p.rows[:, :, None]

    def run() -> Tensor:
        out, _ = module.flash_mla_with_kvcache(q, pages, p.page_table, p.lengths, LATENT, metadata, num_splits,
                                               softmax_scale=p.scale, causal=True)  # fmt: skip
        return out.flatten(0, 1)

    return run


def flashinfer(p: Problem) -> Run:
    """BatchMLAPagedAttentionWrapper of flashinfer; its plan, which reads lengths on the host, is made once, ahead."""
    module, device = importlib.import_module("flashinfer.mla"), p.q.device
    batch = len(p.lengths)
    pages = (p.lengths + 63) // 64
    indptr = torch.cat([pages.new_zeros(1), pages.cumsum(0)]).int()
    indices = torch.cat([own[:n] for own, n in zip(p.page_table, pages.tolist(), strict=True)])
    wrapper = module.BatchMLAPagedAttentionWrapper(torch.empty(128 << 20, dtype=torch.uint8, device=device))
    wrapper.plan(torch.arange(0, batch * p.each + 1, p.each, dtype=torch.int32, device=device), indptr, indices,
                 p.lengths, p.heads, LATENT, ROPE, 64, True, p.scale, p.q.dtype, p.rows.dtype)  # fmt: skip
    nope, rope = p.q[..., :LATENT].contiguous(), p.q[..., LATENT:].contiguous()
    latent, keys = p.rows[..., :LATENT].contiguous(), p.rows[..., LATENT:].contiguous()
    return lambda: wrapper.run(nope, rope, latent, keys)


PEERS: dict[str, tuple[Callable[[], str | None], Callable[[Problem], Run]]] = {
    "FlashMLA": (lambda: not_importable("flash_mla", "FlashMLA"), flash_mla),
    "flashinfer": (lambda: not_importable("flashinfer.mla", "flashinfer"), flashinfer),
}

"""One process that multiplies the part of every rank and adds their terms in the order of ranks, in fp32, rounded once:
what ranks that share dense weights must have, bit for bit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from longcat_ops import LongcatFlashConfig, LongcatFlashForCausalLM
from longcat_ops.loading.checkpoint import CheckpointSource
from longcat_ops.model.layers import FFN, MLA
from longcat_ops.model.products import Quantised
from longcat_ops.model.shares import Shares
from longcat_ops.model.source import released


def in_parts(folder: str, precision: str | None, tp: int, form: str, device: Any = "cpu") -> LongcatFlashForCausalLM:
    """The network of a checkpoint, whose FFNs, and in all-reduce form attentions, are computed part by part."""
    whole = LongcatFlashForCausalLM.from_pretrained(folder, precision=precision, device=device)
    parts = [_part(folder, precision, Shares(rank, tp, form), device) for rank in range(tp)]
    for name, module in list(whole.named_modules()):
        mine = [part.get_submodule(name) for part in parts]
        if isinstance(module, FFN):
            module.forward = _ffn(mine, whole.dtype, form)
        elif isinstance(module, MLA) and form == "all_reduce":
            module.project = lambda x, rows, mine=mine: [one.project(x, rows) for one in mine]
            module.attend = lambda q, rows, mine=mine: _sum(
                [one.attend(some, rows).terms for one, some in zip(mine, q, strict=True)], whole.dtype
            )
    return whole


def _part(folder: str, precision: str | None, tp: Shares, device: Any) -> LongcatFlashForCausalLM:
    config = LongcatFlashConfig.from_pretrained(folder)
    with released(CheckpointSource(folder, config, precision=precision, tp=tp, device=device)) as source:
        return LongcatFlashForCausalLM(source, config)


def _ffn(parts: list[FFN], dtype: torch.dtype, form: str) -> Any:
    def forward(x: Tensor | Quantised, rows: Any) -> Tensor:
        if form == "token" and rows.count is None:  # a chunk of a prompt runs beside rows of other ranks
            first = x.pair[0] if isinstance(x, Quantised) else x
            rows = SimpleNamespace(count=torch.tensor([len(first)], dtype=torch.int32, device=first.device))
        return _sum([part.products(x, rows) for part in parts], dtype)

    return forward


def _sum(terms: list[Tensor], dtype: torch.dtype) -> Tensor:
    total = terms[0]
    for more in terms[1:]:
        total = total + more
    return total.to(dtype)

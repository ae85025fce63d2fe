"""Does attention compute what it should, at the model's sizes, and has a token its bits in any company?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import longcat_ops
from device_check.machine import Machine
from device_check.questions.smoke import same_bits
from longcat_ops.testing.op_results import to_device

PAGE = 64


def paged(sequences: int, tokens: int, context: int, heads: int, latent: int, rope: int) -> tuple[Tensor, ...]:
    """(q, rows, page_table, sequence, position): `tokens` of each sequence, at its end; lengths differ a little. Rows
    that no sequence has are NaN."""
    g = torch.Generator().manual_seed(context)
    pages, width = -(-context // PAGE), latent + rope
    table = torch.randperm(sequences * pages + 3, generator=g)[: sequences * pages].int().view(sequences, pages)
    ends = context - 1 - torch.arange(sequences) * 37 % max(1, context // 4)
    rows = torch.full((sequences * pages + 3, PAGE, width), torch.nan, dtype=torch.bfloat16)
    for own, end in zip(table.long(), ends.tolist(), strict=True):
        filled = torch.full((pages * PAGE, width), torch.nan)
        filled[: end + 1] = torch.randn(end + 1, width, generator=g)
        rows[own] = filled.view(pages, PAGE, width).bfloat16()
    sequence = torch.arange(sequences, dtype=torch.int32).repeat_interleave(tokens)
    position = (ends[:, None] - torch.arange(tokens).flip(0)).flatten().int()
    q = torch.randn(sequences * tokens, heads, width, generator=g).bfloat16()
    return q, rows, table, sequence, position


def decode(machine: Machine, sequences: int, tokens: int, context: int, heads: int, latent: int, rope: int,
           splits: list[int]) -> dict[str, Any]:  # fmt: skip
    """mla_decode beside fp64, within the rounding of the weights and of the result; and tokens alone, and two of them
    side by side, beside themselves among all."""
    call = paged(sequences, tokens, context, heads, latent, rope)
    q, rows, table, sequence, position = there = to_device(call, machine.device)
    scale, worst = (latent + rope) ** -0.5, 0.0
    for split in splits:
        out = longcat_ops.mla_decode(*there, latent=latent, scale=scale, split_rows=split)
        machine.synchronize()
        for t in range(0, len(q), max(1, len(q) // 8)):
            worst = max(worst, off(out[t], [c[t] if i in (0, 3, 4) else c for i, c in enumerate(call)], latent, scale))
        for first, last in ((0, 1), (len(q) - 1, len(q)), (0, min(2, len(q)))):
            some = slice(first, last)
            alone = longcat_ops.mla_decode(q[some].contiguous(), rows, table, sequence[some].contiguous(),
                                           position[some].contiguous(), latent=latent, scale=scale,
                                           split_rows=split)  # fmt: skip
            same_bits(f"mla_decode of tokens {first} .. {last - 1} alone, splits of {split}", alone, out[some])
    return {"tokens": len(q), "error_of_bound": round(worst, 3)}


def off(out: Tensor, call: list[Any], latent: int, scale: float) -> float:
    """The largest error of one token's result as a share of its bound. Raises AssertionError above 1."""
    q, rows, table, sequence, position = call
    past = rows[table[int(sequence)].long()].flatten(0, 1)[: int(position) + 1].double()
    weights = (scale * q.double() @ past.T).softmax(-1)
    truth, sizes = weights @ past[:, :latent], weights @ past[:, :latent].abs()
    share = (out.cpu().double() - truth).abs() / (2.0**-8 * (truth.abs() + sizes) + 2.0**-100)
    assert (share <= 1).all(), f"mla_decode: off by {float(share.max()):.2f} of the bound, NaN: {share.isnan().any()}"
    return float(share.max())

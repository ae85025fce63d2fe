"""Are tokens drawn and drafts judged as on a CPU, at the model's sizes? Sums have another order, so what is rounded to
float32 may differ by that rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import longcat_ops
from device_check.machine import Machine
from device_check.questions.smoke import against_cpu, same_bits
from longcat_ops.testing.op_results import to_device


def draws(machine: Machine, sequences: int, drafts: int, vocabulary: int) -> dict[str, Any]:
    """Drafts drawn from a head, and tokens of a target like it: greedy sequences, and each cut. Tokens, in effect,
    never differ. Then which drafts of the head are worth verifying."""
    g = torch.Generator().manual_seed(sequences)
    each = torch.arange(sequences)
    settings = (each * 2**33 - 5, each.int() * 40, (each % 4) / 2, (each % 3).int() * 50, 1 - (each % 5) / 20)
    head = 3 * torch.randn(sequences, vocabulary, generator=g)
    tokens, probs = longcat_ops.sample_tokens(head, *settings)
    found = longcat_ops.sample_tokens(*to_device((head, *settings), machine.device))
    same_bits("sample_tokens", found[0], tokens)
    within_a_rounding("sample_tokens: probabilities", found[1], probs)
    logits = head[:, None] + torch.randn(sequences, drafts + 1, vocabulary, generator=g) / 2
    call = logits, tokens[:, None].repeat(1, drafts), torch.full((sequences,), drafts, dtype=torch.int32), *settings
    against_cpu(machine, "verify_sampled", *call)
    _, count = against_cpu(machine, "verify_sampled", *call, probs[:, None].repeat(1, drafts, 1))
    judged = filtered(machine, head, torch.arange(sequences, dtype=torch.int32) % 4)
    return {"accepted": int(count.sum()) - sequences, "worth verifying": judged}


def filtered(machine: Machine, head: Tensor, num_drafts: Tensor) -> int:
    """filter_drafts over the drafts of a head: how many are worth verifying. Some rows have a NaN."""
    g = torch.Generator().manual_seed(len(head))
    hidden, output = torch.randn(48, 4, generator=g), torch.randn(49, generator=g) / 4
    logits, before = head.clone(), torch.rand(len(head), generator=g)
    logits[3::8, -1] = torch.nan
    results = []
    for device in (machine.device, "cpu"):
        *given, drafts = to_device((logits, hidden, output, before, num_drafts), device)
        scores = longcat_ops.filter_drafts(given[0], drafts, *given[1:], depth=2, beta=0.5)
        kept = (num_drafts.to(device) < 2) | (scores.score >= 0.5)
        same_bits("filter_drafts: drafts", drafts, num_drafts.to(device).where(kept, 1))
        results.append(scores)
    machine.synchronize()
    for name, ours, expected in zip(results[0]._fields, *results, strict=True):
        within_a_rounding(f"filter_drafts: {name}", ours, expected)
    return int((results[1].score >= 0.5).sum())


def within_a_rounding(name: str, ours: Tensor, expected: Tensor) -> None:
    ours, expected = ours.cpu().double(), expected.double()
    off = (ours - expected).abs()
    right = (off <= 2.0**-23 * expected + 2.0**-149) | (ours.isnan() & expected.isnan())
    assert right.all(), f"{name} differ by {off.max():.3g}"

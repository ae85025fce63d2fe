"""Routing in fp64, with slack for scores that float32 cannot tell apart, and batches with every kind of row."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat_ops import Routing

TOKENS = (0, 1, 2, 7, 31, 33, 96, 192, 1000)
EXPERTS = (8, 24, 48, 96, 384, 768, 1000)
TOP_K = (1, 4, 8, 12, 32)
KINDS = (
    "normal",
    "ties",
    "all_zero_experts",
    "all_ffn_experts",
    "minus_inf",
    "nan",
    "plus_inf",
    "only_minus_inf",
    "far_from_0",
)
BAD = ("nan", "plus_inf", "only_minus_inf")
BIASES = ("small", "none", "large", "two_levels")


def batch(tokens: int, experts: int, zero: int, seed: int = 0) -> tuple[Tensor, list[str]]:
    """Float32 logits that bf16 holds exactly, and the kind of each row; the kinds alternate."""
    g = torch.Generator().manual_seed(1000 * seed + tokens + experts)
    logits = torch.randn(tokens, experts, generator=g)
    kinds = [KINDS[(t + seed) % len(KINDS)] for t in range(tokens)]
    for t, kind in enumerate(kinds):
        row, place = logits[t], (7 * t + 3) % experts
        if kind == "ties":
            row.mul_(2).round_().div_(2)
        elif kind == "far_from_0":
            row.add_(300 if t % 2 else -300)
        elif kind == "all_zero_experts":
            row[: experts - zero] -= 9
        elif kind == "all_ffn_experts":
            row[experts - zero :] -= 9
        elif kind == "minus_inf" and experts > 1:
            row[place::3] = -torch.inf
            row[place - 1] = 0.5
        elif kind == "nan":
            row[place] = torch.nan
        elif kind == "plus_inf":
            row[place] = torch.inf
        elif kind == "only_minus_inf":
            row[:] = -torch.inf
    return logits.bfloat16().float(), kinds


def biases(kind: str, experts: int) -> Tensor:
    """two_levels: +1e3 or -1e3, next to which float32 keeps nothing of a small score, so that ids decide."""
    g = torch.Generator().manual_seed(experts)
    if kind == "two_levels":
        return torch.where(torch.rand(experts, generator=g) < 0.3, 1e3, -1e3)
    return torch.randn(experts, generator=g) * {"small": 1e-2, "none": 0.0, "large": 1e3}[kind]


def assert_routed(got: Routing, logits: Tensor, bias: Tensor, *, top_k: int, zero: int, scale: float,
                  num_valid: int | None = None, errors: int = 0) -> None:  # fmt: skip
    """`got` is a correct routing of `logits`; `errors` is the count before the call."""
    tokens, experts = logits.shape
    ffn = experts - zero
    valid = tokens if num_valid is None else min(max(num_valid, 0), tokens)
    p = logits.double().softmax(-1)
    biased = p + bias.double()
    bad = biased.isnan().any(-1)
    bad[valid:] = False
    dropped = bad.clone()
    dropped[valid:] = True
    assert [t.dtype for t in got] == [torch.int32, torch.float32, torch.float32, torch.uint8, torch.int32, torch.int32]
    assert got.errors.tolist() == [errors + int(bad.sum())]
    assert (got.ids[dropped] == -1).all() and not got.weights[dropped].any() and not got.num_real[dropped].any()
    assert got.zero_weight[bad].isnan().all() and not got.zero_weight[dropped & ~bad].any()

    # Each -1 of a row stands for the best zero expert that is left.
    ids, p, biased = got.ids[~dropped].long(), p[~dropped], biased[~dropped]
    assert ((ids >= -1) & (ids < ffn)).all()
    absent = ids < 0
    best_zero = torch.sort(biased[:, ffn:], descending=True, stable=True).indices + ffn
    assert (absent.sum(-1) <= zero).all()
    turn = (absent.cumsum(-1) - 1).clamp(0, max(zero - 1, 0))
    chosen = torch.where(absent, best_zero.gather(1, turn), ids) if zero else ids
    taken = torch.zeros_like(biased).scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float64))
    assert (taken <= 1).all()

    # The choices are the best ones in descending order, up to what float32 loses in softmax and in adding the bias.
    slack = 2e-7 * biased.abs().amax(-1, keepdim=True)
    scores = biased.gather(1, chosen)
    assert (scores[:, :-1] >= scores[:, 1:] - slack).all()
    assert (biased.masked_fill(taken > 0, -torch.inf) <= scores[:, -1:] + slack).all()

    # A zero expert about as good as the last one taken may have replaced it: the outputs do not tell.
    last = biased.masked_fill((taken == 0) | (torch.arange(experts) < ffn), torch.inf).amin(-1, keepdim=True)
    near = (biased[:, ffn:] - last).abs() <= slack
    near &= (near & (taken[:, ffn:] == 0)).any(-1, keepdim=True)

    weights = p.gather(1, chosen) * scale
    assert_close(got.weights[~dropped], weights.masked_fill(absent, 0))
    assert_close(got.zero_weight[~dropped], (weights * absent).sum(-1), (p[:, ffn:] * near).sum(-1) * abs(scale))
    assert torch.equal(got.num_real[~dropped].long(), (~absent).sum(-1))
    unsure = torch.cat([near.new_zeros(len(near), ffn), near], 1).sum(0)
    assert ((got.counts - taken.sum(0)).abs() <= unsure).all()
    assert int(got.counts.sum()) == ids.numel()


def assert_close(actual: Tensor, expected: Tensor, slack: Tensor | float = 0.0) -> None:
    """2e-6: exp of a difference of up to 8, whose last bit is 2^-21, plus a few roundings; 1e-37: subnormals."""
    assert ((actual - expected).abs() <= 2e-6 * expected.abs() + 1e-37 + slack).all()

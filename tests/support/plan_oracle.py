"""Plans by torch's stable sort, and choices that force the edge cases of a counting sort."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat_ops import Plan

TOKENS = (0, 1, 2, 7, 31, 33, 96, 192, 1000)
GROUPS = (1, 8, 24, 48, 96, 384, 768, 1000)
TOP_K = (1, 4, 8, 12, 32)


def experts(tokens: int, groups: int, top_k: int, seed: int = 0) -> Tensor:
    """No token names an expert twice. Ids cover 1.5 times the local experts, and a third of the non-local ids are -1.
    Some tokens have no choice here, and neighbours often choose the same experts.
    """
    g = torch.Generator().manual_seed(10000 * seed + 100 * tokens + top_k)
    known = max(groups + groups // 2, top_k + 2)
    likes = torch.rand(tokens, known, generator=g) + 0.5 * torch.rand(known, generator=g)
    ids = likes.argsort(1)[:, :top_k].to(torch.int32)
    ids.masked_fill_((ids >= groups) & (torch.rand(ids.shape, generator=g) < 1 / 3), -1)
    ids[3::7] = -1
    return ids.contiguous()


# A third of all weights is +0 or -0; each other weight is a choice, even if it is subnormal, negative, NaN or infinite.
WEIGHTS = (0.0, -0.0, 0.0, 1.0, -1.0, 1e-45, -1e-45, torch.nan, torch.inf)


def weighted(ids: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(ids, weights f32 [T, K]): half of the choices of weight 0 name expert 0, the others keep their expert."""
    g = torch.Generator().manual_seed(seed)
    weights = torch.tensor(WEIGHTS)[torch.randint(len(WEIGHTS), ids.shape, generator=g)]
    moved = (torch.rand(ids.shape, generator=g) < 0.5) & (weights == 0)
    return ids.masked_fill(moved, 0), weights


def sorted_plan(ids: Tensor, groups: int, weights: Tensor | None = None) -> Plan:
    """A plan by torch's stable sort, for tokens that name no expert twice; choices of weight 0 are left out."""
    rows = len(ids) * min(ids.shape[1], groups)
    flat = ids.flatten().long()
    key = flat.masked_fill((flat < 0) | (flat >= groups), groups)
    if weights is not None:
        key[[weight == 0 for weight in weights.flatten().tolist()]] = groups
    places = torch.sort(key, stable=True).indices[: int((key < groups).sum())]
    row_of, src_of = torch.full_like(flat, -1), torch.full((rows,), -1)
    row_of[places] = torch.arange(len(places))
    src_of[: len(places)] = places
    offsets = torch.cat(
        [torch.zeros(1, dtype=torch.long), torch.bincount(key, minlength=groups + 1)[:groups].cumsum(0)]
    )
    return Plan(offsets.int(), row_of.view(ids.shape).int(), src_of.int())

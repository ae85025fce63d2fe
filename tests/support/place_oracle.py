"""What moe_place must give, by plain loops, and placements to call it with."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat_ops import Placement

INT_MIN, INT_MAX = -(2**31), 2**31 - 1


def murmur3_finaliser(h: int) -> int:
    """As published: https://github.com/aappleby/smhasher/wiki/MurmurHash3 (fmix32)."""
    h ^= h >> 16
    h = h * 0x85EBCA6B % 2**32
    h ^= h >> 13
    h = h * 0xC2B2AE35 % 2**32
    return h ^ h >> 16


def placed(ids: Tensor, placement: Placement, layer: int) -> list[list[int]]:
    slots, replicas = placement.slots.tolist(), placement.replicas.tolist()
    out = []
    for t, row in enumerate(ids.tolist()):
        h = murmur3_finaliser((t + layer * 0x9E3779B9) % 2**32)
        out.append([])
        for i in row:
            known = 0 <= i < len(slots) and 1 <= replicas[i] <= len(slots[i])
            out[-1].append(slots[i][h % replicas[i]] if known else -1)
    return out


def random_placement(experts: int, most: int, seed: int = 0) -> Placement:
    """1 to `most` replicas of each expert, in slots of no order."""
    g = torch.Generator().manual_seed(seed)
    replicas = torch.randint(1, most + 1, (experts,), generator=g, dtype=torch.int32)
    free = iter(torch.randperm(int(replicas.sum()), generator=g).tolist())
    rows = [[next(free) for _ in range(count)] for count in replicas.tolist()]
    expert_of = {slot: expert for expert, row in enumerate(rows) for slot in row}
    slots = torch.tensor([row + [-1] * (most - len(row)) for row in rows], dtype=torch.int32)
    return Placement(slots, replicas, torch.tensor([expert_of[s] for s in range(len(expert_of))], dtype=torch.int32))


def random_ids(tokens: int, k: int, experts: int, seed: int = 0) -> Tensor:
    """Every fourth choice is of no expert: -1, or a number that is too small or too large."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, experts, (tokens, k), generator=g, dtype=torch.int32)
    odd = torch.tensor([-1, -1, -2, experts, experts + 1, INT_MIN, INT_MAX, 2**30], dtype=torch.int32)
    chosen = odd[torch.randint(0, len(odd), (tokens, k), generator=g)]
    return torch.where(torch.rand(tokens, k, generator=g) < 0.25, chosen, ids)


def hostile_placement(experts: int, most: int) -> Placement:
    """Numbers of replicas that no expert can have, among others, and slots that do not exist."""
    g = torch.Generator().manual_seed(experts + most)
    counts = torch.tensor([0, 1, most, most + 1, -1, INT_MIN, INT_MAX, 2**30], dtype=torch.int32)
    slots = torch.tensor([-1, 0, 5, INT_MIN, INT_MAX], dtype=torch.int32)
    replicas = counts[torch.arange(experts) % len(counts)]
    return Placement(slots[torch.randint(0, 5, (experts, most), generator=g)], replicas, torch.zeros_like(replicas))

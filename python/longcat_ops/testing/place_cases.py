"""The calls of `moe_place`, for `op_cases`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..types import Placement
from .calls import Call, call, seeded

# 6 experts of 1 to 3 replicas, in 12 slots.
SLOTS = [[0, -1, -1], [5, 3, -1], [1, 7, 10], [2, 4, -1], [6, 8, 11], [9, -1, -1]]
EXPERTS = [0, 2, 3, 1, 3, 1, 4, 2, 4, 5, 2, 4]


def placement() -> Placement:
    counts = [sum(slot >= 0 for slot in slots) for slots in SLOTS]
    return Placement(*(torch.tensor(part, dtype=torch.int32) for part in (SLOTS, counts, EXPERTS)))


@seeded
def _place(tokens: int, top_k: int = 4, layer: int = 3) -> Call:
    """Ids of these experts, -1, and some that no expert has."""
    return call(torch.randint(-1, 8, (tokens, top_k), dtype=torch.int32), placement(), layer)


CASES: dict[str, dict[str, Callable[[], Call]]] = {
    "moe_place": {
        "ragged": lambda: _place(7),
        "one_choice": lambda: _place(33, top_k=1, layer=0),
        "empty": lambda: _place(0),
    },
}

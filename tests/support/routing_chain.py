"""A problem of the routing chain with every kind of token."""

from __future__ import annotations

import torch
from torch import Tensor

EXPERTS, ZERO, K, SCALE = 28, 12, 12, 6.0


REAL = EXPERTS - ZERO


def problem(tokens: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, logits, bias, num_valid): the first token has FFN experts only, the second none, the third a NaN; the last
    three are padding.
    """
    g = torch.Generator().manual_seed(tokens)
    x, logits = torch.randn(tokens, width, generator=g).bfloat16(), torch.randn(tokens, EXPERTS, generator=g)
    logits[0, REAL:] = logits[1, :REAL] = -30.0
    logits[2, 5] = torch.nan
    return x, logits, torch.randn(EXPERTS, generator=g) * 1e-3, torch.tensor([tokens - 3], dtype=torch.int32)

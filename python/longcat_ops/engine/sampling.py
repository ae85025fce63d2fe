"""The rejection rule that keeps speculation lossless, over the distributions and draws of the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference.sampling import draw, probabilities

__all__ = ["draw", "probabilities", "verify"]


def verify(p: Tensor, draft: Tensor, q: Tensor | None, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Accept draft tokens or replace them, so that the result is distributed as the target's p exactly.

    p f64[B,V] target; draft i64[B]; uniform [B,2]. q f64[B,V]: the distribution the draft was drawn from; accepted with
    min(1, p/q), else replaced by a draw from (p - q)+. q None: the draft is an argmax, so q is a point mass: accepted
    with p(draft), else replaced by a draw from p without it. Source: Leviathan et al., arXiv 2211.17192, section 2.3.

    Returns: (accepted bool[B], token i64[B]): the draft where accepted, else the replacement.
    """
    row = torch.arange(len(draft), device=p.device)
    p_draft = p[row, draft]
    q_draft = torch.ones_like(p_draft) if q is None else q[row, draft]
    accepted = uniform[:, 0] * q_draft < p_draft
    if q is None:
        residual = p.clone()
        residual[row, draft] = 0
    else:
        residual = (p - q).clamp_(min=0)
    # All of the residual can vanish only by rounding (p = q), where the draft is accepted: any weights will do.
    residual = torch.where(residual.sum(-1, keepdim=True) > 0, residual, p)
    return accepted, torch.where(accepted, draft, draw(residual, uniform[:, 1]))

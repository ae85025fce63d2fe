"""Drawing tokens: temperature, top-k, top-p, and the rejection rule that keeps speculation lossless."""

from __future__ import annotations

import torch
from torch import Tensor


def probabilities(logits: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """f64[B,V]: softmax of logits [B,V] / temperature, then the top_k largest, then the smallest set that holds top_p
    of the rest.

    Each cut renormalises before the next. Ties at the edge of top_k keep the lower id; top_k = 0 and top_p = 1 cut
    nothing.
    """
    wide = logits.double()
    # From the maximum down, so that a tiny temperature gives zeros and not inf - inf.
    p = ((wide - wide.amax(-1, keepdim=True)) / temperature).softmax(-1)
    if not (0 < top_k < p.shape[-1] or top_p < 1):
        return p
    ordered, index = torch.sort(p, dim=-1, descending=True, stable=True)
    if 0 < top_k < p.shape[-1]:
        ordered[:, top_k:] = 0
        ordered /= ordered.sum(-1, keepdim=True)
    if top_p < 1:
        before = ordered.cumsum(-1) - ordered  # the mass above each token; the first is always kept
        ordered[before >= top_p] = 0
        ordered[:, 0].clamp_(min=torch.finfo(p.dtype).tiny)
        ordered /= ordered.sum(-1, keepdim=True)
    return torch.zeros_like(p).scatter_(-1, index, ordered)


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """i64[B]: inverse-CDF draw from unnormalised weights [B,V] with uniform [B] in [0,1); never a token of weight 0."""
    cdf = weights.cumsum(-1)
    token = torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None], right=True)[:, 0]
    # Rounding may push past the last possible token.
    last = weights.shape[-1] - 1 - (weights > 0).flip(-1).long().argmax(-1)
    return torch.minimum(token, last)


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

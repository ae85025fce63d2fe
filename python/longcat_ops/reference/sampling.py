"""Plain-torch choice of tokens from logits: the oracle, and the path where there is no kernel. Logits may be float64.

Distributions and their sums are float64. Nothing here reads a value on the host where the tensors lie on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import DraftScores

__all__ = ["filter_drafts", "sample_tokens", "verify_greedy", "verify_sampled"]

# What a random number of one token decides: a draw from the target, a draw of a draft, whether a draft is accepted, a
# draw in place of one that is not. The CPU kernel has the same in cpp/cpu/philox.h.
TARGET, DRAFT, ACCEPT, RESIDUAL = range(4)
_WORD = 2**32 - 1


def verify_greedy(logits: Tensor, drafts: Tensor, num_drafts: Tensor, first_row: Tensor | None = None, *,
                  tokens: Tensor | None = None, num_tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The argmax of each row, as long as the row before yields its draft."""
    best, _ = _best(_rows(logits, first_row))
    return _given(best, best == _padded(drafts), num_drafts, tokens, num_tokens)


def verify_sampled(logits: Tensor, drafts: Tensor, num_drafts: Tensor, seeds: Tensor, lengths: Tensor,
                   temperature: Tensor, top_k: Tensor, top_p: Tensor, draft_probs: Tensor | None = None,
                   first_row: Tensor | None = None, *, tokens: Tensor | None = None,
                   num_tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A draw from each row, as long as the row before yields its draft; with draft_probs the rejection rule of
    Leviathan et al., arXiv 2211.17192, section 2.3."""
    rows, drafts = _rows(logits, first_row), _padded(drafts)
    q, width = rows.shape[1:]
    best, finite = _best(rows)
    sampled = (_is_sampled(temperature)[:, None] & finite).flatten()
    seeds, temperature, top_k, top_p = (t.repeat_interleave(q) for t in (seeds, temperature, top_k, top_p))
    number = (lengths[:, None].long() + 1 + torch.arange(q, device=logits.device)).flatten()
    p = _distribution(rows.flatten(0, 1), sampled, temperature, top_k, top_p)
    draft = drafts.flatten()
    token = draw(p, uniform(seeds, number, TARGET))
    accepted = token == draft
    if draft_probs is not None:
        from_probs = torch.cat([draft_probs.double(), draft_probs.new_zeros(len(rows), 1, width).double()], 1)
        from_probs = from_probs.flatten(0, 1)
        known, at = (draft >= 0) & (draft < width), draft.clamp(0, width - 1)[:, None]
        p_draft, q_draft = p.gather(1, at)[:, 0], from_probs.gather(1, at)[:, 0]
        taken = known & (uniform(seeds, number, ACCEPT) * q_draft < p_draft)
        rest = p - from_probs
        rest = torch.where(rest > 0, rest, 0)
        rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p)
        judged = (torch.arange(q, device=logits.device) < num_drafts.clamp(max=q - 1)[:, None]).flatten()
        token = torch.where(judged, torch.where(taken, draft, draw(rest, uniform(seeds, number, RESIDUAL))), token)
        accepted = torch.where(judged, taken, accepted)
    greedy = ~sampled
    token = torch.where(greedy, best.flatten(), token)
    accepted = torch.where(greedy, token == draft, accepted)
    return _given(token.view(-1, q), accepted.view(-1, q), num_drafts, tokens, num_tokens)


def sample_tokens(logits: Tensor, seeds: Tensor, lengths: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, *,
                  tokens: Tensor | None = None, probs: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A draw from the distribution of each row, rounded to float32, and that distribution."""
    best, finite = _best(logits)
    sampled = _is_sampled(temperature) & finite
    p = _distribution(logits, sampled, temperature, top_k, top_p).float()
    token = draw(p.double(), uniform(seeds, lengths.long() + 1, DRAFT))
    token = torch.where(sampled, token, best)
    point = torch.zeros_like(p).scatter_(1, token.clamp(min=0)[:, None], 1.0).masked_fill_(~finite[:, None], 0)
    return _into(tokens, token), _into(probs, torch.where(sampled[:, None], p, point))


def filter_drafts(logits: Tensor, num_drafts: Tensor, hidden: Tensor, output: Tensor,
                  joint_before: Tensor | None = None, *, depth: int = 1, beta: float,
                  top: int = 1000) -> DraftScores:  # fmt: skip
    """Drops draft number `depth`, and those behind it, of sequences whose score is below beta (arXiv:2502.13652)."""
    finite, is_drafted = _best(logits)[1], num_drafts >= depth
    p = probabilities(logits.masked_fill(~(finite & is_drafted)[:, None], 0), 1.0)
    p = p.topk(min(top, p.shape[-1])).values
    joint = p[:, 0] if joint_before is None else p[:, 0] * joint_before.double()
    entropy = -torch.special.xlogy(p, p).sum(-1)
    features = torch.stack([joint, entropy, torch.full_like(joint, depth), torch.ones_like(joint)], -1)
    units = torch.cat([(features @ hidden.double().T).relu(), features[:, 3:]], -1)
    values = joint, entropy, (units @ output.double()).sigmoid()
    values = [v.masked_fill(~finite, torch.nan).masked_fill(~is_drafted, 0).float() for v in values]
    kept = values[2] >= torch.full_like(values[2], beta)
    num_drafts.masked_fill_(is_drafted & ~kept, depth - 1)
    return DraftScores(*values)


def probabilities(logits: Tensor, temperature: float | Tensor, top_k: int | Tensor = 0,
                  top_p: float | Tensor = 1.0) -> Tensor:  # fmt: skip
    """f64[B,V]: softmax of logits [B,V] / temperature, then the top_k largest, then the smallest set that holds top_p
    of the rest. Temperature and cuts: of all rows, or [B].

    Each cut renormalises before the next. Ties at the edge of top_k keep the lower id; top_k = 0 and top_p = 1 cut
    nothing.
    """
    wide = logits.double()
    temperature, top_k, top_p = (
        torch.as_tensor(value, dtype=dtype, device=wide.device).view(-1, 1)
        for value, dtype in ((temperature, wide.dtype), (top_k, torch.int64), (top_p, wide.dtype))
    )
    # From the maximum down, so that a tiny temperature gives zeros and not inf - inf.
    p = ((wide - wide.amax(-1, keepdim=True)) / temperature).softmax(-1)
    by_count, by_mass = (top_k > 0) & (top_k < p.shape[-1]), top_p < 1
    if p.is_cpu and not (by_count | by_mass).any():
        return p
    ordered, index = torch.sort(p, dim=-1, descending=True, stable=True)
    rank = torch.arange(p.shape[-1], device=p.device)
    ordered = torch.where(by_count & (rank >= top_k), 0, ordered)
    ordered = torch.where(by_count, ordered / ordered.sum(-1, keepdim=True), ordered)
    before = ordered.cumsum(-1) - ordered  # the mass above each token; the first is always kept
    ordered = torch.where(by_mass & (before >= top_p) & (rank > 0), 0, ordered)
    ordered = torch.where(by_mass, ordered / ordered.sum(-1, keepdim=True), ordered)
    return torch.zeros_like(p).scatter_(-1, index, ordered)


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """i64[B]: inverse-CDF draw from unnormalised weights [B,V] with uniform [B] in [0,1); never a token of weight 0."""
    cdf = weights.cumsum(-1)
    token = torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None], right=True)[:, 0]
    # Rounding may push past the last possible token.
    last = weights.shape[-1] - 1 - (weights > 0).flip(-1).long().argmax(-1)
    return torch.minimum(token, last)


def uniform(seeds: Tensor, number: Tensor, purpose: int) -> Tensor:
    """f64[N] in [0,1), of 53 bits: that of each seed i64[N] for token number i64[N] and this purpose."""
    zero = torch.zeros_like(number)
    counter = torch.stack([number & _WORD, zero + purpose, zero, zero], -1)
    first, second, *_ = philox(counter, torch.stack([seeds & _WORD, (seeds >> 32) & _WORD], -1)).unbind(-1)
    return ((first >> 5) * 2**26 + (second >> 6)).double() * 2.0**-53


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """i64[...,4]: Philox4x32-10 of counter i64[...,4] and key i64[...,2], words below 2^32. Salmon et al., "Parallel
    random numbers: as easy as 1, 2, 3", SC'11."""
    a, b, c, d = counter.unbind(-1)
    low, high = key.unbind(-1)
    for _ in range(10):
        # NOTE: products of 64 bits wrap as signed numbers, and so have the bits of unsigned ones; & undoes the sign.
        first, second = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (
            ((second >> 32) & _WORD) ^ b ^ low,
            second & _WORD,
            ((first >> 32) & _WORD) ^ d ^ high,
            first & _WORD,
        )
        low, high = (low + 0x9E3779B9) & _WORD, (high + 0xBB67AE85) & _WORD
    return torch.stack([a, b, c, d], -1)


def _rows(logits: Tensor, first_row: Tensor | None) -> Tensor:
    """The rows [B,q,V] of each sequence; NaN where logits [B,q,V], packed, has no such row."""
    if first_row is None:
        return logits
    packed = logits.flatten(0, 1)
    at = first_row[:, None].long() + torch.arange(logits.shape[1], device=logits.device)
    known = (at >= 0) & (at < len(packed))
    return packed[at.where(known, 0)].masked_fill_(~known[..., None], torch.nan)


def _best(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(argmax of each row, -1 of one that is not finite; whether it is)."""
    finite = rows.amax(-1).isfinite()
    return rows.argmax(-1).masked_fill(~finite, -1), finite


def _is_sampled(temperature: Tensor) -> Tensor:
    return (temperature > 0) & temperature.isfinite()


def _distribution(rows: Tensor, sampled: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """`probabilities` of the sampled rows [N,V]; of others, those of equal logits."""
    rows = rows.masked_fill(~sampled[:, None], 0)
    return probabilities(rows, temperature.where(sampled, 1), top_k.where(sampled, 0), top_p.where(sampled, 1))


def _padded(drafts: Tensor) -> Tensor:
    """drafts [B,q-1] and a column that no token equals."""
    return torch.cat([drafts, drafts.new_full((len(drafts), 1), -2)], 1)


def _given(token: Tensor, accepted: Tensor, num_drafts: Tensor, tokens: Tensor | None,
           num_tokens: Tensor | None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The tokens [B,q] up to the first that is no accepted draft, and how many; -1 behind them."""
    place = torch.arange(token.shape[1], device=token.device)
    on = accepted & (token >= 0) & (place < num_drafts[:, None])
    count = (1 + on.long().cumprod(1).sum(1)).where(num_drafts >= 0, 0)
    token = token.masked_fill(place >= count[:, None], -1)
    return _into(tokens, token), _into(num_tokens, count.int())


def _into(out: Tensor | None, value: Tensor) -> Tensor:
    return value if out is None else out.copy_(value)

"""Tokens from logits, chosen where the logits lie, so that a decode step reads nothing on the host.

B sequences have q rows of logits each in a step: the newest token's, then those of up to q - 1 drafts. lengths[b] rows
of a sequence's cache are valid. Its newest token is number lengths[b] of its text, counted from 0, and not in the cache
yet. So row j yields token number lengths[b] + 1 + j.

Random numbers are Philox4x32-10 (Salmon et al., SC'11) of a sequence's seed, the token's number and what the number
decides. Sums are in float64, in an order that V alone fixes: of ids on a CPU, in a tree on a GPU. So what a row yields
depends on the row, on its sequence's arguments and on its token's number alone: not on batch, q, packing or threads. A
row that holds a NaN, or whose largest logit is infinite, yields -1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import DraftScores
from .calling import kernel, public

_verify_greedy = kernel("verify_greedy")
_verify_sampled = kernel("verify_sampled")
_sample_tokens = kernel("sample_tokens")
_filter_drafts = kernel("filter_drafts")


def _outputs(logits: Tensor, tokens: Tensor | None, num_tokens: Tensor | None) -> tuple[Tensor, Tensor]:
    if tokens is None:
        tokens = torch.empty(logits.shape[:2], dtype=torch.int64, device=logits.device)
    if num_tokens is None:
        num_tokens = torch.empty(logits.shape[:1], dtype=torch.int32, device=logits.device)
    return tokens, num_tokens


@public
def verify_greedy(logits: Tensor, drafts: Tensor, num_drafts: Tensor, first_row: Tensor | None = None, *,
                  tokens: Tensor | None = None, num_tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The argmax of each row of a sequence, of ties the lowest id, as long as the row before yields its draft.

    Row j yields tokens[b, j]; row j + 1 follows if j < num_drafts[b] and that token is drafts[b, j]. A row that is not
    finite yields -1 and ends its sequence; that token counts. No row behind the last token is read.

    Args:
        logits: f32 [B, q, V], contiguous; q and V at least 1. B may be 0.
        drafts: i64 [B, q - 1]; last stride 1, rows any distance apart.
        num_drafts: i32 [B]; more than q - 1 counts as q - 1. Negative: an idle sequence, whose rows are not read and
            which yields nothing.
        first_row: i32 [B], for rows that are packed: row j of sequence b is row first_row[b] + j of logits as
            [B q, V], b q + j without it. A row outside counts as one that is not finite.
        tokens, num_tokens: outputs to write; tokens with a last stride of 1, rows any distance apart.

    Returns:
        (tokens i64 [B, q], -1 behind those that a sequence has; num_tokens i32 [B], how many it has: 0 of an idle one,
            else 1 and its accepted drafts).

    Raises:
        LongcatShapeError: the arguments do not fit each other.
    """
    tokens, num_tokens = _outputs(logits, tokens, num_tokens)
    _verify_greedy(logits, drafts, num_drafts, first_row, tokens, num_tokens)
    return tokens, num_tokens


@public
def verify_sampled(logits: Tensor, drafts: Tensor, num_drafts: Tensor, seeds: Tensor, lengths: Tensor,
                   temperature: Tensor, top_k: Tensor, top_p: Tensor, draft_probs: Tensor | None = None,
                   first_row: Tensor | None = None, *, tokens: Tensor | None = None,
                   num_tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A draw from the distribution p of each row, as long as the row before yields its draft; `verify_greedy` with
    random numbers.

    p is softmax(row / temperature) in float64, cut to its top_k largest, then to the fewest tokens of p's order that
    hold top_p of the rest; of ties the lower id counts as larger. A draw is the first id at which the running sum of p
    exceeds a uniform number of 53 bits: Philox4x32-10 of the seed, of the token's number in its text (lengths[b] + 1 +
    j for row j), and of what the number decides.

    Without draft_probs drafts are an argmax: row j draws its token whether or not there is a draft, so a text is the
    same bit for bit plain, speculative and in any batch. With draft_probs, row j accepts draft d with min(1, p(d) /
    q(d)), q being draft_probs[b, j], and else draws from (p - q)+ and ends its sequence (Leviathan et al.,
    arXiv:2211.17192, section 2.3); the row behind the last draft draws from p. So each token is distributed as p.

    Args:
        logits, drafts, num_drafts: as in `verify_greedy`.
        seeds: i64 [B]. lengths: i32 [B], valid rows of each cache.
        temperature: f32 [B]; a sequence whose temperature is not positive and finite is greedy.
        top_k: i32 [B]; 0 or less, and V or more, cut nothing. top_p: f32 [B]; 1 or more cuts nothing, and the likeliest
            token always stays.
        draft_probs: f32 [B, q - 1, V], that the drafts were drawn from, as `sample_tokens` returns them; last stride 1.
        first_row, tokens, num_tokens: as in `verify_greedy`; draft_probs and drafts are not packed.

    Returns:
        (tokens i64 [B, q], num_tokens i32 [B]), as `verify_greedy` does.

    Raises:
        LongcatShapeError: the arguments do not fit each other.
    """
    tokens, num_tokens = _outputs(logits, tokens, num_tokens)
    _verify_sampled(logits, drafts, num_drafts, seeds, lengths, temperature, top_k, top_p, draft_probs, first_row,
                    tokens, num_tokens)  # fmt: skip
    return tokens, num_tokens


@public
def sample_tokens(logits: Tensor, seeds: Tensor, lengths: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, *,
                  tokens: Tensor | None = None, probs: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A draft of each sequence and the distribution that it was drawn from, for `verify_sampled`.

    Draws token number lengths[b] + 1 from p of `verify_sampled`, rounded to float32; for the draft behind i others,
    pass lengths + i. Greedy: the argmax, of probability 1. A row that is not finite: token -1, probabilities 0.

    Args:
        logits: f32 [B, V], V at least 1; last stride 1, rows any distance apart. B may be 0.
        seeds, lengths, temperature, top_k, top_p: as in `verify_sampled`.
        tokens: i64 [B] of any stride, to write. probs: f32 [B, V] with a last stride of 1, to write.

    Returns:
        (tokens i64 [B], probs f32 [B, V]).

    Raises:
        LongcatShapeError: the arguments do not fit each other.
    """
    if tokens is None:
        tokens = torch.empty(logits.shape[:1], dtype=torch.int64, device=logits.device)
    if probs is None:
        probs = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    _sample_tokens(logits, seeds, lengths, temperature, top_k, top_p, tokens, probs)
    return tokens, probs


@public
def filter_drafts(logits: Tensor, num_drafts: Tensor, hidden: Tensor, output: Tensor,
                  joint_before: Tensor | None = None, *, depth: int = 1, beta: float,
                  top: int = 1000) -> DraftScores:  # fmt: skip
    """Drops drafts that are not worth verifying, by a classifier of two layers (C2T, arXiv:2502.13652): draft number
    `depth` of each sequence, and those behind it, unless its score is at least beta.

    p is softmax(row) in float64. joint is joint_before times the largest p; entropy is the sum of -p ln p over the
    `top` largest p, which are not renormalised. The score is sigmoid(output[H] + sum over u of output[u] relu(h[u])),
    where h[u] = hidden[u] . (joint, entropy, depth, 1), in float64. Results are rounded to float32, and beta is
    compared with the rounded score, as float32.

    No draft is looked at, only the row that it came from. For a draft by argmax the largest p is its probability. A
    draft that was drawn must not decide whether it is verified: dropping it by its own probability would bias the
    distribution that the rejection rule of `verify_sampled` promises.

    Args:
        logits: f32 [B, V] of the head that chose draft number `depth`, V at least 1; last stride 1, rows any distance
            apart. B may be 0.
        num_drafts: i32 [B] contiguous; written: depth - 1 where the draft is dropped. A sequence with fewer than depth
            drafts stays as it is, and its row is not read.
        hidden: f32 [H, 4] contiguous, H 1 .. 256: of each hidden unit the weights of joint, entropy and depth, and its
            bias. output: f32 [H + 1] contiguous: the weights of the hidden units, then a bias.
        joint_before: f32 [B] contiguous: the probability of the drafts before this one, 1 if not given.
        depth: 1 .. 2^31 - 1, the number of the draft, counted from 1. beta: a finite float32; 0 keeps every draft of a
            finite score, more than 1 none.
        top: at least 1; V or more takes the whole row.

    Returns:
        DraftScores (joint, entropy, score), each f32 [B]: 0 of a sequence without such a draft. A row that is not
            finite has NaN, and its draft is dropped.

    Raises:
        LongcatShapeError: the arguments do not fit each other, or depth, beta or top is another value.
    """
    joint, entropy, score = (torch.empty(logits.shape[:1], dtype=torch.float32, device=logits.device) for _ in range(3))
    _filter_drafts(logits, hidden, output, joint_before, depth, beta, top, num_drafts, joint, entropy, score)
    return DraftScores(joint, entropy, score)

"""One step of a decode, for all sequences at once: the target over newest tokens and drafts, verification, the MTP
head, the next drafts, and the bookkeeping between them. Its state is tensors on the device, and it reads nothing on the
host: the same code runs eagerly and captured (engine/step_graph.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..model import LatentCache, LongcatFlashForCausalLM
from ..model.products import ops_for
from ..model.rows import Rows, by_row
from .c2t import DraftFilter
from .observer import Work

ALL = slice(None)
TINY, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max

Around = Callable[[Work, int], AbstractContextManager[object]]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; temperature 0 is greedy."""

    temperature: float
    top_k: int
    top_p: float
    draft_is_sampled: bool  # else the draft is the argmax of the MTP head


class Tokens(NamedTuple):
    """What a step has chosen for its B sequences, up to q tokens each. Each token but the last of num_tokens is a draft
    that was accepted."""

    tokens: Tensor  # i64[B,q]; -1: not chosen, or the logits were not finite
    num_tokens: Tensor  # i32[B], chosen; 0 for an idle sequence
    kept: Tensor  # i32[B], those that belong to the text: up to the first stop id and to the limit
    first_row: Tensor  # i32[B]: the row of the target pass behind the first token; the next ones follow
    logits: Tensor  # f32[B*q,V], by row
    by_layer: list[Tensor]  # u8[B*q]: FFN experts of each row

    @property
    def num_real(self) -> Tensor:
        """u8[B*q,layers]: FFN experts of each row."""
        return by_row(self.by_layer, self.logits)


def in_float32(temperature: float) -> float:
    """Beyond float32 a temperature would be 0 or inf, which mean greedy."""
    return min(max(temperature, TINY), LARGEST) if temperature else 0.0


class DecodeStep:
    """The step function of `cache`'s sequences, and their state.

    inputs i64[B,q]: the newest token, not in the cache yet, then up to q - 1 drafts. num_drafts i32[B]: how many there
    are; -1: the sequence is idle. limits i32[B]: tokens that the text may have. seeds i64[B]. Sequence b joins by
    `begin` and becomes idle by itself, at a stop id or at its limit. Of a model of several ranks, all construct one
    together, and all run each step.
    """

    def __init__(self, model: LongcatFlashForCausalLM, cache: LatentCache, sampling: Sampling, seeds: list[int],
                 limits: list[int], stop_ids: Iterable[int], *, speculative: bool, around: Around,
                 draft_filter: DraftFilter | None = None) -> None:  # fmt: skip
        batch, device, vocab = cache.batch_size, model.device, model.config.vocab_size
        self.model, self.cache, self.around = model, cache, around
        self.speculative, self.greedy = speculative, sampling.temperature == 0
        self.live_rows = self.live = 0  # what the host knows of the next step, for observers

        def integers(values: list[int], dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        self.inputs = integers([[-1] * (1 + speculative)] * batch, torch.int64)
        self.num_drafts, self.limits = integers([-1] * batch), integers(limits)
        self.seeds, self.stop_ids = integers(seeds, torch.int64), integers(sorted(stop_ids), torch.int64)
        numbers = in_float32(sampling.temperature), sampling.top_p
        self.temperature, self.top_p = (torch.full((batch,), v, device=device) for v in numbers)
        self.top_k = integers([min(sampling.top_k, vocab)] * batch)
        sampled = speculative and sampling.draft_is_sampled
        self.draft_probs = torch.zeros((batch, 1, vocab), device=device) if sampled else None
        self.filter = draft_filter if speculative else None
        self._classifier = None if self.filter is None else self.filter.tensors(device)
        self.lengths = cache.lengths
        self._rope, self._errors = model.rope(cache), integers([0])
        # Ranks of one model make a step together, so its passes need no turn.
        ranks = model.parallel
        self._tokens, self._newest = (ranks and ranks.agreed_rows(n) for n in (self.inputs.numel(), batch))
        self._ops = ops_for(model.dtype)

    def first(self, count: int, *, greedy: bool) -> DecodeStep:
        """The step of the first `count` sequences alone, which shares their state. greedy: whatever their temperature
        is; else one of 0 is."""
        part = copy.copy(self)
        part.greedy = greedy
        for name in ("inputs", "num_drafts", "limits", "seeds", "temperature", "top_p", "top_k", "lengths"):
            setattr(part, name, getattr(self, name)[:count])
        if self.draft_probs is not None:
            part.draft_probs = self.draft_probs[:count]
        return part

    def __call__(self) -> Tokens:
        """Run one step."""
        operators, cache, model = self._ops, self.cache, self.model
        packed = operators.pack_rows(
            self.inputs, self.num_drafts, self.lengths, copies=model.config.num_attention_heads
        )
        where = packed.sequence, packed.position, packed.num_rows
        rows = Rows(cache, *where, self._rope, self._errors, tokens=self._tokens)
        with self.around(Work.TARGET, self.live_rows):
            target = model.decode_rows(packed.ids, rows)
        with self.around(Work.SAMPLING, self.live_rows):
            tokens, num_tokens = self._choose(target.logits.view(*self.inputs.shape, -1), ALL, packed.first_row)
        if self.speculative:
            following = operators.pack_rows(tokens, self.num_drafts, self.lengths).ids
        kept, last_row = self._advance(tokens, num_tokens, packed.first_row, ALL)
        if self.speculative:
            with self.around(Work.DRAFT, self.live_rows):
                hidden = model.draft_rows(following, target.hidden, rows)
                logits = model.head(operators.embed_rows(hidden, last_row), tokens=self._newest)
            with self.around(Work.SAMPLING, self.live):
                self.draft(logits)
        return Tokens(tokens, num_tokens, kept, packed.first_row, target.logits, target.by_layer)

    def begin(self, sequence: int, length: int, logits: Tensor) -> Tokens:
        """Choose the first token of a sequence from logits [1,V] behind its prompt of `length` tokens, whose rows are
        in the cache. Its draft, if any, is the caller's to choose, by `draft`.
        """
        one, q = slice(sequence, sequence + 1), self.inputs.shape[1]
        self.cache.truncate(sequence, length - 1)  # the last token of the prompt is the newest one
        self.num_drafts[one] = 0
        first_row = torch.zeros_like(self.num_drafts[one])
        with self.around(Work.SAMPLING, 1):
            tokens, num_tokens = self._choose(logits.expand(q, -1)[None].contiguous(), one, first_row)
        kept, _ = self._advance(tokens, num_tokens, first_row, one)
        return Tokens(tokens, num_tokens, kept, first_row, logits, [])

    def draft(self, logits: Tensor, which: slice = ALL) -> None:
        """Choose the drafts of the sequences `which` from logits [n,V] of the MTP head, and whether they are verified:
        num_drafts says so."""
        drafts = self.inputs[which, 1:]
        if self.draft_probs is None:
            self._ops.verify_greedy(logits[:, None], drafts[:, :0], self.num_drafts[which], tokens=drafts)
        else:
            self._ops.sample_tokens(
                logits, *self._numbers(which), tokens=drafts[:, 0], probs=self.draft_probs[which, 0]
            )
        if self.filter is not None:
            beta, top = self.filter.beta, self.filter.top
            self._ops.filter_drafts(logits, self.num_drafts[which], *self._classifier, beta=beta, top=top)

    def _choose(self, logits: Tensor, which: slice, first_row: Tensor) -> tuple[Tensor, Tensor]:
        """(tokens, num_tokens) from logits [n,q,V], rows packed."""
        drafts, counts = self.inputs[which, 1:], self.num_drafts[which]
        if self.greedy:
            return self._ops.verify_greedy(logits, drafts, counts, first_row)
        probs = None if self.draft_probs is None else self.draft_probs[which]
        return self._ops.verify_sampled(logits, drafts, counts, *self._numbers(which), probs, first_row)

    def _numbers(self, which: slice) -> tuple[Tensor, ...]:
        own = self.seeds, self.lengths, self.temperature, self.top_k, self.top_p
        return tuple(t[which] for t in own)

    def _advance(self, tokens: Tensor, num_tokens: Tensor, first_row: Tensor, which: slice) -> tuple[Tensor, Tensor]:
        return self._ops.advance_lengths(
            tokens, num_tokens, first_row, self.limits[which], self.stop_ids, self.lengths[which],
            self.num_drafts[which], self.inputs[which, 0],
        )  # fmt: skip

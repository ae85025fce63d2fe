"""Decoding: greedy or sampled, plain or speculative with the MTP head, for ragged batches."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import LongcatError
from ..model import LatentCache, LongcatFlashForCausalLM
from ..model.block import in_own_dtypes
from ..model.checks import require
from ..model.model import Step
from . import sampling
from .checks import check_prompts, check_sampling, check_stop_ids, check_switches
from .observer import Observer, Unobserved, Work

OnToken = Callable[[int, int, bool], object]


@dataclass
class Generation:
    """What `generate` produced, one entry per sequence.

    sequences: 1-D int64, prompt + new tokens, the EOS included. steps: target passes after the prompt's. drafted,
    accepted: draft tokens verified, and those taken. num_real: u8[new, layers], FFN experts that the pass behind each
    new token used.
    """

    sequences: list[Tensor]
    steps: list[int]
    accepted: list[int]
    drafted: list[int]
    num_real: list[Tensor]


@dataclass
class _Sequence:
    """One request: `length` cache rows are valid, `token` is the newest token and not in the cache yet."""

    index: int
    ids: list[int]
    limit: int
    generator: torch.Generator
    token: int = -1
    draft: int | None = None
    draft_q: Tensor | None = None  # f64[V]: what the draft was drawn from, for draft="sampled"
    steps: int = 0
    accepted: int = 0
    drafted: int = 0
    done: bool = False
    num_real: list[Tensor] = field(default_factory=list)

    def uniform(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator, dtype=torch.float64)


def generate(
    model: LongcatFlashForCausalLM,
    input_ids: Tensor | Sequence[Tensor],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    speculative: bool = True,
    draft: str = "argmax",
    seed: int | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    on_token: OnToken | None = None,
    observer: Observer | None = None,
) -> Generation:
    """Continue each prompt by up to `max_new_tokens` tokens.

    Speculation drafts one token a step with the MTP head and verifies it beside the newest token. It is lossless:
    greedy ids equal plain greedy ids, sampled tokens follow the target's distribution; rejected rows are rolled back
    without copying.

    Args:
        input_ids: i64[B,S], or a list of 1-D int64 prompts of any lengths >= 1.
        temperature: 0 is greedy (ties to the lowest id). top_k: 0 is off. top_p: 1 is off. Order: temperature, top_k,
            top_p.
        draft: "argmax" (accepted with the target's probability of it) or "sampled" (drawn from the head's own
            distribution).
        seed: of the random streams, one per sequence, so that a prompt's draws do not depend on its batch; None: a
            fresh seed.
        eos_token_id: an id, or several: any of them ends a sequence. None: those of the checkpoint (config.json and
            generation_config.json); -1: never stop. on_token(sequence, token, from_draft): called for each new
            token.
        observer: called around each pass and each choice of a token (engine/observer.py); None: no observer.

    Returns: Generation. A model without an MTP head decodes plainly.
    Raises: LongcatShapeError for an empty prompt, ids out of range, a prompt plus max_new_tokens beyond
        max_position_embeddings, an argument out of range or no stop id; LongcatError when logits are not finite.
    """
    legal = isinstance(model, LongcatFlashForCausalLM) and model.device.type != "meta"
    require(legal, "generate", "model", type(model).__name__, "a LongcatFlashForCausalLM with weights")
    prompts = check_prompts(model.config, input_ids, max_new_tokens, model.device)
    check_sampling(temperature, top_k, top_p, draft, seed)
    check_switches(speculative, on_token, observer)
    max_new_tokens, seed = int(max_new_tokens), secrets.randbits(62) if seed is None else int(seed)
    observer = Unobserved() if observer is None else observer
    cuts = (float(temperature), int(top_k), float(top_p))
    run = _Run(model, cuts, speculative, draft, eos_token_id, on_token, observer)
    sequences = [
        _Sequence(
            b,
            p.tolist(),
            max_new_tokens,
            torch.Generator().manual_seed((seed * 0x9E3779B1 + b) % 2**63),
            done=max_new_tokens == 0,
        )
        for b, p in enumerate(prompts)
    ]
    if max_new_tokens > 0:
        longest = max(map(len, prompts))
        run.decode(sequences, model.new_cache(len(prompts), longest + max_new_tokens + 1))
    layers = model.config.num_layers
    return Generation(
        [torch.tensor(s.ids, dtype=torch.int64) for s in sequences],
        [s.steps for s in sequences],
        [s.accepted for s in sequences],
        [s.drafted for s in sequences],
        [torch.stack(s.num_real) if s.num_real else torch.zeros((0, layers), dtype=torch.uint8) for s in sequences],
    )


class _Run:
    """The settings of one `generate` call and its two loops."""

    def __init__(
        self,
        model: LongcatFlashForCausalLM,
        cuts: tuple[float, int, float],  # temperature, top_k, top_p
        speculative: bool,
        draft: str,
        eos_token_id: int | Sequence[int] | None,
        on_token: OnToken | None,
        observer: Observer,
    ) -> None:
        self.model, self.device, self.on_token, self.around = model, model.device, on_token, observer.around
        self.temperature, self.cuts = cuts[0], cuts
        self.speculative = speculative and model.mtp is not None
        self.sampled_draft = draft == "sampled" and self.temperature > 0
        self.stop_ids = check_stop_ids(model.config, eos_token_id)

    @torch.inference_mode()
    @in_own_dtypes
    def decode(self, sequences: list[_Sequence], cache: LatentCache) -> None:
        self.model.follow_weights()
        for s in sequences:
            self._prefill(s, cache)
        while live := [s for s in sequences if not s.done]:
            self._step(live, cache)

    def _prefill(self, s: _Sequence, cache: LatentCache) -> None:
        ids = torch.tensor(s.ids, dtype=torch.int64)
        with self.around(Work.PROMPT, len(ids)):
            step = self.model.prefill(cache, s.index, ids, last_only=True)
        token = self._choose(s, step.logits[-1:])
        cache.truncate(s.index, len(ids))
        self._emit(s, token, step.num_real[-1], from_draft=False)
        if self.speculative and not s.done:
            next_ids = torch.cat([ids[1:], torch.tensor([token])])
            with self.around(Work.DRAFT_PROMPT, len(next_ids)):
                hidden = self.model.draft_prefill(cache, s.index, next_ids, step.hidden)
                logits = self.model.head(hidden[-1:])
            self._set_draft(s, logits)

    def _step(self, live: list[_Sequence], cache: LatentCache) -> None:
        """One target pass over the newest token of each live sequence and its draft, then one MTP pass over what was
        accepted.
        """
        owner, positions, ids, first = [], [], [], []
        for s in live:
            new = [s.token] if s.draft is None else [s.token, s.draft]
            first.append(len(ids))
            owner += [s.index] * len(new)
            positions += range(cache.lengths[s.index], cache.lengths[s.index] + len(new))
            ids += new
        with self.around(Work.TARGET, len(ids)):
            step = self.model.decode(cache, owner, positions, torch.tensor(ids))
        kept: list[int] = []  # rows whose token the target stands by: the MTP head must see these, and only these
        for s, at in zip(live, first, strict=True):
            s.steps += 1
            rows = self._accept(s, step, at)
            cache.truncate(s.index, cache.lengths[s.index] + rows)
            if not s.done:
                kept += range(at, at + rows)
        if self.speculative and kept:
            self._draft([s for s in live if not s.done], cache, step, kept, owner, positions)

    def _accept(self, s: _Sequence, step: Step, at: int) -> int:
        """Emit the tokens that rows at, at+1 yield; returns how many of the rows stay in the cache."""
        if s.draft is None:
            self._emit(s, self._choose(s, step.logits[at : at + 1]), step.num_real[at], from_draft=False)
            return 1
        s.drafted += 1
        taken, token = self._verify(s, step.logits[at : at + 1])
        s.accepted += taken
        self._emit(s, token, step.num_real[at], from_draft=taken)
        if not taken:
            return 1
        if not s.done:  # an EOS or the last token inside the draft ends here: the bonus token is not emitted
            self._emit(s, self._choose(s, step.logits[at + 1 : at + 2]), step.num_real[at + 1], from_draft=False)
        return 2

    def _draft(
        self,
        live: list[_Sequence],
        cache: LatentCache,
        step: Step,
        kept: list[int],
        owner: list[int],
        positions: list[int],
    ) -> None:
        following = {s.index: s.ids for s in live}
        owners, places = [owner[i] for i in kept], [positions[i] for i in kept]
        next_ids = torch.tensor([following[b][at + 1] for b, at in zip(owners, places, strict=True)])
        last = {b: row for row, b in enumerate(owners)}
        with self.around(Work.DRAFT, len(kept)):
            hidden = self.model.draft_decode(cache, owners, places, next_ids, step.hidden[kept])
            newest = hidden[[last[s.index] for s in live]]
            logits = self.model.head(newest)
        for i, s in enumerate(live):
            self._set_draft(s, logits[i : i + 1])

    def _set_draft(self, s: _Sequence, logits: Tensor) -> None:
        if len(s.num_real) + 1 >= s.limit:  # one token is left: the target's next pass yields it without a draft
            s.draft = None
            return
        with self.around(Work.SAMPLING, 1):
            if self.sampled_draft:
                s.draft_q = sampling.probabilities(logits, *self.cuts)
                s.draft = int(sampling.draw(s.draft_q, s.uniform(1)))
            else:
                s.draft = int(logits.argmax(-1))

    def _choose(self, s: _Sequence, logits: Tensor) -> int:
        """The target's next token from logits [1,V]."""
        with self.around(Work.SAMPLING, 1):
            self._check_finite(s, logits)
            if self.temperature == 0:
                return int(logits.argmax(-1))  # the first of equal maxima
            return int(sampling.draw(sampling.probabilities(logits, *self.cuts), s.uniform(1)))

    def _verify(self, s: _Sequence, logits: Tensor) -> tuple[bool, int]:
        """(draft taken, token) from the target's logits [1,V] at the draft's place."""
        with self.around(Work.SAMPLING, 1):
            self._check_finite(s, logits)
            if self.temperature == 0:
                token = int(logits.argmax(-1))
                return token == s.draft, token
            p = sampling.probabilities(logits, *self.cuts)
            taken, token = sampling.verify(p, torch.tensor([s.draft]), s.draft_q, s.uniform(2)[None])
            return bool(taken), int(token)

    def _emit(self, s: _Sequence, token: int, num_real: Tensor, *, from_draft: bool) -> None:
        s.ids.append(token)
        s.num_real.append(num_real)
        s.token = token
        s.done = token in self.stop_ids or len(s.num_real) >= s.limit
        if self.on_token is not None:
            self.on_token(s.index, token, from_draft)

    def _check_finite(self, s: _Sequence, logits: Tensor) -> None:
        if not torch.isfinite(logits.max()):
            raise LongcatError(
                f"generate: the logits of sequence {s.index} at token {len(s.ids)} are not finite "
                f"(max {float(logits.max())}); the weights or the precision policy overflow."
            )

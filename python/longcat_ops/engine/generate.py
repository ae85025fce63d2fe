"""Decoding: greedy or sampled, plain or speculative with the MTP head, for ragged batches."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import LongcatError, LongcatUnsupportedError, message
from ..model import LatentCache, LongcatFlashForCausalLM
from ..model.block import in_own_dtypes
from ..model.checks import require
from .c2t import DraftFilter, check_draft_filter
from .checks import check_prompts, check_sampling, check_stop_ids, check_switches
from .observer import Observer, Unobserved, Work
from .step import DecodeStep, Sampling, Tokens
from .step_graph import StepGraph, capture, obstacle_to_capture

WORTH_CAPTURING = 16  # new tokens: to capture a step takes about as long as six of its eager runs

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
    """One request, as the host knows it."""

    index: int
    ids: list[int]
    done: bool = False
    num_drafts: int = 0  # of the next step
    steps: int = 0
    accepted: int = 0
    drafted: int = 0
    num_real: list[Tensor] = field(default_factory=list)


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
    graph: bool | None = None,
    draft_filter: DraftFilter | None = None,
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
        observer: called around each pass and each choice of tokens (engine/observer.py); None: no observer.
        graph: whether a step is captured once and then replayed (engine/step_graph.py), which changes no token. None:
            where it can be and pays.
        draft_filter: which drafts are verified (engine/c2t.py); None: all. It changes no token; with draft="sampled"
            others are drawn, of the same distribution.

    Of a model of several ranks, every rank calls it, with the same arguments but for its prompts: they are its own,
    none included, or those of its tp_group where its ranks have the same tokens.

    Returns: Generation. A model without an MTP head decodes plainly.
    Raises: LongcatShapeError for an empty prompt, ids out of range, a prompt plus max_new_tokens beyond
        max_position_embeddings, an argument out of range or no stop id; LongcatUnsupportedError for graph=True where
        a step cannot be captured; LongcatError when logits are not finite.
    """
    legal = isinstance(model, LongcatFlashForCausalLM) and model.device.type != "meta"
    require(legal, "generate", "model", type(model).__name__, "a LongcatFlashForCausalLM with weights")
    ranks = model.parallel
    prompts = check_prompts(model.config, input_ids, max_new_tokens, model.device, none=ranks is not None)
    check_sampling(temperature, top_k, top_p, draft, seed)
    check_switches(speculative, on_token, observer, graph)
    check_draft_filter("generate", draft_filter)
    if ranks is not None:  # others would compute other tokens, or make other passes
        given = [temperature, top_k, top_p, draft, seed, max_new_tokens, check_stop_ids(model.config, eos_token_id),
                 draft_filter]  # fmt: skip
        ranks.agreement.require_same("generate", "arguments", [bool(speculative), max_new_tokens > 0])
        ranks.require_same_tokens("arguments", [str(one) for one in given])
        ranks.require_same_tokens("input_ids", [p.tolist() for p in prompts])
    max_new_tokens, seed = int(max_new_tokens), secrets.randbits(62) if seed is None else int(seed)
    seed = seed if ranks is None else ranks.same_seed(seed)
    observer = Unobserved() if observer is None else observer
    sampling = Sampling(float(temperature), int(top_k), float(top_p), draft == "sampled" and temperature > 0)
    run = _Run(model, sampling, speculative, graph, eos_token_id, on_token, observer, draft_filter)
    sequences = [_Sequence(b, p.tolist(), done=max_new_tokens == 0) for b, p in enumerate(prompts)]
    if max_new_tokens > 0:
        batch = max(1, len(prompts))  # a rank without prompts has an idle sequence
        cache = model.new_cache(batch, max(map(len, prompts), default=0) + max_new_tokens + 1)
        seeds = [seed_of(seed, b) for b in range(batch)]
        run.decode(sequences, cache, seeds, max_new_tokens)
    layers = model.config.num_layers
    return Generation(
        [torch.tensor(s.ids, dtype=torch.int64) for s in sequences],
        [s.steps for s in sequences],
        [s.accepted for s in sequences],
        [s.drafted for s in sequences],
        [torch.stack(s.num_real) if s.num_real else torch.zeros((0, layers), dtype=torch.uint8) for s in sequences],
    )


class _Run:
    """The settings of one `generate` call, and its loops."""

    def __init__(
        self,
        model: LongcatFlashForCausalLM,
        sampling: Sampling,
        speculative: bool,
        graph: bool | None,
        eos_token_id: int | Sequence[int] | None,
        on_token: OnToken | None,
        observer: Observer,
        draft_filter: DraftFilter | None,
    ) -> None:
        self.model, self.device, self.parallel = model, model.device, model.parallel
        self.on_token, self.around = on_token, observer.around
        self.sampling, self.graph, self.draft_filter = sampling, graph, draft_filter
        self.speculative = speculative and model.mtp is not None
        self.stop_ids = check_stop_ids(model.config, eos_token_id)

    @torch.inference_mode()
    @in_own_dtypes
    def decode(self, sequences: list[_Sequence], cache: LatentCache, seeds: list[int], new: int) -> None:
        replays = self._replays(new)
        self.model.follow_weights()
        limits = [len(s.ids) + new for s in sequences] or [new]
        step = DecodeStep(
            self.model, cache, self.sampling, seeds, limits, self.stop_ids, speculative=self.speculative,
            around=self.around, draft_filter=self.draft_filter,
        )  # fmt: skip
        for s in sequences:
            cache.reserve(s.index, limits[s.index])
        for s in sequences:
            self._prefill(s, cache, step)
        if self.parallel is not None:
            self.parallel.rest()
        run = self._captured(step) if replays else step
        while self._any_live(live := [s for s in sequences if not s.done]):
            step.live, step.live_rows = len(live), sum(1 + s.num_drafts for s in live)
            self._read(run(), live, step)

    def _any_live(self, live: list[_Sequence]) -> bool:
        """Whether a step has something to do: on any rank of the model, since all make it together."""
        return bool(live) if self.parallel is None else self.parallel.any_left(len(live))

    def _replays(self, new: int) -> bool:
        """Whether steps are captured and replayed."""
        obstacle = obstacle_to_capture(self.model)
        if self.graph is None:
            # Hooks would be called once, while the step is captured.
            return obstacle is None and new >= WORTH_CAPTURING and not _has_hooks(self.model)
        if self.graph and obstacle is not None:
            raise LongcatUnsupportedError(message("generate", "graph", True, "None or False", context=obstacle))
        return self.graph

    def _captured(self, step: DecodeStep) -> Callable[[], Tokens]:
        """Runs `step`: first while it is captured, then its graph."""
        graph: StepGraph | None = None

        def run() -> Tokens:
            nonlocal graph
            with self.around(Work.STEP, step.live_rows):
                if graph is not None:
                    return graph.replay()
                step.around, around = Unobserved().around, step.around
                graph = capture(step, device=self.model.device)
                step.around = around
                return graph.outputs

        return run

    def _prefill(self, s: _Sequence, cache: LatentCache, step: DecodeStep) -> None:
        ids = torch.tensor(s.ids, dtype=torch.int64)
        with self.around(Work.PROMPT, len(ids)):
            prompt = self.model.prefill(cache, s.index, ids, last_only=True)
        first = step.begin(s.index, len(ids), prompt.logits[-1:])
        self._emit(s, first.tokens[0].tolist(), 1, 1, prompt.num_real[-1:], prompt.logits[-1:])
        s.done = int(step.num_drafts[s.index]) < 0
        if self.speculative and not s.done:
            next_ids = torch.cat([ids[1:], torch.tensor(s.ids[-1:])])
            with self.around(Work.DRAFT_PROMPT, len(next_ids)):
                hidden = self.model.draft_prefill(cache, s.index, next_ids, prompt.hidden)
                logits = self.model.head(hidden[-1:])
            with self.around(Work.SAMPLING, 1):
                step.draft(logits, slice(s.index, s.index + 1))
        s.num_drafts = int(step.num_drafts[s.index])

    def _read(self, made: Tokens, live: list[_Sequence], step: DecodeStep) -> None:
        """Hand out what a step has made; the only place where the host reads its results."""
        numbers = torch.stack([made.num_tokens, made.kept, made.first_row, step.num_drafts]).tolist()
        tokens, num_real = made.tokens.tolist(), made.num_real
        for s in live:
            num_tokens, kept, row, num_drafts = (values[s.index] for values in numbers)
            s.steps += 1
            s.drafted += s.num_drafts
            s.accepted += num_tokens - 1
            self._emit(s, tokens[s.index], num_tokens, kept, num_real[row:], made.logits[row:])
            s.num_drafts, s.done = num_drafts, num_drafts < 0

    def _emit(
        self, s: _Sequence, tokens: list[int], num_tokens: int, kept: int, num_real: Tensor, logits: Tensor
    ) -> None:
        for j, token in enumerate(tokens[:kept]):
            if token < 0:
                raise LongcatError(
                    f"generate: the logits of sequence {s.index} at token {len(s.ids)} are not finite "
                    f"(max {float(logits[j].max())}); the weights or the precision policy overflow."
                )
            s.ids.append(token)
            s.num_real.append(num_real[j])
            if self.on_token is not None:
                self.on_token(s.index, token, j < num_tokens - 1)


def seed_of(seed: int, sequence: int) -> int:
    """The seed of one sequence's random numbers."""
    return (seed * 0x9E3779B1 + sequence) % 2**63


def _has_hooks(model: torch.nn.Module) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

"""Measures a decode: time by part, speed without the prompt, use of experts, agreement of the MTP head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ..model import LongcatFlashForCausalLM
from ..model.stages import Stage, observed, serial
from .generate import Generation, generate
from .observer import Work

REST = "head and rest"
PARTS = ("attention", "dense FFN", "MoE", "MTP", REST)
PART_OF = {  # of a stage of a layer
    **dict.fromkeys(("attend_first", "project_second", "attend_second"), "attention"),
    **dict.fromkeys(("first_ffn", "second_ffn"), "dense FFN"),
    **dict.fromkeys(("route", "run_experts", "run_local_experts"), "MoE"),
    **dict.fromkeys(("send_rows", "receive_rows", "send_results", "receive_results"), "MoE"),
    "add": REST,
}


@dataclass(frozen=True)
class Timing:
    """Seconds of one `generate` call: prompt passes (target and MTP head), and all that follows the first new token."""

    prompt_seconds: float
    decode_seconds: float
    tokens: int  # new tokens of the decode: all but the first, which the prompt's pass yields

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.decode_seconds if self.tokens else None


@dataclass(frozen=True)
class ExpertUse:
    """FFN experts behind each new token, over tokens and layers. histogram[k]: how often k of top_k were."""

    top_k: int
    mean: float
    min: int
    max: int
    zero_share: float
    by_layer: list[float]
    histogram: list[int]


class _PromptClock:
    """An observer that times the passes over prompts; `inside` is true during one."""

    def __init__(self, model: LongcatFlashForCausalLM) -> None:
        self.model, self.seconds, self.inside = model, 0.0, False

    def around(self, work: Work, rows: int) -> AbstractContextManager[object]:
        return self._timed() if work in (Work.PROMPT, Work.DRAFT_PROMPT) else nullcontext()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start, self.inside = _now(self.model), True
        try:
            yield
        finally:
            self.inside = False
            self.seconds += _now(self.model) - start


def timed_generate(
    model: LongcatFlashForCausalLM, ids: Tensor, max_new_tokens: int, **options: Any
) -> tuple[Generation, Timing]:
    """`generate` for one prompt i64[n], and its times. Options are those of `generate`."""
    clock = _PromptClock(model)
    start = _now(model)
    result = generate(model, [ids], max_new_tokens, observer=clock, **options)
    seconds = _now(model) - start
    tokens = max(0, len(result.num_real[0]) - 1)
    return result, Timing(clock.seconds, max(seconds - clock.seconds, 1e-9), tokens)


def time_by_part(
    model: LongcatFlashForCausalLM, ids: Tensor, max_new_tokens: int, **options: Any
) -> tuple[dict[str, float], Timing]:
    """(seconds of the decode by part, its times), by the stages of layers; a run of its own, since that costs time.

    A norm counts to the stage that it ends. The MTP head counts as a whole; its logits are under "head and rest".
    """
    seconds = dict.fromkeys(PARTS, 0.0)
    clock = _PromptClock(model)
    with _timed(model, seconds, lambda: not clock.inside):
        start = _now(model)
        result = generate(model, [ids], max_new_tokens, observer=clock, **options | {"graph": False})
        total = _now(model) - start - clock.seconds
    seconds[REST] = max(0.0, total - sum(seconds.values()))
    return seconds, Timing(clock.seconds, max(total, 1e-9), max(0, len(result.num_real[0]) - 1))


class _WorkClock:
    """An observer that adds up the seconds of each kind of work and counts its passes."""

    def __init__(self, model: LongcatFlashForCausalLM) -> None:
        self.model, self.seconds, self.passes = model, Counter[Work](), Counter[Work]()

    @contextmanager
    def around(self, work: Work, rows: int) -> Iterator[None]:
        start = _now(self.model)
        yield
        self.seconds[work] += _now(self.model) - start
        self.passes[work] += 1

    def mean(self, work: Work) -> float:
        return self.seconds[work] / self.passes[work]


def draft_costs(model: LongcatFlashForCausalLM, prompts: Sequence[Tensor], new: int) -> tuple[float, float]:
    """(T_D / T_T, T_V / T_T) of `perf.speculation.speed_up`, for a batch of these prompts: seconds of the MTP head's
    pass, and of the target's with a draft a sequence, over the target's without. Greedy, `new` tokens each."""
    clocks = _WorkClock(model), _WorkClock(model)
    for speculative, clock in enumerate(clocks):
        generate(model, prompts, new, speculative=bool(speculative), observer=clock, eos_token_id=-1, graph=False)
    plain, drafting = clocks
    target = plain.mean(Work.TARGET)
    return drafting.mean(Work.DRAFT) / target, drafting.mean(Work.TARGET) / target


class _PartClock:
    """An observer of layers: the times of stages, and of the MTP head by hooks, go to their parts, while `counts`."""

    def __init__(self, model: LongcatFlashForCausalLM, seconds: dict[str, float], counts: Callable[[], bool]) -> None:
        self.model, self.seconds, self.counts = model, seconds, counts
        self.started: list[float] = []

    def layer(self, stages: Sequence[Stage]) -> AbstractContextManager[object]:
        return nullcontext()

    @contextmanager
    def stage(self, one: Stage) -> Iterator[None]:
        self.begin()
        yield
        self.end(PART_OF[one.name])

    def begin(self, *_: object) -> None:
        self.started.append(_now(self.model))

    def end(self, part: str) -> None:
        spent = _now(self.model) - self.started.pop()
        if self.counts() and part != REST:  # what is left of the whole
            self.seconds[part] += spent


@contextmanager
def _timed(model: LongcatFlashForCausalLM, seconds: dict[str, float], counts: Callable[[], bool]) -> Iterator[None]:
    """The times of stages and of the MTP head go to their parts in `seconds`, while `counts`."""
    clock = _PartClock(model, seconds, counts)
    execute_before, model.execute = model.execute, observed(serial, clock)
    handles = []
    if model.mtp is not None:
        handles.append(model.mtp.register_forward_pre_hook(clock.begin))
        handles.append(model.mtp.register_forward_hook(lambda *_: clock.end("MTP")))
    try:
        yield
    finally:
        model.execute = execute_before
        for handle in handles:
            handle.remove()


def _now(model: LongcatFlashForCausalLM) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return perf_counter()


def expert_use(num_real: Tensor, top_k: int) -> ExpertUse | None:
    """From `Generation.num_real` u8[new, layers]; None if there is no token or no layer."""
    if num_real.numel() == 0:
        return None
    counts = num_real.long()
    mean = float(counts.double().mean())
    return ExpertUse(
        top_k=top_k,
        mean=mean,
        min=int(counts.min()),
        max=int(counts.max()),
        zero_share=1 - mean / top_k,
        by_layer=counts.double().mean(0).tolist(),
        histogram=torch.bincount(counts.flatten(), minlength=top_k + 1).tolist(),
    )


@torch.inference_mode()
def teacher_forced_acceptance(model: LongcatFlashForCausalLM, ids: Tensor) -> tuple[int, int]:
    """(agreements, positions) over the text ids i64[n], by one prompt pass of the target and one of the MTP head.

    They agree at p if the head at row p, given the true token p + 1, and the target at row p + 1 name the same most
    likely token p + 2.
    """
    if model.mtp is None or len(ids) < 2:
        return 0, 0
    cache = model.new_cache(1, len(ids))
    step = model.prefill(cache, 0, ids)
    draft = model.draft_prefill(cache, 0, ids[1:], step.hidden[:-1])
    agree = model.head(draft).argmax(-1) == step.logits[1:].argmax(-1)
    if model.parallel is not None:
        model.parallel.rest()
    return int(agree.sum()), len(agree)

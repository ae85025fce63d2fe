"""Measures a decode: time by part, speed without the prompt, use of experts, agreement of the MTP head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from ..model import LongcatFlashForCausalLM
from .generate import Generation, generate
from .observer import Work

PARTS = ("attention", "dense FFN", "MoE", "MTP", "head and rest")


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
    """(seconds of the decode by part, its times), from hooks on the modules; a run of its own, as hooks cost time.

    The MTP head counts as a whole, with the attention and the FFN inside it; its logits are under "head and rest".
    """
    seconds = dict.fromkeys(PARTS, 0.0)
    clock = _PromptClock(model)
    with _part_hooks(model, seconds, lambda: not clock.inside):
        start = _now(model)
        result = generate(model, [ids], max_new_tokens, observer=clock, **options)
        total = _now(model) - start - clock.seconds
    seconds["head and rest"] = max(0.0, total - sum(seconds.values()))
    return seconds, Timing(clock.seconds, max(total, 1e-9), max(0, len(result.num_real[0]) - 1))


@contextmanager
def _part_hooks(
    model: LongcatFlashForCausalLM, seconds: dict[str, float], counts: Callable[[], bool]
) -> Iterator[None]:
    started: list[float] = []

    def before(*_: object) -> None:
        started.append(_now(model))

    def after(part: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            spent = _now(model) - started.pop()
            if counts():
                seconds[part] += spent

        return hook

    handles = []
    for module, part in _parts(model):
        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after(part))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parts(model: LongcatFlashForCausalLM) -> Iterator[tuple[nn.Module, str]]:
    for layer in model.layers:
        yield from ((module, "attention") for module in layer.self_attn)
        yield from ((module, "dense FFN") for module in layer.mlps)
        yield layer.mlp, "MoE"
    if model.mtp is not None:
        yield model.mtp, "MTP"


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
    return int(agree.sum()), len(agree)

"""Jobs of ranks: a network whose experts are shared out, beside one process that has all of it."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import longcat_ops
from longcat_ops import LongcatFlashForCausalLM
from longcat_ops.loading.checkpoint import CheckpointSource
from longcat_ops.loading.sizing import component
from longcat_ops.model.passes import Step
from longcat_ops.model.stages import AnyOrder, serial, threads
from longcat_ops.testing.op_results import bits
from support.comm_faults import attempt
from support.comm_pool import World

PROMPTS = [
    [5, 9, 12, 7],
    [3, 4, 5, 6, 7, 8, 9, 10, 11],
    [8],
    [20, 21],
    list(range(3, 40)),
    [9] * 5,
    [30, 2, 30],
    [1, 17, 4, 4],
]


def prompts(vocab: int) -> list[torch.Tensor]:
    return [torch.tensor([i % vocab for i in ids]) for ids in PROMPTS]


def mine(items: list[Any], rank: int, ranks: int) -> list[Any]:
    return items[rank::ranks]


def texts(world: World, ranks: int, backend: str, folder: str, precision: str, new: int) -> list[str]:
    """Greedy and sampled ids of this rank's prompts, plain and with drafts, and the logits of a decode pass."""
    wrong = []
    alone = LongcatFlashForCausalLM.from_pretrained(folder, precision=precision)
    model = LongcatFlashForCausalLM.from_pretrained(folder, precision=precision, ep_group=world.group(ranks))
    try:
        everyones = prompts(alone.config.vocab_size)
        own = mine(everyones, world.rank, ranks)
        held = model.layers[0].mlp.down
        wrong += ["experts"] * (len(held) != -(-alone.config.n_routed_experts // ranks))
        for options in ({}, {"speculative": False}):
            right = longcat_ops.generate(alone, everyones, new, eos_token_id=-1, **options)
            got = longcat_ops.generate(model, own, new, eos_token_id=-1, **options)
            same = bits(got.sequences) == bits(mine(right.sequences, world.rank, ranks))
            wrong += [f"texts {options}"] * (not same)
            wrong += [f"num_real {options}"] * (bits(got.num_real) != bits(mine(right.num_real, world.rank, ranks)))
        refused = attempt(lambda: longcat_ops.generate(model, own, 2, graph=True))["text"]
        wrong += [refused] * ("rows of experts travel by `torch`, which no graph can hold" not in refused)
        for execute in (serial, threads, AnyOrder(3)):
            model.execute = execute
            wrong += [f"logits {execute}"] * (_logits(model, own) != _logits(alone, own))
    finally:
        model.parallel.close()
    return wrong


def _logits(model: LongcatFlashForCausalLM, own: list[torch.Tensor]) -> Any:
    """Of a decode pass over this rank's sequences, behind the passes of their prompts."""
    step = decoded(model, own)
    return bits([step.logits, step.num_real])


def decoded(model: LongcatFlashForCausalLM, own: list[torch.Tensor]) -> Step:
    """A decode pass over this rank's sequences, behind the passes of their prompts; ranks wait for each other."""
    cache = model.new_cache(len(own), 64)
    with torch.inference_mode():
        for b, ids in enumerate(own):
            model.prefill(cache, b, ids)
            cache.lengths[b] = len(ids)
        step = model.decode(cache, list(range(len(own))), [len(ids) for ids in own], torch.tensor([2] * len(own)))
        if model.parallel is not None:
            model.parallel.rest()
    return step


def refused(world: World, ranks: int, backend: str, folders: list[str], **options: Any) -> dict[str, Any]:
    """What the constructor says, and whether a right one then works."""
    group = world.group(ranks)
    options = {name: value[world.rank] if isinstance(value, list) else value for name, value in options.items()}
    dtype = {"float32": torch.float32}.get(options.pop("dtype", ""))
    found = attempt(lambda: LongcatFlashForCausalLM.from_pretrained(
        folders[world.rank], ep_group=group, dtype=dtype, **options
    ))  # fmt: skip
    right = LongcatFlashForCausalLM.from_pretrained(Path(folders[0]), ep_group=group)
    found["works"] = len(longcat_ops.generate(right, [torch.tensor([5, 6])], 2).sequences[0])
    right.parallel.close()
    return found


def held(world: World, ranks: int, backend: str, folder: str, precision: str, tp: int = 1,
         form: str = "token") -> dict[str, Any]:  # fmt: skip
    """Bytes that this rank read from the files, and that its model holds, by component."""
    read: Counter[str] = Counter()
    real = CheckpointSource._read

    def counted(source: CheckpointSource, name: str, tensor: torch.Tensor) -> torch.Tensor:
        read[component(name)] += tensor.nbytes
        return real(source, name, tensor)

    CheckpointSource._read = counted
    try:
        model = LongcatFlashForCausalLM.from_pretrained(folder, precision=precision, **groups(world, ranks, tp, form))
    finally:
        CheckpointSource._read = real
    parts: Counter[str] = Counter()
    for name, buffer in model.named_buffers():
        parts[component(name)] += buffer.nbytes
    model.parallel.close()
    return {"read": dict(read), "parts": dict(parts)}


def groups(world: World, ranks: int, tp: int, form: str) -> dict[str, Any]:
    """Arguments of `from_pretrained`; a tp_group has one rank, which is none, or two."""
    return {"ep_group": world.group(ranks), "tp_group": world.pair() if tp == 2 else None, "tp_form": form}


def dies(world: World, ranks: int, backend: str, folder: str, dying: int, tp: int = 1) -> dict[str, Any]:
    """Rank `dying` is killed when it has its third token; what the others raise."""
    model = LongcatFlashForCausalLM.from_pretrained(folder, **groups(world, ranks, tp, "token"))
    tokens = []

    def on_token(*token: Any) -> None:
        tokens.append(token)
        if world.rank == dying and len(tokens) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    found = attempt(lambda: longcat_ops.generate(model, prompts(61)[:1], 16, eos_token_id=-1, on_token=on_token))
    model.parallel.close()
    return found

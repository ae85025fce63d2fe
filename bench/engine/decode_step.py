"""The decode step of one rank of EP128, with random weights and a random past: for benches and the GPU check."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from longcat_ops.engine.rank_alone import random_rank
from longcat_ops.engine.step import DecodeStep, Sampling
from longcat_ops.model.rows import Rows
from longcat_ops.perf.step import Shape

STEPS = 64  # that the cache has room for


class Problem:
    """A model, and a step of it at `shape`: every sequence has a draft and `context` rows in the cache."""

    def __init__(self, device: str, shape: Shape, layers: int, **sizes: int) -> None:
        torch.manual_seed(0)
        self.shape, self.model = shape, random_rank(device, layers, **sizes)
        longest = shape.context + STEPS * shape.rows
        self.cache = cache = self.model.new_cache(shape.sequences, longest)
        for slot in cache.rows:
            slot.normal_()
        for sequence in range(shape.sequences):
            cache.reserve(sequence, longest)
        self.step = DecodeStep(self.model, cache, Sampling(0.0, 0, 1.0, False), [0] * shape.sequences,
                               [longest] * shape.sequences, [], speculative=True,
                               around=lambda *_: nullcontext())  # fmt: skip
        self._ids = torch.randint(self.model.config.vocab_size, self.step.inputs.shape, device=device)
        self.reset()

    def reset(self) -> None:
        """The state before the first step."""
        self.step.inputs.copy_(self._ids)
        self.step.num_drafts.fill_(self.shape.rows - 1)
        self.cache.lengths.fill_(self.shape.context - 1)

    def parts(self) -> dict[str, Callable[[], object]]:
        """Calls of the first layer's parts, and of what follows the layers, by the names of perf.step.Prediction."""
        shape, model, layer = self.shape, self.model, self.model.layers[0]
        tokens, device = shape.sequences * shape.rows, model.device
        sequences = [b for b in range(shape.sequences) for _ in range(shape.rows)]
        positions = [shape.context - 1 + i for _ in range(shape.sequences) for i in range(shape.rows)]
        rows: Rows = model.rows(self.cache, sequences, positions)
        x = torch.randn(tokens, model.config.hidden_size, device=device).bfloat16()
        ids, drafts = self._ids.flatten(), self._ids[:, 1:]
        counts, first = self.step.num_drafts.clone(), torch.arange(0, tokens, shape.rows, device=device).int()

        def attention() -> Tensor:
            n, _ = layer.post_attention_layernorm[0].before(layer.self_attn[0].fp8, x, x)
            return layer.self_attn[0](n, rows)

        def ffn() -> Tensor:
            n, _ = layer.post_attention_layernorm[0].before(layer.mlps[0].fp8, x, x)
            return layer.mlps[0](n, rows)

        def moe() -> Tensor:
            some = replace(rows, num_real=[])
            return layer.mlp.experts(x, layer.mlp.route(x, some), some)

        def head() -> object:
            logits = model.head(x, rows.count).view(*self._ids.shape, -1)
            return self.step._ops.verify_greedy(logits, drafts, counts, first)

        def mtp() -> Tensor:
            hidden = model.draft_rows(ids, x, replace(rows, num_real=[]))
            return model.head(hidden[:: shape.rows].contiguous())

        return {
            "attention": attention,
            "ffn": ffn,
            "moe": moe,
            "layer": lambda: layer(x, replace(rows, num_real=[])),
            "head": head,
            "mtp": mtp,
        }

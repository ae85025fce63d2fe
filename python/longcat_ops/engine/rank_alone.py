"""One rank of a model whose experts lie on several, without the others: for measurements on one device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..comm import ExpertParallel
from ..model import LongcatFlashConfig, LongcatFlashForCausalLM
from ..model.precision import Precision
from ..model.source import RandomSource
from ..types import Routing

# The experts of a rank of EP128, all for each token: 4 rows, where such a rank gets 8 for each of its own tokens.
RANK = {"n_routed_experts": 4, "zero_expert_num": 2, "moe_topk": 6}


class DeviceSource(RandomSource):
    """A random source that draws on the model's device."""

    def __init__(self, dtype: torch.dtype, *, seed: int = 0, **options: Any) -> None:
        super().__init__(dtype, seed=seed, **options)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def fetch(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith("norm.weight") or ".m.weight" in name or "layernorm" in name:
            return torch.ones(shape, device=self.device)
        empty = torch.empty(shape, dtype=torch.bfloat16, device=self.device)
        return empty.normal_(0, self.std, generator=self.generator)


@torch.no_grad()
def random_rank(device: torch.device | str, layers: int, **sizes: Any) -> LongcatFlashForCausalLM:
    """Random FP8 weights at LongCat-Flash's widths, with the experts of RANK; sizes: fields of LongcatFlashConfig that
    differ. Not to be called in inference mode, where weights would count as written to at every pass.
    """
    config = LongcatFlashConfig(num_layers=layers, **RANK | sizes)
    source = DeviceSource(torch.bfloat16, std=0.02, device=device, precision=Precision("fp8"))
    return LongcatFlashForCausalLM(source, config)


class Alone:
    """Stands in layers where ranks stand (model/parallel.py): this one has all experts, and rows go nowhere."""

    def __init__(self, config: LongcatFlashConfig, max_tokens: int) -> None:
        self._sizes = {"num_ffn_experts": config.n_routed_experts, "top_k": config.moe_topk,
                       "hidden": config.hidden_size, "max_tokens": max_tokens}  # fmt: skip
        self._exchanges: dict[str, ExpertParallel] = {}

    def exchange(self, payload: str) -> ExpertParallel:
        """Dispatch and combine for layers of this payload."""
        if payload not in self._exchanges:
            self._exchanges[payload] = ExpertParallel(**self._sizes, payload=payload, backend="local")
        return self._exchanges[payload]

    def placed(self, routing: Routing, layer: int) -> Routing:
        """The routing as it is: experts are their own slots."""
        return routing


def join_alone(model: LongcatFlashForCausalLM, max_tokens: int) -> None:
    """Its layers run the stages of several ranks, of which it is the only one. `model` takes passes of up to max_tokens
    rows from then on.
    """
    alone: Any = Alone(model.config, max_tokens)
    for layer in model.layers:
        layer.mlp.join(alone)

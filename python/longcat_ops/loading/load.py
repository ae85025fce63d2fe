"""Loads a model, alone or as one of several ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import LongcatShapeError, LongcatUnsupportedError, message
from ..model.config import LongcatFlashConfig
from ..model.model import LongcatFlashForCausalLM
from ..model.parallel import Groups, Parallel
from ..model.source import released
from .checkpoint import CheckpointSource


def load(kind: type[LongcatFlashForCausalLM], path: str | Path, groups: Groups, dtype: torch.dtype | None,
         **options: Any) -> LongcatFlashForCausalLM:  # fmt: skip
    """A model of a folder. With groups a collective of their ranks: they compare configuration and checkpoint, and if
    one of them fails, none has a model."""
    groups.check()
    if groups.ep is None:
        config = LongcatFlashConfig.from_pretrained(path)
        with released(CheckpointSource(path, config, dtype, **options)) as source:
            return kind(source, config)
    parallel = Parallel(groups)
    try:
        return _load(kind, path, parallel, dtype, options)
    except BaseException:
        parallel.close()
        raise


def _load(kind: type[LongcatFlashForCausalLM], path: str | Path, parallel: Parallel, dtype: torch.dtype | None,
          options: dict[str, Any]) -> LongcatFlashForCausalLM:  # fmt: skip
    def opened() -> CheckpointSource:
        source = CheckpointSource(path, config, dtype, experts=parallel.experts, tp=parallel.tp, **options)
        if source.dtype != torch.bfloat16:
            source.close()
            expected = "torch.bfloat16 with ep_group, since rows travel in it"
            raise LongcatShapeError(message("from_pretrained", "dtype", source.dtype, expected))
        return source

    def built() -> LongcatFlashForCausalLM:
        model = kind(source, config)
        if apart := model.without_kernels:
            got = f"a model with products {apart} of {model.dtype} on this rank, whose rows run one by one"
            expected = "kernels for all: [N, K] with N of 8 or more and K a multiple of 8"
            raise LongcatUnsupportedError(message("from_pretrained", "ep_group", got, expected))
        return model

    ranks, op = parallel.agreement, "from_pretrained"
    config = ranks.together(lambda: LongcatFlashConfig.from_pretrained(path))
    ranks.require_same(op, "config", config)
    parallel.share_out(config)
    source = ranks.together(opened)
    with released(source):
        held = {name: [str(source.header.dtype[name]), *shape] for name, shape in source.header.shape.items()}
        ranks.require_same(op, "checkpoint", held)
        ranks.require_same(op, "precision", source.precision.rules)
        model = ranks.together(built)
    parallel.join(model)
    return model

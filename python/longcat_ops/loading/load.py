"""Loads a model, alone or as one of several ranks that share its experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..errors import LongcatShapeError, LongcatUnsupportedError, message
from ..model.config import LongcatFlashConfig
from ..model.model import LongcatFlashForCausalLM
from ..model.parallel import Parallel
from ..model.source import released
from .checkpoint import CheckpointSource


def load(kind: type[LongcatFlashForCausalLM], path: str | Path, ep_group: Any, tp_group: Any,
         dtype: torch.dtype | None, **options: Any) -> LongcatFlashForCausalLM:  # fmt: skip
    """A model of a folder. With ep_group a collective of its ranks: they compare configuration and checkpoint, and if
    one of them fails, none has a model."""
    if tp_group is not None:
        expected = "None: tensor-parallel layers are not built yet"
        raise LongcatUnsupportedError(message("from_pretrained", "tp_group", "a process group", expected))
    if ep_group is None:
        config = LongcatFlashConfig.from_pretrained(path)
        with released(CheckpointSource(path, config, dtype, **options)) as source:
            return kind(source, config)
    if not dist.is_initialized() or not isinstance(ep_group, dist.ProcessGroup):
        expected = "a process group of torch.distributed that has this rank"
        raise LongcatShapeError(message("from_pretrained", "ep_group", repr(ep_group), expected))
    parallel = Parallel(ep_group)
    try:
        return _load(kind, path, parallel, dtype, options)
    except BaseException:
        parallel.close()
        raise


def _load(kind: type[LongcatFlashForCausalLM], path: str | Path, parallel: Parallel, dtype: torch.dtype | None,
          options: dict[str, Any]) -> LongcatFlashForCausalLM:  # fmt: skip
    def opened() -> CheckpointSource:
        source = CheckpointSource(path, config, dtype, experts=parallel.experts, **options)
        if source.dtype != torch.bfloat16:
            source.close()
            expected = "torch.bfloat16 with ep_group, since rows travel in it"
            raise LongcatShapeError(message("from_pretrained", "dtype", source.dtype, expected))
        return source

    config = parallel.together(lambda: LongcatFlashConfig.from_pretrained(path))
    parallel.require_same("config", config)
    parallel.share_out(config)
    source = parallel.together(opened)
    with released(source):
        held = {name: [str(source.header.dtype[name]), *shape] for name, shape in source.header.shape.items()}
        parallel.require_same("checkpoint", held)
        parallel.require_same("precision", str(options.get("precision")))
        model = parallel.together(lambda: kind(source, config))
    parallel.join(model)
    return model

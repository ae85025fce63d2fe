"""Run as a program: loads a checkpoint folder with precision="fp8", runs a prefill and a decode step, and writes their
op calls to a file. LONGCAT_OPS_BACKEND selects the ops' backend.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import longcat_ops
from longcat_ops import LongcatFlashForCausalLM
from longcat_ops.model.layers import Linear

PROMPT = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9]])
NEXT = torch.tensor([[32]])


class _Recorder(TorchDispatchMode):
    """Records (op, arguments) of the model's calls, after each call has written its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "longcat_ops":
            kept = [a.clone() if isinstance(a, Tensor) else a for a in args]
            self.calls.append((func._schema.name.split("::")[1], kept))
        return result


def main(folder: str, file: str) -> None:
    model = LongcatFlashForCausalLM.from_pretrained(folder, precision="fp8", dtype=torch.bfloat16, progress=False)
    dense = LongcatFlashForCausalLM.from_pretrained(folder, precision="bf16", dtype=torch.bfloat16, progress=False)
    cache = model.new_cache(1, 32)
    with _Recorder() as recorder:
        logits = [model(PROMPT, cache), model(NEXT, cache)]
    torch.save(
        {
            "backend": longcat_ops._environment.backend(),
            "calls": recorder.calls,
            "logits": torch.cat(logits, 1),
            "dense_logits": dense(torch.cat([PROMPT, NEXT], 1)),
            "fp8": [module.fp8 for module in model.modules() if isinstance(module, Linear)],
        },
        file,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Our model in plain torch, its decode pass under torch.compile: the reference backend, in a process of its own.

LONGCAT_OPS_BACKEND=reference python bench/peers/compiled_model.py CHECKPOINT THREADS    # what CompiledModel starts
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

import torch

ROOT = Path(__file__).resolve().parents[2]


class CompiledModel:
    """The process, with the weights in fp32; compiled by the first call."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        environment = os.environ | {"LONGCAT_OPS_BACKEND": "reference", "PYTHONPATH": str(ROOT / "python")}
        command = [sys.executable, __file__, str(checkpoint), str(threads)]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> CompiledModel:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def generate(self, ids: list[int], new: int) -> list[int]:
        """ids and `new` more of a plain greedy decode."""
        self._process.stdin.write(json.dumps([ids, new]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def main(checkpoint: str, threads: str) -> None:
    from longcat_ops import LongcatFlashForCausalLM, generate

    torch.set_num_threads(int(threads))
    options = dict(dtype=torch.float32, precision="bf16", progress=False)
    model = LongcatFlashForCausalLM.from_pretrained(checkpoint, **options)
    model.decode_rows = torch.compile(model.decode_rows)
    answers, sys.stdout = sys.stdout, sys.stderr  # the compiler prints, too
    for line in sys.stdin:
        ids, new = json.loads(line)
        out = generate(model, [torch.tensor(ids)], new, speculative=False, eos_token_id=-1)
        print(json.dumps(out.sequences[0].tolist()), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

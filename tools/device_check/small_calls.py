"""Calls every op once per case of tests/op_cases.py on the GPU, for tools that watch the process."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import torch

from op_cases import CASES, EVERY, public
from op_results import to_device


def main() -> None:
    for op, name in EVERY:
        made = CASES[op][name]()
        kwargs = {key: to_device(value, "cuda") for key, value in made.kwargs.items()}
        public(op)(*to_device(made.args, "cuda"), **kwargs)
        torch.cuda.synchronize()
    print(f"{len(EVERY)} calls")


if __name__ == "__main__":
    main()

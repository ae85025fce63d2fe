"""Calls every op once per case of longcat_ops.testing.op_cases, for tools that watch the process.

python tools/device_check/small_calls.py cuda      # or cpu, in a rehearsal
"""

from __future__ import annotations

import sys

import torch

from longcat_ops.testing.op_cases import CASES, EVERY, public
from longcat_ops.testing.op_results import to_device


def main(device: str) -> None:
    for op, name in EVERY:
        made = CASES[op][name]()
        kwargs = {key: to_device(value, device) for key, value in made.kwargs.items()}
        public(op)(*to_device(made.args, device), **kwargs)
        if device == "cuda":
            torch.cuda.synchronize()
    print(f"{len(EVERY)} calls")


if __name__ == "__main__":
    main(sys.argv[1])

"""Calls every op once per case of longcat_ops.testing.op_cases on the GPU, for tools that watch the process."""

from __future__ import annotations

import torch

from longcat_ops.testing.op_cases import CASES, EVERY, public
from longcat_ops.testing.op_results import to_device


def main() -> None:
    for op, name in EVERY:
        made = CASES[op][name]()
        kwargs = {key: to_device(value, "cuda") for key, value in made.kwargs.items()}
        public(op)(*to_device(made.args, "cuda"), **kwargs)
        torch.cuda.synchronize()
    print(f"{len(EVERY)} calls")


if __name__ == "__main__":
    main()
